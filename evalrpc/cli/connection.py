"""The way from a command to the server."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from evalrpc.cli.exit_codes import reported
from evalrpc.client import EvalClient

PATIENT_SECONDS: Final = 600.0
"""For calls that may take long the first time: a harness is asked what it knows, large files are summed up."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def client_options(function: FunctionT) -> FunctionT:
    """Add what every command that asks a server has: `--json`, and `--address` behind the command's name as well."""
    function = click.option("--json", "as_json", is_flag=True, help="Print protobuf JSON.")(function)
    return click.option("--address", metavar="HOST:PORT", callback=_or_group_address, help="The server.")(function)


@contextmanager
def connect(address: str | None, timeout_seconds: float = 30.0) -> Iterator[EvalClient]:
    """Give a client whose single calls are bounded by the timeout, and report what goes wrong with it."""
    try:
        with EvalClient(address, timeout_seconds=timeout_seconds) as client, reported(client.address):
            yield client
    finally:
        # Collected only while the interpreter ends, a call of gRPC waits for a lock of a thread that is no more, and hangs.
        gc.collect()


def _or_group_address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    del parameter
    return value or context.find_object(str)
