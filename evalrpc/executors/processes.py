"""Finding processes by the job that they carry in their environment, and ending them. Linux only: it reads /proc."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from evalrpc.executors.environment import JOB_ID_VARIABLE

_PROC: Final = Path("/proc")


def processes_of_job(job_id: str, session: int | None = None) -> list[int]:
    """Return the ids of all living processes that carry the job's id, or that belong to the session.

    Both are needed: a worker may leave the session, and one that sets its own title overwrites its environment. Name a session
    only while its number can't have passed to another one.
    """
    mark = f"{JOB_ID_VARIABLE}={job_id}".encode()
    return [pid for pid in _process_ids() if _lives(pid, session, mark)]


def processes_of_script(path: Path, argument_count: int) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the id, the name and the arguments of all living processes of a script, wherever its package is installed."""
    module = "/".join(path.parts[-3:])
    for pid in _process_ids():
        with suppress(OSError):
            command = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            *_, script = command[:-argument_count] or [""]
            if script.endswith(module):
                yield pid, (_PROC / str(pid) / "comm").read_text().strip(), command[-argument_count:]


def send_signal(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that still exist and may be signalled."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _process_ids() -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir(_PROC):  # noqa: PTH208 - a Path per process would double the time
        if name.isdigit() and int(name) != own:
            yield int(name)


def _lives(pid: int, session: int | None, mark: bytes) -> bool:
    """Tell whether this is a process of the run, and no zombie."""
    try:
        state, _, _, its_session = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split(maxsplit=4)[:4]
        if state in b"ZX":
            return False
        return int(its_session) == session or mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile, or is another user's
        return False
