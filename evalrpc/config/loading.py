"""Reads settings: flags over environment over TOML file over defaults.

The TOML file has the fields of `Settings` at its top level and one `[harnesses.NAME]` table per harness. Relative paths in it
are relative to the file, others to the working directory. An environment variable that is empty counts as unset.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalrpc.config.declaration import settings_of
from evalrpc.config.settings import SETTINGS, HarnessSettings, Settings
from evalrpc.errors import ConfigurationError

_HARNESSES: Final = "harnesses"
_HARNESS_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class _Given(NamedTuple):
    """What a source says about a setting."""

    value: Any
    folder: Path
    """Where relative paths start."""
    source: str


def load_settings(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    config_file: Path | None = None,
) -> Settings:
    """Merge the sources into Settings. A flag that is None was not given.

    Raises ConfigurationError, naming the setting and its source.
    """
    given = _read_file(config_file) if config_file else {}
    harnesses = _read_harnesses(given.pop(_HARNESSES)) if _HARNESSES in given else {}
    for name, setting in SETTINGS.items():
        if value := environment.get(setting.variable):
            given[name] = _Given(value, Path(), setting.variable)
        if flags.get(name) is not None:
            given[name] = _Given(flags[name], Path(), setting.flag)
    values = {name: SETTINGS[name].read(*what) for name, what in given.items()}
    if harnesses:
        values[_HARNESSES] = harnesses
    return Settings(**values)


def _read_file(path: Path) -> dict[str, _Given]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config file {path}: {error}") from error
    known = {*SETTINGS, _HARNESSES}
    if unknown := set(values) - known:
        raise ConfigurationError(f"config file {path}: unknown setting {min(unknown)}; there are: {', '.join(sorted(known))}")
    return {name: _Given(value, path.parent, str(path)) for name, value in values.items()}


def _read_harnesses(tables: _Given) -> dict[str, HarnessSettings]:
    _require(isinstance(tables.value, dict), _HARNESSES, "must be tables such as [harnesses.lmms-eval]", tables.source)
    return {name: _read_harness(name, tables._replace(value=table)) for name, table in tables.value.items()}


def _read_harness(name: str, table: _Given) -> HarnessSettings:
    where = f"{_HARNESSES}.{name}"
    _require(bool(_HARNESS_NAME.fullmatch(name)), where, "a name has small letters, digits, `.`, `_` and `-`", table.source)
    _require(isinstance(table.value, dict), where, "must be a table", table.source)
    declared = settings_of(HarnessSettings, prefix=f"{where}.")
    for key in table.value:
        _require(key in declared, f"{where}.{key}", f"is unknown; there are: {', '.join(sorted(declared))}", table.source)
    given = {"kind": name, "working_dir": "", **table.value}
    values = {key: declared[key].read(value, table.folder, table.source) for key, value in given.items()}
    _require(
        values["kind"] != "command" or bool(values.get("command")),
        f"{where}.command",
        "is needed for the kind `command`",
        table.source,
    )
    return HarnessSettings(name=name, **values)


def _require(condition: bool, name: str, rule: str, source: str) -> None:
    if not condition:
        raise ConfigurationError(f"setting {name}: {rule} (from {source})")
