"""The way from a command to the server, and from an error to a readable line and an exit code."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

import click

from evalrpc.client import EvalClient
from evalrpc.errors import EvalrpcError, InvalidRequestError, UnavailableError

JOB_NOT_COMPLETED: Final = 1
WRONG_CALL: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

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


@contextmanager
def reported(address: str = "") -> Iterator[None]:
    """Turn every error that is to be expected into a line on stderr and an exit code."""
    try:
        yield
    except (UnavailableError, TimeoutError) as error:
        fail(UNREACHABLE, f"can't reach the server at {address}: {error}")
    except InvalidRequestError as error:
        fail(WRONG_CALL, *(_violation_lines(error) or [error.message]))
    except EvalrpcError as error:
        fail(WRONG_CALL, error.message)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(WRONG_CALL, f"{error.filename or 'error'}: {error.strerror}")
    except KeyboardInterrupt:
        fail(INTERRUPTED)


def fail(exit_code: int, *lines: str) -> NoReturn:
    """Print lines on stderr and leave with this exit code."""
    for line in lines:
        click.echo(f"evalrpc: {line}", err=True)
    raise click.exceptions.Exit(exit_code)


def _or_group_address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    del parameter
    return value or context.find_object(str)


def _violation_lines(error: InvalidRequestError) -> list[str]:
    context = click.get_current_context(silent=True)
    parameters = context.command.params if context else []
    flags = {p.name or "": p.opts[0] if isinstance(p, click.Option) else p.human_readable_name for p in parameters}
    return [_violation_line(field, description, flags) for field, description in error.violations]


def _violation_line(field: str, description: str, flags: dict[str, str]) -> str:
    """Put the flag that sets the field before the field's path, where the command has one."""
    name = field.removeprefix("request.").partition("[")[0].partition(".")[0]
    return f"{flags[name]} ({field}): {description}" if name in flags else f"{field}: {description}"
