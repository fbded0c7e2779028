"""What a person may have meant by a word that is none. Imports nothing that is slow."""

import difflib
from collections.abc import Iterable
from typing import Final

import click

_MAX_SUGGESTIONS: Final = 3
_LEAST_SIMILARITY: Final = 0.65


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of a sentence about a word that is none of the names: a question with the nearest ones, or a full stop."""
    nearest = difflib.get_close_matches(word, names, n=_MAX_SUGGESTIONS, cutoff=_LEAST_SIMILARITY)
    return f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else "."


class SuggestingGroup(click.Group):
    """A group of commands that suggests the nearest ones for one that it does not have."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with. Raises click.UsageError."""
        name = args[0]
        if not (ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name)):
            ctx.fail(f"No such command {name!r}{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)
