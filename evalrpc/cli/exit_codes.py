"""Maps an error to a readable line and an exit code."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import click

from evalrpc.errors import EvalrpcError, InvalidRequestError, UnavailableError

JOB_NOT_COMPLETED: Final = 1
WRONG_CALL: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130


@contextmanager
def reported(address: str = "") -> Iterator[None]:
    """Turn every expected error into lines on stderr and an exit code."""
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
    """Print lines on stderr and exit with this code."""
    for line in lines:
        click.echo(f"evalrpc: {line}", err=True)
    raise click.exceptions.Exit(exit_code)


def require_linux() -> None:
    """Exit with a sentence where no server can run."""
    if platform.system() != "Linux":
        system = platform.system() or "another system"
        fail(WRONG_CALL, f"the server needs Linux, and this is {system}; the other commands work here, with --address")


def _violation_lines(error: InvalidRequestError) -> list[str]:
    context = click.get_current_context(silent=True)
    parameters = context.command.params if context else []
    flags = {p.name or "": p.opts[0] if isinstance(p, click.Option) else p.human_readable_name for p in parameters}
    return [_violation_line(field, description, flags) for field, description in error.violations]


def _violation_line(field: str, description: str, flags: dict[str, str]) -> str:
    """Prefix the field's path with the flag that sets it, if the command has one."""
    name = field.removeprefix("request.").partition("[")[0].partition(".")[0]
    return f"{flags[name]} ({field}): {description}" if name in flags else f"{field}: {description}"
