"""The exit codes, and the errors that lead to them."""

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, NoReturn, Self

import click

from evalrpc.cli.output import print_line
from evalrpc.errors import (
    ConfigurationError,
    EvalrpcError,
    FieldsError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)


class ExitCode(IntEnum):
    """What a script may depend on. Each has a text for the help."""

    DONE = 0, "done"
    NOT_PASSED = (
        1,
        "a job failed or was cancelled, a gate did not pass, a suite is not GO, a check failed, a backup lacks files",
    )
    WRONG_CALL = 2, "the call was wrong, or the server refused it"
    UNREACHABLE = 3, "the server can't be reached, or can't answer now"
    NOT_ALLOWED = 4, "not signed in, or not allowed"
    TIMED_OUT = 124, "the time to wait is over"
    INTERRUPTED = 130, "Ctrl-C"

    text: str

    def __new__(cls, code: int, text: str) -> Self:
        """Make a member: an int with a text."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.text = text
        return member


_OUTER: Final = re.compile(r"^(?:request|filter|trends)\.")
"""What a field of a command's call is within."""
_SETTING: Final = re.compile(r"setting (\w+)(?=:)")

_PARAMETERS: Final = {
    "served_model.engine": "engine",
    "served_model.args": "engine_args",
    "served_model.revision": "served_revision",
    "served_model.num_gpus": "engine_gpus",
    "served_model.max_replicas": "engine_replicas",
    "judge_model.engine": "judge_engine",
    "judge_model.args": "judge_args",
    "judge_model.revision": "judge_revision",
    "judge_model.num_gpus": "judge_gpus",
    "judge_model.max_replicas": "judge_replicas",
    "harness_requests": "harness_models",
    "baseline_suite_run_id": "baseline",
    "min_value": "least",
    "max_value": "most",
    "sample_ids": "ids",
    "label_selector": "selectors",
    "created_after": "since",
    "created_before": "until",
    "run_label": "by",
}
"""The parameters of commands that set these fields, where they are called otherwise."""

_BY_ERROR: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (UnavailableError, ExitCode.UNREACHABLE),
    (TimeoutError, ExitCode.UNREACHABLE),
    (UnauthenticatedError, ExitCode.NOT_ALLOWED),
    (PermissionDeniedError, ExitCode.NOT_ALLOWED),
    (EvalrpcError, ExitCode.WRONG_CALL),
    (OSError, ExitCode.WRONG_CALL),
)
"""The first class that an error belongs to counts."""


@contextmanager
def reported(address: str = "") -> Iterator[None]:
    """Turn every expected error into lines on stderr and an exit code."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (EvalrpcError, OSError) as error:
        fail(_exit_code(error), *_lines(error, address))
    except KeyboardInterrupt:
        fail(ExitCode.INTERRUPTED)


def fail(exit_code: ExitCode, *lines: str) -> NoReturn:
    """Print lines on stderr and exit with this code."""
    for line in lines:
        print_line(f"evalrpc: {line}", err=True)
    raise click.exceptions.Exit(exit_code)


def _exit_code(error: Exception) -> ExitCode:
    return next(code for kind, code in _BY_ERROR if isinstance(error, kind))


def _lines(error: Exception, address: str) -> list[str]:
    match error:
        case FieldsError():
            return _violation_lines(error) or [error.message]
        case UnavailableError() if error.reason != UnavailableError.reason:  # the server itself said so
            return [f"the server at {address} can't do this now: {error.message}"]
        case UnavailableError() | TimeoutError():
            return [f"can't reach the server at {address}: {error}", *_proxy_lines(address)]
        case UnauthenticatedError():
            return [f"not signed in to the server at {address}: {error.message}; `evalrpc login` signs in"]
        case PermissionDeniedError():
            return [f"not allowed by the server at {address}: {error.message}"]
        case ConfigurationError():
            return [with_flag(error.message)]
        case EvalrpcError():
            return [error.message]
        case OSError():
            return [f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)]
    return [str(error)]


def _proxy_lines(address: str) -> Iterator[str]:
    """Say that a proxy stands between: it may be what does not answer."""
    from evalrpc.client.addresses import proxy_variable  # with gRPC, which a failed call has loaded

    if variable := proxy_variable(address):
        yield f"the variable {variable} has the way lead through a proxy; name the host in no_proxy to go there directly"


def with_flag(message: str) -> str:
    """Name, beside the setting that a message begins with, its flag, if the command has one and the message does not say where
    the setting comes from."""
    named, context = _SETTING.match(message), click.get_current_context(silent=True)
    if named is None or context is None or "(from " in message:
        return message
    flag = next((parameter.opts[0] for parameter in context.command.params if parameter.name == named[1]), "")
    return f"{named[0]} ({flag}){message[named.end() :]}" if flag else message


def require_linux() -> None:
    """Exit with a sentence where no server can run."""
    if platform.system() != "Linux":
        system = platform.system() or "another system"
        fail(ExitCode.WRONG_CALL, f"the server needs Linux, and this is {system}; the other commands work here, with --address")


def require_folder(data_dir: Path) -> None:
    """Exit with 2 unless there is such a folder: a server that was never there has nothing to show."""
    if not data_dir.is_dir():
        fail(ExitCode.WRONG_CALL, f"there is no folder {data_dir}: --data-dir names that of the server")


def _violation_lines(error: FieldsError) -> list[str]:
    context = click.get_current_context(silent=True)
    parameters = context.command.params if context else []
    flags = {p.name or "": p.opts[0] if isinstance(p, click.Option) else p.human_readable_name for p in parameters}
    return [_violation_line(field, description, flags) for field, description in error.violations]


def _violation_line(field: str, description: str, flags: dict[str, str]) -> str:
    """Prefix the field's path with the flag that sets it, if the command has one."""
    path = _OUTER.sub("", field).partition("[")[0]
    names = (_PARAMETERS.get(".".join(path.split(".")[:2]), ""), _PARAMETERS.get(path, ""), path.partition(".")[0], path + "s")
    flag = next((flags[name] for name in names if name in flags), "")
    return f"{flag} ({field}): {description}" if flag else f"{field}: {description}"
