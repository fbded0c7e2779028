"""Reads settings: flags over environment over TOML file over defaults.

The TOML file has the fields of `Settings` at its top level, one `[harnesses.NAME]` table per harness, in it perhaps a table
`policy`, one `[preparations.NAME]` table per preparation, one `[engines.NAME]` table per engine, one `[endpoints.NAME]` table
per endpoint, one `[executors.NAME]` table per cluster, one `[suites.NAME]` table per suite, one `[secrets.NAME]` table per
secret, the weights of owners in `[shares]`, their quotas in a `[quotas.OWNER]` table each, and the tables `[oidc]` and
`[client_certificates]`. Relative paths in it are relative to the file, others to the working directory. An environment variable
that is empty counts as unset.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from evalrpc.config.callers import OWNER_RULE, ClientCertificate, OidcSettings
from evalrpc.config.declaration import settings_of
from evalrpc.config.engines import COMPLETIONS, LOG_PROBABILITIES, EndpointSettings, EngineSettings
from evalrpc.config.executors import LOCAL_EXECUTOR, ExecutorSettings
from evalrpc.config.harnesses import HarnessSettings
from evalrpc.config.policy import PolicySettings
from evalrpc.config.preparations import PreparationSettings
from evalrpc.config.quotas import DEFAULT_QUOTA, QuotaSettings
from evalrpc.config.secrets import SOURCES, SecretSettings
from evalrpc.config.settings import SETTINGS, Settings
from evalrpc.config.suites import MAX_ENTRIES, SuiteEntrySettings, SuiteSettings
from evalrpc.errors import ConfigurationError
from evalrpc.files.regular import read_named_file

_T = TypeVar("_T")

_HARNESSES: Final = "harnesses"
_POLICY: Final = "policy"
_PREPARATIONS: Final = "preparations"
_ENGINES: Final = "engines"
_EXECUTORS: Final = "executors"
_ENDPOINTS: Final = "endpoints"
_SECRETS: Final = "secrets"
_CERTIFICATES: Final = "client_certificates"
_OIDC: Final = "oidc"
_SHARES: Final = "shares"
_QUOTAS: Final = "quotas"
_SUITES: Final = "suites"
_ENTRIES: Final = "entries"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SECRET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NO_SECRET: Final = re.compile(r"EVALRPC_.*|CUDA_VISIBLE_DEVICES")  # the server itself sets these for every run


class _Given(NamedTuple):
    """What a source says about a setting."""

    value: Any
    folder: Path
    """Where relative paths start."""
    source: str


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], config_file: Path | None = None) -> Settings:
    """Merge the sources into Settings. A flag that is None was not given.

    Raises ConfigurationError, naming the setting and its source.
    """
    given = _read_file(config_file) if config_file else {}
    tables = {name: read(given.pop(name)) for name, read in _TABLES.items() if name in given}
    for name, setting in SETTINGS.items():
        if value := environment.get(setting.variable):
            given[name] = _Given(value, Path(), setting.variable)
        if flags.get(name) is not None:
            given[name] = _Given(flags[name], Path(), setting.flag)
    values = {name: SETTINGS[name].read(*what) for name, what in given.items()}
    settings = Settings(**values, **{name: table for name, table in tables.items() if table})
    _require_servers_fit(settings, str(config_file))
    return settings


def _require_servers_fit(settings: Settings, source: str) -> None:
    """Raise ConfigurationError for an engine and an endpoint of the same name, and for secrets of theirs that are not there."""
    for name, endpoint in settings.endpoints.items():
        where = f"{_ENDPOINTS}.{name}"
        _require(name not in settings.engines, where, "an engine has this name, too: requests couldn't tell them apart", source)
        _require_secrets_exist(filter(None, [endpoint.secret]), settings, f"{where}.secret", source)
    for name, engine in settings.engines.items():
        _require_secrets_exist(engine.secrets, settings, f"{_ENGINES}.{name}.secrets", source)


def _require_secrets_exist(names: Iterable[str], settings: Settings, where: str, source: str) -> None:
    for name in names:
        _require(name in settings.secrets, where, f"there is no table [secrets.{name}]", source)


def _read_file(path: Path) -> dict[str, _Given]:
    try:
        values = tomllib.loads(read_named_file(path).decode())
    except OSError as error:
        raise ConfigurationError(f"config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config file {path}: {error}") from error
    known = {*SETTINGS, *_TABLES}
    if unknown := set(values) - known:
        raise ConfigurationError(f"config file {path}: unknown setting {min(unknown)}{_nearest(min(unknown), known)}")
    return {name: _Given(value, path.parent, str(path)) for name, value in values.items()}


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about a setting that there is not: the nearest ones, or else where all are."""
    nearest = get_close_matches(name, known)
    return (
        f"; did you mean {' or '.join(nearest)}?" if nearest else "; `evalrpc serve --help` and docs/settings.md list them all"
    )


