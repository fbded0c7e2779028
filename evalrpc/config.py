"""The server's settings: flags over environment over TOML file over defaults, validated once, then frozen.

The TOML file has the fields of `Settings` at its top level and one `[harnesses.NAME]` table per harness. Relative paths in it
are relative to the file. The environment variable of a setting is `EVALRPC_` plus its name in capitals; an empty one counts as
unset.
"""

import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from evalrpc.errors import ConfigurationError

DEFAULT_HARNESS: Final = "lmms-eval"
"""The harness of a request that names none."""

ENVIRONMENT_PREFIX: Final = "EVALRPC_"

_HARNESS_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class HarnessSettings:
    """One `[harnesses.NAME]` table."""

    name: str
    kind: str
    """`lmms-eval`, `lm-eval`, `inspect-ai`, `command`, or a plugin's kind. Default: the table's name."""
    python: Path = field(default_factory=lambda: Path(sys.executable))
    """The interpreter of the harness's own environment. Default: the server's."""
    include_path: tuple[Path, ...] = ()
    """The operator's task folders. Tasks in them run their authors' code."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of every run. May hold secrets, so it is never logged or shown."""
    command: tuple[str, ...] = ()
    """The command line, for the kind `command`."""
    working_dir: Path = field(default_factory=Path.cwd)
    """The folder that runs start in. Default: the config file's folder, so that `command` may name programs beside it."""
    args: tuple[str, ...] = ()
    """Arguments added to every command line that the harness builds itself."""


@dataclass(frozen=True)
class Settings:
    """Every setting of a server."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT. Port 0 picks a free one. There is no authentication: listen on loopback or a trusted network only."""
    data_dir: Path = Path("evalrpc-data")
    """The folder that holds the database, the logs and the results. One server at a time, readable by its account only."""
    gpus: str = "auto"
    """`auto`: those that CUDA_VISIBLE_DEVICES or the driver shows. N: the first N. `0,2,3`: these. `0` or empty: none."""
    max_running: int = 0
    """The most jobs that run at once. 0: one per GPU plus two. See placement.capacity for the slots of jobs without GPUs."""
    max_queued: int = 100_000
    """The most jobs that wait; beyond that SubmitJob answers RESOURCE_EXHAUSTED."""
    max_request_bytes: int = 16 * 1024 * 1024
    """The largest message that the server accepts. Well above what a request may hold, so that an oversized request gets an
    answer that names the field."""
    output_root: Path | None = None
    """The folder below which a request's `output_dir` must lie. Default: no request may name one."""
    output_mode: int = 0o640
    """The permissions of files below `output_root`, as an octal number. Whoever may read a file may enter its folder. A program
    can still restrict its files further."""
    output_group: str = ""
    """The group, by name or number, of files and folders below `output_root`. Empty: the server's own."""
    reservation_seconds: float = 600.0
    """How long smaller jobs may overtake one that needs more GPUs than are free; after that, GPUs are reserved for it."""
    grace_seconds: float = 10.0
    """The time between SIGTERM and SIGKILL for a run that is being stopped."""
    stop_seconds: float = 10.0
    """How long a graceful stop waits for calls in progress, besides the drain. Five seconds later the server exits by force."""
    drain: bool = False
    """Whether a graceful stop waits for the runs instead of leaving them to the next server. No run is started meanwhile."""
    drain_seconds: float = 3600.0
    """How long a drain may take; runs that remain are left to the next server."""
    journal_max_events: int = 1_000_000
    """How many events the journal keeps for watchers that resume."""
    journal_max_age_seconds: float = 7 * 24 * 3600.0
    """How long the journal keeps an event."""
    retention_max_age_seconds: float = 0.0
    """How long a job and its files are kept after its end. 0: forever."""
    retention_max_jobs: int = 0
    """How many finished jobs are kept, the latest first. 0: all."""
    unknown_tasks: str = "warn"
    """How to treat a job with a task that the harness does not list, once the server has the list: `warn` or `refuse`."""
    log_format: str = "text"
    """`text` for people or `json` for machines."""
    harnesses: Mapping[str, HarnessSettings] = field(
        default_factory=lambda: {DEFAULT_HARNESS: HarnessSettings(DEFAULT_HARNESS, DEFAULT_HARNESS)}
    )
    """The harnesses by name. Default: `lmms-eval` in the server's own environment."""

    def __post_init__(self) -> None:
        """Reject invalid settings, naming the setting."""
        parse_listen(self.listen)
        for name in ("max_queued", "max_request_bytes", "journal_max_events"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("data_dir", "output_root"):
            _require(
                not set(",'\"") & set(str(getattr(self, name))),
                name,
                "must have no comma or quote, which lmms-eval would misread",
            )
        _require(
            0 <= self.output_mode <= 0o777 and self.output_mode & 0o700 == 0o600 and not self.output_mode & 0o111,
            "output_mode",
            "must be the rights of a file that its owner may read and write, such as 0640",
        )
        for name in ("max_running", "retention_max_jobs"):
            _require(getattr(self, name) >= 0, name, "must not be negative")
        for name in (
            "reservation_seconds",
            "grace_seconds",
            "stop_seconds",
            "drain_seconds",
            "journal_max_age_seconds",
            "retention_max_age_seconds",
        ):
            _require(0 <= getattr(self, name) < float("inf"), name, "must be finite and not negative")
        _require(self.unknown_tasks in ("warn", "refuse"), "unknown_tasks", "must be `warn` or `refuse`")
        _require(self.log_format in ("text", "json"), "log_format", "must be `text` or `json`")
        _require(
            bool(re.fullmatch(r"auto|\d*|\w[\w.:/-]*(,\w[\w.:/-]*)*", self.gpus)),
            "gpus",
            "must be `auto`, a number, or a list such as `0,2,3`",
        )


def load_settings(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    config_file: Path | None = None,
) -> Settings:
    """Merge the sources into Settings. A flag that is None was not given.

    Raises ConfigurationError, naming the setting and its source.
    """
    file_values = _read_file(config_file) if config_file else {}
    environment_values = {
        f.name: environment[variable]
        for f in fields(Settings)
        if f.name != "harnesses" and environment.get(variable := ENVIRONMENT_PREFIX + f.name.upper())
    }
    given = {name: value for name, value in flags.items() if value is not None}
    merged = {**file_values, **environment_values, **given}
    return Settings(**{name: _convert(name, value) for name, value in merged.items()})


def parse_listen(listen: str) -> tuple[str, int]:
    """Split HOST:PORT. An IPv6 host is in brackets. Raises ConfigurationError."""
    host, separator, port = listen.rpartition(":")
    _require(bool(separator and host), "listen", "must be HOST:PORT")
    _require(port.isascii() and port.isdigit() and int(port) <= 65535, "listen", "the port must be 0 to 65535")
    return host, int(port)


def _integer(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "1", "false", "0"):
        return value in ("true", "1")
    raise ValueError


def _octal_number(value: Any) -> int:
    return _integer(value) if isinstance(value, int) else int(value, 8)  # TOML has numbers such as 0o640


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "listen": str,
    "data_dir": Path,
    "gpus": str,
    "max_running": _integer,
    "max_queued": _integer,
    "max_request_bytes": _integer,
    "output_root": Path,
    "output_mode": _octal_number,
    "output_group": str,
    "reservation_seconds": _number,
    "grace_seconds": _number,
    "stop_seconds": _number,
    "drain": _boolean,
    "drain_seconds": _number,
    "retention_max_age_seconds": _number,
    "retention_max_jobs": _integer,
    "journal_max_events": _integer,
    "journal_max_age_seconds": _number,
    "unknown_tasks": str,
    "log_format": str,
    "harnesses": dict,
}


