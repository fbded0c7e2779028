"""Reads the value of a secret where the operator keeps it. Blocks: a file may be on a network, a command may take seconds.

No error says more than what kind of source it is: an operator may have written a value where its place belongs.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from evalrpc.config import SecretSettings
from evalrpc.files.regular import open_named_file

MAX_BYTES: Final = 64 * 1024
"""The longest value. Linux hands no more than 128 KiB to a program in one variable."""

COMMAND_SECONDS: Final = 10.0
"""How long a command may take."""


class UnreadableError(Exception):
    """The value can't be read. The message says why, without the value."""


def read_value(source: SecretSettings, environment: Mapping[str, str], command_seconds: float = COMMAND_SECONDS) -> str:
    """Return the value of a secret, without the line break at its end. Raises UnreadableError."""
    try:
        value = _read(source, environment, command_seconds).decode()
    except OSError as error:
        raise UnreadableError(f"its {_kind(source)} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnreadableError(f"its {_kind(source)} has something else than UTF-8 text") from None
    value = value.removesuffix("\n").removesuffix("\r")
    if problem := _problem(value):
        raise UnreadableError(f"its {_kind(source)} {problem}")
    return value


def _read(source: SecretSettings, environment: Mapping[str, str], command_seconds: float) -> bytes:
    if source.file is not None:
        with open_named_file(source.file) as file:
            return file.read(MAX_BYTES + 1)
    if source.variable is not None:
        if source.variable not in environment:
            raise UnreadableError("its variable is not set for the server")
        return os.fsencode(environment[source.variable])
    return _output(source.command or (), environment, command_seconds)


def _output(command: tuple[str, ...], environment: Mapping[str, str], seconds: float) -> bytes:
    """Return what a command prints. Its errors go nowhere, since they may quote the value. Raises OSError, UnreadableError."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        is_late = threading.Event()
        timer = threading.Timer(seconds, _kill_late, [process, is_late])
        timer.start()
        try:
            printed = process.stdout.read(MAX_BYTES + 1) if process.stdout is not None else b""
            if len(printed) <= MAX_BYTES:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            timer.cancel()
            timer.join()
            _kill(process)
    if is_late.is_set():
        raise UnreadableError(f"its command takes longer than {seconds:g} seconds")
    if process.returncode and len(printed) <= MAX_BYTES:
        raise UnreadableError(f"its command ended with {process.returncode}")
    return printed


def _kill_late(process: "subprocess.Popen[bytes]", is_late: threading.Event) -> None:
    is_late.set()
    _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command, which is not reaped yet, with all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _problem(value: str) -> str:
    if not value:
        return "is empty"
    if len(value.encode()) > MAX_BYTES:
        return f"has more than {MAX_BYTES // 1024} KiB"
    return "has a NUL, which no variable can hold" if "\0" in value else ""


def _kind(source: SecretSettings) -> str:
    return "file" if source.file is not None else "variable" if source.variable is not None else "command"
