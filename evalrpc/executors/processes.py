"""Finding processes by the job that they carry in their environment, and ending them. Linux only: it reads /proc."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from evalrpc.executors.environment import JOB_ID_VARIABLE


def processes_of_job(job_id: str, session: int | None = None, since_ticks: int = 0) -> list[int]:
    """Return the ids of all living processes that carry the job's id, or that belong to the session.

    Both are needed: a worker may leave the session, and one that sets its own title overwrites its environment. Name a session
    only while its number can't have passed to another one. Processes that started before `since_ticks`, in the kernel's ticks
    since boot, are passed over, which saves most of the reading: a process carries what it was given when it started.
    """
    mark = f"{JOB_ID_VARIABLE}={job_id}".encode()
    return [pid for pid in _process_ids() if _lives(pid, session, since_ticks, mark)]


def processes_of_script(path: Path, argument_count: int) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the id, the name and the arguments of all living processes of a script, wherever its package is installed."""
    module = "/".join(path.parts[-3:])
    for pid in _process_ids():
        with suppress(OSError):
            command = _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]
            *_, script = command[:-argument_count] or [""]
            if script.endswith(module):
                yield pid, _read(pid, "comm").decode().strip(), command[-argument_count:]


def send_signal(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that still exist and may be signalled."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _process_ids() -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path per process would double the time
        if name.isdigit() and int(name) != own:
            yield int(name)


def _lives(pid: int, session: int | None, since_ticks: int, mark: bytes) -> bool:
    """Tell whether this is a process of the run, and no zombie."""
    try:
        fields = _read(pid, "stat").rpartition(b")")[2].split(maxsplit=20)
        if fields[0] in b"ZX" or int(fields[19]) < since_ticks:
            return False
        return int(fields[3]) == session or mark in _read(pid, "environ").split(b"\0")
    except OSError:  # it ended meanwhile, or is another user's
        return False


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - see above
        return file.read()
