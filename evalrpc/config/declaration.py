"""What a setting declares beside its name, type and default: how it is written, what it may be, and what it does."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from evalrpc.errors import ConfigurationError

ENVIRONMENT_PREFIX: Final = "EVALRPC_"

_METADATA_KEY: Final = "evalrpc"
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


class Kind(NamedTuple):
    """How values of one type are written."""

    description: str
    """Completes `must be ...`."""
    metavar: str
    """Stands for a value in the help of flags."""
    parse: Callable[[Any, Path], Any]
    """Returns the value of what a flag, a variable or the file says. Relative paths start at the given folder. Raises TypeError
    or ValueError."""
    show: Callable[[Any], str] = str
    """Writes a value as a source may say it."""
    is_repeatable: bool = False
    """Whether the flag may be given several times; `parse` then takes a tuple, too."""


class Rule(NamedTuple):
    """What the values of one setting have to fulfil."""

    description: str
    """Completes `must ...`."""
    holds: Callable[[Any], bool]
    metavar: str = ""
    """Replaces that of the kind, unless empty."""


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting, or of one key of a table."""

    kind: Kind
    description: str
    unit: str = ""
    rule: Rule | None = None
    default_text: str = ""
    """The default for people. `settings_of` fills it in, as the name."""
    name: str = ""

    @property
    def flag(self) -> str:
        """The flag of `evalrpc serve`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"{ENVIRONMENT_PREFIX}{self.name.upper()}"

    @property
    def metavar(self) -> str:
        """Stands for a value in the help of the flag."""
        return (self.rule and self.rule.metavar) or self.unit.upper() or self.kind.metavar

    def read(self, value: Any, folder: Path, source: str = "") -> Any:
        """Return the checked value of what a source says. Raises ConfigurationError, naming the setting and the source."""
        try:
            parsed = self.kind.parse(value, folder)
        except (TypeError, ValueError) as error:
            is_shown = isinstance(value, str | int | float) and not self.name.startswith(
                "secrets."
            )  # tables may hold secrets, too
            found = f", not {value!r}" if is_shown else ""
            raise self._refusal(f"be {self.kind.description}{found}", source) from error
        except ConfigurationError as error:  # of a key in a table
            raise ConfigurationError(f"{error.message} (from {source})") from error
        self.check(parsed, source)
        return parsed

    def check(self, value: Any, source: str = "") -> None:
        """Raise ConfigurationError if the rule does not hold for a value. None, which is unset, keeps every rule."""
        if self.rule and value is not None and not self.rule.holds(value):
            raise self._refusal(self.rule.description, source)

    def _refusal(self, rule: str, source: str) -> ConfigurationError:
        return ConfigurationError(f"setting {self.name}: must {rule}{f' (from {source})' if source else ''}")


def setting(default: T, kind: Kind, description: str, *, unit: str = "", rule: Rule | None = None, default_text: str = "") -> T:
    """Return a dataclass field that is a setting. `default_text` stands for the default in texts."""
    return field(default=default, metadata=metadata(kind, description, unit=unit, rule=rule, default_text=default_text))


def metadata(
    kind: Kind, description: str, *, unit: str = "", rule: Rule | None = None, default_text: str = ""
) -> dict[str, Setting]:
    """Return the metadata of a dataclass field that is a setting. `default_text` stands for the default in texts."""
    return {_METADATA_KEY: Setting(kind, description, unit, rule, default_text)}


def settings_of(declaring: type, prefix: str = "") -> dict[str, Setting]:
    """Return the settings that a dataclass declares, by field. Their names, as errors give them, begin with the prefix."""
    return {f.name: _completed(f, prefix) for f in fields(declaring) if _METADATA_KEY in f.metadata}


def _completed(of: "Field[Any]", prefix: str) -> Setting:
    declared: Setting = of.metadata[_METADATA_KEY]
    default_text = declared.default_text or f"`{declared.kind.show(of.default)}` {declared.unit}".rstrip()
    return replace(declared, name=prefix + of.name, default_text=default_text)


def at_least(minimum: int) -> Rule:
    """Allow this number and more."""
    return Rule(f"be at least {minimum}", lambda value: bool(value >= minimum))


def between(minimum: int, maximum: int) -> Rule:
    """Allow these numbers and those between them."""
    return Rule(f"be from {minimum} to {maximum}", lambda value: bool(minimum <= value <= maximum))


POSITIVE: Final = Rule("be finite and above 0", lambda number: 0 < number < float("inf"))

RUN_MEMORY: Final = between(0, 2**60)
"""Of the bytes that a run may have."""

RUN_PROCESSES: Final = between(0, 4_000_000)
"""Of the processes that a run may have: the kernel has somewhat more numbers for them."""


def replacing(name: str, whose: str, unit: str, rule: Rule) -> int | None:
    """Return a dataclass field that replaces the setting of this name for what `whose` names; None: it does not."""
    return setting(
        None, INTEGER, f"Replaces the setting `{name}` for {whose}.", unit=unit, rule=rule, default_text="the setting"
    )


def one_of(*words: str) -> Rule:
    """Allow these words."""
    return Rule(f"be {' or '.join(f'`{word}`' for word in words)}", lambda value: value in words, "|".join(words))


def _integer(value: Any, _: Path) -> int:
    if isinstance(value, bool | float):
        raise TypeError
    return int(value)


def _number(value: Any, _: Path) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _boolean(value: Any, _: Path) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "1", "false", "0"):
        return value in ("true", "1")
    raise ValueError


def _octal_number(value: Any, folder: Path) -> int:
    return _integer(value, folder) if isinstance(value, int) else int(value, 8)  # TOML has numbers such as 0o640


def _string(value: Any, _: Path) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _string_or_integer(value: Any, folder: Path) -> str:
    return value if isinstance(value, str) else str(_integer(value, folder))


def _path(value: Any, folder: Path) -> Path:
    if value == "":  # would be the folder itself
        raise ValueError
    return Path(os.path.abspath(folder / value))


def _program(value: Any, folder: Path) -> Path:
    """Leave a bare name to PATH; resolve others against the folder, but keep links: a venv's python is one."""
    return Path(value) if value and "/" not in value else _path(value, folder)


