"""`evalrpc whoami`."""

from collections.abc import Iterable

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import connect, table_options
from evalrpc.cli.output import Form, print_facts
from evalrpc.cli.tables import Cell
from evalrpc.v1.callers_pb2 import CallerRole, GetCallerResponse, SignInMethod


@click.command(short_help="Show who you are to the server.")
@table_options
def whoami_command(address: str | None, form: Form) -> None:
    """Show who you are to the server, what you may do there, and how it knows. Exits with 4 if it lets you make no call."""
    with connect(address) as client:
        caller = client.get_caller()
    print_facts(form, _facts(caller), caller)


def _facts(caller: GetCallerResponse) -> list[tuple[str, Cell]]:
    facts = [
        ("owner", caller.owner or "nobody: anonymous"),
        ("role", _name(CallerRole.items(), caller.role, "CALLER_ROLE_")),
        ("signed in by", _name(SignInMethod.items(), caller.sign_in_method, "SIGN_IN_METHOD_")),
        ("expires", wording.time_text(caller.expires_at)),
    ]
    return [(name, value) for name, value in facts if value]


def _name(names: Iterable[tuple[str, int]], value: int, prefix: str) -> str:
    """Return the name of a value of an enum in small letters, without the prefix; the number for one of a newer server."""
    return next((name.removeprefix(prefix).lower() for name, known in names if known == value), str(value))