def _read_each(where: str, rule: str, given: _Given, read: Callable[[str, _Given], _T]) -> dict[str, _T]:
    """Read every entry of a table, by name. `rule` says what it must be."""
    _require(isinstance(given.value, dict), where, rule, given.source)
    return {name: read(name, given._replace(value=value)) for name, value in given.value.items()}


def _read_harnesses(tables: _Given) -> dict[str, HarnessSettings]:
    return _read_each(_HARNESSES, "must be tables such as [harnesses.lmms-eval]", tables, _read_harness)


def _read_harness(name: str, table: _Given) -> HarnessSettings:
    where = f"{_HARNESSES}.{name}"
    _require_name(name, where, table.source)
    values = _read_table(HarnessSettings, where, table, {"kind": name, "working_dir": "."}, (_POLICY,))
    policy = _read_policy(f"{where}.{_POLICY}", table._replace(value=table.value.get(_POLICY, {})))
    _require(
        values["kind"] != "command" or bool(values.get("command")),
        f"{where}.command",
        "is needed for the kind `command`",
        table.source,
    )
    return HarnessSettings(name=name, policy=policy, **values)


def _read_policy(where: str, table: _Given) -> PolicySettings:
    policy = PolicySettings(**_read_table(PolicySettings, where, table))
    longest, default = policy.max_timeout_seconds, policy.default_timeout_seconds
    _require(
        longest is None or default is None or default <= longest,
        f"{where}.default_timeout_seconds",
        "must not be more than `max_timeout_seconds`",
        table.source,
    )
    return policy


def _read_preparations(tables: _Given) -> dict[str, PreparationSettings]:
    return _read_each(_PREPARATIONS, "must be tables such as [preparations.merge-fsdp2]", tables, _read_preparation)


def _read_preparation(name: str, table: _Given) -> PreparationSettings:
    where = f"{_PREPARATIONS}.{name}"
    _require_name(name, where, table.source)
    return PreparationSettings(name=name, **_read_table(PreparationSettings, where, table, {"working_dir": "."}))


def _read_engines(tables: _Given) -> dict[str, EngineSettings]:
    return _read_each(_ENGINES, "must be tables such as [engines.vllm]", tables, _read_engine)


def _read_engine(name: str, table: _Given) -> EngineSettings:
    where = f"{_ENGINES}.{name}"
    _require_name(name, where, table.source)
    engine = EngineSettings(name=name, **_read_table(EngineSettings, where, table, {"working_dir": "."}))
    _require_complete_api(engine.api, where, table.source)
    return engine


def _read_executors(tables: _Given) -> dict[str, ExecutorSettings]:
    return _read_each(_EXECUTORS, "must be tables such as [executors.cluster]", tables, _read_executor)


def _read_executor(name: str, table: _Given) -> ExecutorSettings:
    where = f"{_EXECUTORS}.{name}"
    _require_name(name, where, table.source)
    _require(name != LOCAL_EXECUTOR, where, "is the server's own machine, which needs no table", table.source)
    return ExecutorSettings(name=name, **_read_table(ExecutorSettings, where, table))


def _read_endpoints(tables: _Given) -> dict[str, EndpointSettings]:
    return _read_each(_ENDPOINTS, "must be tables such as [endpoints.judge]", tables, _read_endpoint)


def _read_endpoint(name: str, table: _Given) -> EndpointSettings:
    where = f"{_ENDPOINTS}.{name}"
    _require_name(name, where, table.source)
    endpoint = EndpointSettings(name=name, **_read_table(EndpointSettings, where, table))
    _require_complete_api(endpoint.api, where, table.source)
    return endpoint


def _require_complete_api(api: tuple[str, ...], where: str, source: str) -> None:
    is_complete = LOG_PROBABILITIES not in api or COMPLETIONS in api
    _require(is_complete, f"{where}.api", f"`{LOG_PROBABILITIES}` are asked for with `{COMPLETIONS}`: name both", source)


def _read_suites(tables: _Given) -> dict[str, SuiteSettings]:
    return _read_each(_SUITES, "must be tables such as [suites.release]", tables, _read_suite)


def _read_suite(name: str, table: _Given) -> SuiteSettings:
    where = f"{_SUITES}.{name}"
    _require_name(name, where, table.source)
    values = _read_table(SuiteSettings, where, table, others=(_ENTRIES,))
    given, place = table.value.get(_ENTRIES, []), f"{where}.{_ENTRIES}"
    is_list = isinstance(given, list) and 1 <= len(given) <= MAX_ENTRIES
    _require(is_list, place, f"must be 1 to {MAX_ENTRIES} tables such as [[{place}]]", table.source)
    entries: dict[str, SuiteEntrySettings] = {}
    for index, value in enumerate(given):
        entry = _read_suite_entry(f"{place}[{index}]", table._replace(value=value))
        problem = f"another entry is called {entry.name!r}, too: name one of them"
        _require(entry.name not in entries, f"{place}[{index}].name", problem, table.source)
        entries[entry.name] = entry
    return SuiteSettings(name=name, entries=tuple(entries.values()), **values)