def _strings(value: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_string(item, folder) for item in value)


def _names(value: Any, folder: Path) -> tuple[str, ...]:
    """Take a list, or text with commas, as flags and variables have it."""
    items = value.split(",") if isinstance(value, str) else value
    return tuple(item.strip() for item in _strings(items, folder) if item.strip())


def _paths(value: Any, folder: Path) -> tuple[Path, ...]:
    return tuple(_path(item, folder) for item in _strings(value, folder))


def _named_paths(value: Any, folder: Path) -> tuple[Path, ...]:
    """Take a list, or text with commas, as flags and variables have it."""
    return tuple(_path(item, folder) for item in _names(value, folder))


def _variables(value: Any, folder: Path) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(map(_VARIABLE_NAME.fullmatch, value)):
        raise TypeError
    return {name: _string(text, folder) for name, text in value.items()}


def _arguments(value: Any, _: Path) -> Mapping[str, Any]:
    """Take what JSON has, too: TOML also has dates, and numbers that are not finite."""
    if not isinstance(value, dict):
        raise TypeError
    json.dumps(value, allow_nan=False)
    return value


INTEGER: Final = Kind("an integer", "N", _integer)
NUMBER: Final = Kind("a number", "N", _number, lambda number: f"{number:.12g}")
BOOLEAN: Final = Kind("true or false", "", _boolean, lambda flag: str(flag).lower())
OCTAL_NUMBER: Final = Kind("an octal number", "MODE", _octal_number, lambda number: f"{number:04o}")
STRING: Final = Kind("a string", "TEXT", _string)
STRING_OR_INTEGER: Final = Kind("a string or an integer", "TEXT", _string_or_integer)
FILE: Final = Kind("a path", "FILE", _path)
FOLDER: Final = Kind("a path", "DIR", _path)
PROGRAM: Final = Kind("a program's path or name", "PROGRAM", _program)
STRINGS: Final = Kind("a list of strings", "", _strings)
NAMES: Final = Kind("a list of names or of globs, in a flag or variable with commas", "A,B", _names, ", ".join)
FOLDERS: Final = Kind("a list of paths", "", _paths)
NAMED_FOLDERS: Final = Kind("a list of paths, in a flag or variable with commas", "DIR,DIR", _named_paths)
ARGUMENTS: Final = Kind("a table of values as JSON has them", "", _arguments)
VARIABLES: Final = Kind("a table of strings by variable name", "", _variables)
