"""Find processes by the job id in their environment, and signal them. Linux only: it reads /proc."""

import os
import signal
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.executors.local.environment import JOB_ID_VARIABLE

GONE_OR_FOREIGN: Final = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Raised on reading a process that has ended or is another user's. Any other error says nothing about the process."""

_MAX_READ_BYTES: Final = 8 * 1024 * 1024
"""Of what /proc has of a process: more than the kernel gives a program as its environment. A process can say later that this
is all of its memory, which it need not even have."""


def processes_of_job(job_id: str, session: int | None = None, since_ticks: int = 0, uids: Collection[int] = ()) -> list[int]:
    """Return the ids of all living processes that carry the job's id or belong to the session, and of their descendants.

    All are needed: a worker may leave the session, and one that sets its own title overwrites its environment. A session is
    given by the process that leads it, with `since_ticks`, when that started (kernel ticks since boot): another process with
    its id leads another session. Processes that started before are skipped, which saves most of the reading: a process gets its
    environment when it starts. With `uids`, the accounts that processes of the job can have, no others count: those can't pass
    for the job's.

    Raises OSError if this process lacks a resource that the scan needs, such as descriptors: then nothing is known.
    """
    mark = f"{JOB_ID_VARIABLE}={job_id}".encode()
    found: set[int] = set()
    members: set[int] = set()
    parents: dict[int, int] = {}
    for pid in process_ids():
        with suppress(*GONE_OR_FOREIGN):
            fields = _stat(pid)[1]
            started_ticks = int(fields[19])
            if pid == session and started_ticks != since_ticks:
                session = None  # its id was reused
            if fields[0] in b"ZX" or started_ticks < since_ticks:
                continue
            parents[pid] = int(fields[1])
            if uids and uid_of(pid) not in uids:
                continue
            if session in (pid, int(fields[3])):
                members.add(pid)
            elif mark in _read(pid, "environ").split(b"\0"):
                found.add(pid)
    if session is not None:
        found |= members
    return [pid for pid in parents if not found.isdisjoint(_line_of(pid, parents))]


def jobs_with_processes() -> set[str]:
    """Return the ids of the jobs that living processes carry. Raises OSError, as `processes_of_job`."""
    prefix = f"{JOB_ID_VARIABLE}=".encode()
    found: set[str] = set()
    for pid in process_ids():
        with suppress(*GONE_OR_FOREIGN):
            marks = [each for each in _read(pid, "environ").split(b"\0") if each.startswith(prefix)]
            found |= {mark.removeprefix(prefix).decode(errors="replace") for mark in marks}
    return found


class ScriptProcess(NamedTuple):
    """A process that runs a script."""

    pid: int
    parent: int
    name: str
    arguments: list[str]


def processes_of_script(path: Path, argument_count: int, uid: int | None = None) -> Iterator[ScriptProcess]:
    """Yield all living processes of an account, or else of this one, that run a script, wherever its package is installed.
    Raises OSError, as `processes_of_job`."""
    module = "/".join(path.parts[-3:])
    for pid in process_ids():
        with suppress(*GONE_OR_FOREIGN):
            command = _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]
            *_, script = command[:-argument_count] or [""]
            if script.endswith(module) and uid_of(pid) == (os.geteuid() if uid is None else uid):
                name, fields = _stat(pid)
                yield ScriptProcess(pid, int(fields[1]), name, command[-argument_count:])


def name_of(pid: int) -> str:
    """Return the name of a process. Raises OSError."""
    return _stat(pid)[0]


def uid_of(pid: int) -> int:
    """Return the effective account of a process. Raises OSError."""
    return os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - thousands of them


def parent_of(pid: int) -> int:
    """Return the id of a process's parent; 0 if it has none here. Raises OSError."""
    return int(_stat(pid)[1][1])


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has. Raises OSError."""
    return int(_read(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to the processes that still exist and may be signalled."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def process_ids() -> Iterator[int]:
    """Yield the ids of all processes but this one. Raises OSError."""
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path per process would double the time
        if name.isdigit() and int(name) != own:
            yield int(name)


def _line_of(pid: int, parents: dict[int, int]) -> Iterator[int]:
    """Yield a process and its known ancestors."""
    line: set[int] = set()
    while pid in parents and pid not in line:  # ids reused between two reads could form a cycle
        line.add(pid)
        yield pid
        pid = parents[pid]


def _stat(pid: int) -> tuple[str, list[bytes]]:
    """Return a process's name and the fields after it in `stat`: state, parent, group, session, and so on."""
    head, _, fields = _read(pid, "stat").rpartition(b")")
    return head.partition(b"(")[2].decode(errors="replace"), fields.split(maxsplit=20)


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - see above
        return file.read(_MAX_READ_BYTES)
