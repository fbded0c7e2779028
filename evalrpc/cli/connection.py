"""How a command connects to the server."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from evalrpc.cli.exit_codes import WRONG_CALL, fail, reported
from evalrpc.client import EvalClient

SLOW_CALL_SECONDS: Final = 600.0
"""For calls that may be slow the first time: a harness lists its catalog, large files are checksummed."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def client_options(function: FunctionT) -> FunctionT:
    """Add the options of every client command: `--json`, and `--address`, so that it may also follow the command's name."""
    function = click.option("--json", "as_json", is_flag=True, help="Print protobuf JSON.")(function)
    return click.option("--address", metavar="HOST:PORT", callback=_or_group_address, help="The server.")(function)


@contextmanager
def connect(address: str | None, timeout_seconds: float = 30.0) -> Iterator[EvalClient]:
    """Yield a client with this timeout for unary calls, and report its errors, and an address that makes no sense."""
    try:
        with _client(address, timeout_seconds) as client, reported(client.address):
            yield client
    finally:
        # A gRPC call that is collected only at interpreter exit waits for the lock of a dead thread, and hangs.
        gc.collect()


def _client(address: str | None, timeout_seconds: float) -> EvalClient:
    try:
        return EvalClient(address, timeout_seconds=timeout_seconds)
    except ValueError as error:
        fail(WRONG_CALL, str(error))


def _or_group_address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    del parameter
    return value or context.find_object(str)
