"""The keys of a `[secrets.NAME]` table, each declared once: where the value of a secret is, and who may use it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evalrpc.config.declaration import FILE, STRING, STRINGS, Rule, setting

EVERYBODY: Final = "*"
"""Stands among the owners for whoever may submit, signed in or not."""

SOURCES: Final = ("file", "variable", "command")
"""The keys of which a table has exactly one."""

_NOT_EMPTY: Final = Rule("not be empty", bool)


@dataclass(frozen=True)
class SecretSettings:
    """One `[secrets.NAME]` table. NAME is the environment variable that the value becomes in the runs that name it."""

    owners: tuple[str, ...] = setting(
        (),
        STRINGS,
        'Whose jobs may use it: owners as they are signed in. `["*"]`: those of everybody, signed in or not. Required.',
        rule=_NOT_EMPTY,
        default_text="none: it is required",
    )
    file: Path | None = setting(
        None, FILE, "The file that holds the value. A line break at its end is not part of it.", default_text="none"
    )
    variable: str | None = setting(
        None, STRING, "The environment variable of the server that holds the value.", rule=_NOT_EMPTY, default_text="none"
    )
    command: tuple[str, ...] | None = setting(
        None,
        STRINGS,
        "The program, with its arguments, that prints the value, without a shell, within 10 seconds. It has the server's "
        "environment.",
        rule=_NOT_EMPTY,
        default_text="none",
    )


def may_use(secret: SecretSettings, owner: str) -> bool:
    """Tell whether jobs of this owner may use a secret. Empty: of nobody who was signed in."""
    return EVERYBODY in secret.owners or (owner != "" and owner in secret.owners)
