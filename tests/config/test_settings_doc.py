"""docs/settings.md has every setting, and its example works."""

import subprocess
import sys
from pathlib import Path

import pytest

from evalrpc.config import (
    SETTINGS,
    ClientCertificate,
    EndpointSettings,
    EngineSettings,
    ExecutorSettings,
    HarnessSettings,
    HttpListenSettings,
    ListenSettings,
    OidcSettings,
    PolicySettings,
    PreparationSettings,
    QuotaSettings,
    SecretSettings,
    SuiteEntrySettings,
    SuiteSettings,
    load_settings,
)
from evalrpc.config.declaration import settings_of
from evalrpc.harnesses.registry import build_harnesses

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "settings.md").read_text()
EXAMPLE = ROOT / "docs" / "evalrpc.toml"
LISTEN_KEYS = settings_of(ListenSettings, "listen.") | {
    f"http_{name}": key for name, key in settings_of(HttpListenSettings, "http_listen.").items()
}
HARNESS_KEYS = settings_of(HarnessSettings, "harnesses.NAME.")
POLICY_KEYS = settings_of(PolicySettings, "harnesses.NAME.policy.")
PREPARATION_KEYS = settings_of(PreparationSettings, "preparations.NAME.")
ENGINE_KEYS = settings_of(EngineSettings, "engines.NAME.")
ENDPOINT_KEYS = settings_of(EndpointSettings, "endpoints.NAME.")
EXECUTOR_KEYS = settings_of(ExecutorSettings, "executors.NAME.")
SUITE_KEYS = settings_of(SuiteSettings, "suites.NAME.") | settings_of(SuiteEntrySettings, "suites.NAME.entries.")
SECRET_KEYS = settings_of(SecretSettings, "secrets.NAME.")
QUOTA_KEYS = settings_of(QuotaSettings, "quotas.OWNER.")
CERTIFICATE_KEYS = settings_of(ClientCertificate, "client_certificates.NAME.")
OIDC_KEYS = settings_of(OidcSettings, "oidc.")
OF_RUNS = (HARNESS_KEYS, POLICY_KEYS, PREPARATION_KEYS, ENGINE_KEYS, ENDPOINT_KEYS, EXECUTOR_KEYS, SUITE_KEYS, SECRET_KEYS)
TABLES = (LISTEN_KEYS, *OF_RUNS, QUOTA_KEYS, CERTIFICATE_KEYS, OIDC_KEYS)
KEYS = [key for table in TABLES for key in table.values()]
SECTIONS = {section.partition("\n")[0]: section.replace("\n", " ") for section in PAGE.split("\n### ")[1:]}


def test_it_has_a_section_for_every_setting_and_for_every_key_of_a_table() -> None:
    assert list(SECTIONS) == [setting.name for setting in (*SETTINGS.values(), *KEYS)]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_has_its_flag_its_variable_its_default_and_what_it_does(name: str) -> None:
    flag = f"`--{name.replace('_', '-')}"
    for text in (flag, f"`EVALRPC_{name.upper()}`", f"default: {SETTINGS[name].default_text}", SETTINGS[name].description):
        assert text in SECTIONS[name]


def test_it_is_what_the_declarations_say() -> None:
    result = subprocess.run((sys.executable, ROOT / "scripts" / "generate-settings-doc", "--check"), check=False)
    assert result.returncode == 0


def test_its_example_can_be_loaded_and_has_every_key_of_a_harness() -> None:
    text = EXAMPLE.read_text()
    assert text in PAGE
    assert {name for name in (*HARNESS_KEYS, *QUOTA_KEYS) if f"\n{name} = " not in text} == set()

    settings = load_settings({}, {}, EXAMPLE)

    assert settings.data_dir == EXAMPLE.parent / "data"
    assert settings.drain
    assert {harness.kind for harness in build_harnesses(settings).values()} == {"lmms-eval", "lm-eval", "inspect-ai", "command"}
