"""The server's settings: flags over environment over TOML file over defaults, validated once, then frozen.

Each is declared once, in settings.py, or in the module of its table, such as harnesses.py or quotas.py. Its flag, its variable,
its checks and docs/settings.md follow from that.
"""

from evalrpc.config.callers import ClientCertificate, OidcSettings
from evalrpc.config.engines import EndpointSettings, EngineSettings, ModelServer
from evalrpc.config.executors import ExecutorSettings
from evalrpc.config.harnesses import HarnessSettings
from evalrpc.config.listen import HttpListenSettings, ListenSettings
from evalrpc.config.loading import load_settings
from evalrpc.config.policy import PolicySettings
from evalrpc.config.preparations import PreparationSettings
from evalrpc.config.quotas import DEFAULT_QUOTA, QuotaSettings
from evalrpc.config.secrets import SecretSettings
from evalrpc.config.settings import (
    LMMS_EVAL,
    SETTINGS,
    Settings,
    parse_uids,
)
from evalrpc.config.suites import SuiteEntrySettings, SuiteSettings

__all__ = [
    "DEFAULT_QUOTA",
    "LMMS_EVAL",
    "SETTINGS",
    "ClientCertificate",
    "EndpointSettings",
    "EngineSettings",
    "ExecutorSettings",
    "HarnessSettings",
    "HttpListenSettings",
    "ListenSettings",
    "ModelServer",
    "OidcSettings",
    "PolicySettings",
    "PreparationSettings",
    "QuotaSettings",
    "SecretSettings",
    "Settings",
    "SuiteEntrySettings",
    "SuiteSettings",
    "load_settings",
    "parse_uids",
]