def _read_suite_entry(where: str, table: _Given) -> SuiteEntrySettings:
    entry = SuiteEntrySettings(**_read_table(SuiteEntrySettings, where, table))
    return replace(entry, name=entry.name or ",".join(entry.tasks))


def _read_secrets(tables: _Given) -> dict[str, SecretSettings]:
    return _read_each(_SECRETS, "must be tables such as [secrets.HF_TOKEN]", tables, _read_secret)


def _read_secret(name: str, table: _Given) -> SecretSettings:
    where = f"{_SECRETS}.{name}"
    is_variable = _SECRET_NAME.fullmatch(name) and not _NO_SECRET.fullmatch(name)
    _require(bool(is_variable), where, "a name is that of an environment variable which the server does not set", table.source)
    values = _read_table(SecretSettings, where, table)
    sources = ", ".join(f"`{source}`" for source in SOURCES)
    _require(sum(source in values for source in SOURCES) == 1, where, f"must have exactly one of {sources}", table.source)
    _require("owners" in values, f"{where}.owners", 'is required: a list of owners, or ["*"] for everybody', table.source)
    return SecretSettings(**values)


def _read_certificates(table: _Given) -> dict[str, ClientCertificate]:
    lines = 'must have lines such as "NAME" = { owner = "alice", role = "submitter" }'
    return _read_each(_CERTIFICATES, lines, table, _read_certificate)


def _read_certificate(name: str, line: _Given) -> ClientCertificate:
    return ClientCertificate(**_read_table(ClientCertificate, f'{_CERTIFICATES}."{name}"', line))


def _read_oidc(table: _Given) -> OidcSettings:
    oidc = OidcSettings(**_read_table(OidcSettings, _OIDC, table))
    _require(bool(oidc.role or oidc.role_claim), f"{_OIDC}.role", f"is needed, or {_OIDC}.role_claim", table.source)
    return oidc


def _read_table(
    declaring: type, where: str, table: _Given, defaults: Mapping[str, Any] = MappingProxyType({}), others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the checked values of a table with the keys that a dataclass declares. Those without a default are needed;
    `others` are known besides, and read elsewhere."""
    _require(isinstance(table.value, dict), where, "must be a table", table.source)
    declared = settings_of(declaring, prefix=f"{where}.")
    given = {**defaults, **{key: value for key, value in table.value.items() if key not in others}}
    known = ", ".join(sorted((*declared, *others)))
    for key in given:
        _require(key in declared, f"{where}.{key}", f"is unknown; there are: {known}", table.source)
    for each in fields(declaring):
        is_needed = each.name in declared and each.default is MISSING and each.default_factory is MISSING
        _require(not is_needed or each.name in given, f"{where}.{each.name}", "is needed", table.source)
    return {key: declared[key].read(value, table.folder, table.source) for key, value in given.items()}


def _read_shares(table: _Given) -> dict[str, float]:
    return _read_each(_SHARES, "must be a table of weights by owner", table, _read_weight)


def _read_weight(owner: str, given: _Given) -> float:
    weight, where = given.value, f"{_SHARES}.{owner}"
    _require_owner(owner, where, given.source)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    _require(is_number and 0 < weight < float("inf"), where, "must be a number above 0", given.source)
    return float(weight)


def _read_quotas(tables: _Given) -> dict[str, QuotaSettings]:
    given = _read_each(_QUOTAS, "must be tables such as [quotas.default]", tables, _read_quota)
    return {owner: QuotaSettings(**{**given.get(DEFAULT_QUOTA, {}), **values}) for owner, values in given.items()}


def _read_quota(owner: str, table: _Given) -> dict[str, Any]:
    where = f"{_QUOTAS}.{owner}"
    _require_owner(owner, where, table.source)
    return _read_table(QuotaSettings, where, table)


def _require_name(name: str, where: str, source: str) -> None:
    _require(bool(_NAME.fullmatch(name)), where, "a name has small letters, digits, `.`, `_` and `-`", source)


def _require_owner(owner: str, where: str, source: str) -> None:
    _require(OWNER_RULE.holds(owner), where, f"an owner must {OWNER_RULE.description}, as at sign-in", source)


def _require(condition: bool, name: str, rule: str, source: str) -> None:
    if not condition:
        raise ConfigurationError(f"setting {name}: {rule} (from {source})")


_TABLES: Final[Mapping[str, Callable[[_Given], Any]]] = {
    _HARNESSES: _read_harnesses,
    _PREPARATIONS: _read_preparations,
    _ENGINES: _read_engines,
    _EXECUTORS: _read_executors,
    _ENDPOINTS: _read_endpoints,
    _SUITES: _read_suites,
    _SECRETS: _read_secrets,
    _SHARES: _read_shares,
    _QUOTAS: _read_quotas,
    _CERTIFICATES: _read_certificates,
    _OIDC: _read_oidc,
}
"""How each table of the file is read."""
