"""The server's settings: flags over environment over TOML file over defaults, validated once, then frozen.

Each is declared once, in settings.py, policy.py or secrets.py. Its flag, its variable, its checks and docs/settings.md follow
from that.
"""

from evalrpc.config.loading import load_settings
from evalrpc.config.policy import PolicySettings
from evalrpc.config.secrets import SecretSettings
from evalrpc.config.settings import LMMS_EVAL, SETTINGS, HarnessSettings, Settings, parse_listen, parse_uids

__all__ = [
    "LMMS_EVAL",
    "SETTINGS",
    "HarnessSettings",
    "PolicySettings",
    "SecretSettings",
    "Settings",
    "load_settings",
    "parse_listen",
    "parse_uids",
]
