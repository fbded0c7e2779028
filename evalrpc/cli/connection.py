"""How a command connects to the server."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, TypeVar

import click

from evalrpc.cli.credential_flags import credential_flags, given_credentials
from evalrpc.cli.exit_codes import ExitCode, fail, reported
from evalrpc.cli.output import Form
from evalrpc.client import EvalClient

SLOW_CALL_SECONDS: Final = 600.0
"""For calls that may be slow the first time: a harness lists its catalog, large files are checksummed."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

TABLE_FORMS: Final = tuple(form.value for form in Form if form is not Form.TABLE)
_FORM_HELP: Final = "Print all columns uncut (wide), protobuf JSON (json), one line of it per item (jsonl), or CSV (csv)."


def client_options(function: FunctionT) -> FunctionT:
    """Add the options of a client command that prints no table: `--json`, and `--address`, so that it may also follow the
    command's name."""
    function = click.option("--json", "as_json", is_flag=True, help="Print protobuf JSON.")(function)
    return address_option(function)


def table_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a client command that prints a table: `--address`, and the form of the table as `form`."""
    return address_option(form_options(function))


def form_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the form of a table. The command gets it as `form`."""

    @wraps(function)
    def command(*, form: str, **others: Any) -> None:
        function(form=Form(form), **others)

    return named_form_options(TABLE_FORMS, _FORM_HELP)(command)


def named_form_options(names: Sequence[str], help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options for one of these forms, JSON among them. The command gets its name, or that of a table, as `form`."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(*, as_json: bool, form: str | None, **others: Any) -> None:
            if as_json and form not in (None, Form.JSON):
                raise click.UsageError(f"--json means -o json, so it can't be combined with -o {form}")
            function(form=Form.JSON.value if as_json else form or Form.TABLE.value, **others)

        with_json = click.option("--json", "as_json", is_flag=True, help="Print protobuf JSON, as -o json does.")(command)
        return click.option("-o", "--format", "form", type=click.Choice(names), help=help_text)(with_json)

    return add


@contextmanager
def connect(address: str | None, timeout_seconds: float = 30.0, token: str | None = None) -> Iterator[EvalClient]:
    """Yield a client with this timeout for unary calls, and report its errors, and an address or credentials that make no
    sense. The token replaces all that are set elsewhere."""
    try:
        with _client(address, timeout_seconds, token) as client, reported(client.address):
            yield client
    finally:
        # A gRPC call that is collected only at interpreter exit waits for the lock of a dead thread, and hangs.
        gc.collect()


def _client(address: str | None, timeout_seconds: float, token: str | None) -> EvalClient:
    credentials = given_credentials(click.get_current_context())
    try:
        with reported():
            return EvalClient(address, timeout_seconds=timeout_seconds, token=token, **credentials)
    except ValueError as error:
        fail(ExitCode.WRONG_CALL, str(error))


def _or_group_address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    del parameter
    return value or context.find_object(str)


def address_option(function: FunctionT) -> FunctionT:
    """Add `--address`, and the flags of TLS and of signing in, which only the help of `evalrpc` itself shows."""
    return click.option(
        "--address",
        metavar="HOST:PORT",
        callback=_or_group_address,
        help="Use the server at this address. Default: EVALRPC_ADDRESS, else 127.0.0.1:50051.",
    )(credential_flags(hidden=True)(function))