def _convert(name: str, value: Any) -> Any:
    try:
        return _CONVERTERS[name](value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"setting {name}: {value!r} is no {_name_of(_CONVERTERS[name])}") from error


def _name_of(converter: Callable[[Any], Any]) -> str:
    return converter.__name__.strip("_").replace("_", " ")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config file {path}: {error}") from error
    unknown = set(values) - set(_CONVERTERS)
    if unknown:
        known = ", ".join(sorted(_CONVERTERS))
        raise ConfigurationError(f"config file {path}: unknown setting {min(unknown)}; there are: {known}")
    for name in ("data_dir", "output_root"):
        if name in values:
            values[name] = _absolute(path.parent / str(values[name]))
    tables = values.get("harnesses", {})
    _require(isinstance(tables, dict), "harnesses", "must be tables such as [harnesses.lmms-eval]")
    values["harnesses"] = {name: _harness(name, table, path.parent) for name, table in tables.items()} or Settings().harnesses
    return values


def _harness(name: str, table: Any, base: Path) -> HarnessSettings:
    where = f"harnesses.{name}"
    _require(bool(_HARNESS_NAME.fullmatch(name)), where, "a name has small letters, digits, `.`, `_` and `-`")
    _require(isinstance(table, dict), where, "must be a table")
    known = {f.name for f in fields(HarnessSettings)} - {"name"}
    for key in table:
        _require(key in known, f"{where}.{key}", f"is unknown; there are: {', '.join(sorted(known))}")
    env = table.get("env", {})
    _require(
        isinstance(env, dict) and all(_ENVIRONMENT_NAME.fullmatch(k) and isinstance(v, str) for k, v in env.items()),
        f"{where}.env",
        "must be a table of strings by variable name",
    )
    for key in ("kind", "python", "working_dir"):
        _require(isinstance(table.get(key, ""), str), f"{where}.{key}", "must be a string")
    values: dict[str, Any] = {
        "kind": table.get("kind", name),
        "env": env,
        "working_dir": _absolute(base / table.get("working_dir", "")),
    }
    if "python" in table:
        values["python"] = _interpreter(table["python"], base)
    for key in ("command", "args", "include_path"):
        if key in table:
            items = table[key]
            _require(
                isinstance(items, list) and all(isinstance(item, str) for item in items),
                f"{where}.{key}",
                "must be a list of strings",
            )
            values[key] = tuple(items)
    values["include_path"] = tuple(_absolute(base / folder) for folder in values.get("include_path", ()))
    if values["kind"] == "command":
        _require(bool(values.get("command")), f"{where}.command", "is needed for the kind `command`")
    return HarnessSettings(name=name, **values)


def _interpreter(python: str, base: Path) -> Path:
    """Leave a bare name to PATH; resolve others against the file's folder, but keep links: a venv's python is one."""
    if "/" not in python:
        return Path(python)
    return _absolute(base / python)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise ConfigurationError(f"setting {name}: {rule}")
