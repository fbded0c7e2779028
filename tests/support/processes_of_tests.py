"""Find and kill the processes that a test has started."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from glob import glob
from pathlib import Path

from waiting import eventually

from evalrpc.executors.local.environment import JOB_ID_VARIABLE
from evalrpc.executors.local.leftovers import is_living
from evalrpc.executors.local.processes import GONE_OR_FOREIGN, name_of, parent_of, process_ids, processes_of_job
from evalrpc.executors.local.shim import PID_FILE
from evalrpc.files.opening import open_in
from evalrpc.scheduling.limited_process import PROCESS_NAME

PROC = Path("/proc")


def processes_with(mark: bytes) -> list[int]:
    """Return the living processes that have this in their environment."""
    return [int(folder.name) for folder in PROC.iterdir() if folder.name.isdigit() and _has(folder, mark)]


def _has(folder: Path, mark: bytes) -> bool:
    try:
        return mark in (folder / "environ").read_bytes()
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def shims_of_runs(data_dir: Path, job_id: str = "*") -> list[int]:
    """Return the living shims of a job's runs, or of all runs; they don't carry the job's id themselves."""
    patterns = (f"jobs/{job_id}/attempt-*/{run}" for run in ("run", "preparation/run"))
    # Path.glob would fail for what a server removes meanwhile.
    folders = [found for pattern in patterns for found in glob(pattern, root_dir=data_dir)]  # noqa: PTH207
    recorded = filter(None, (read_pid(data_dir / found) for found in folders))
    return [pid for pid, start_time in recorded if is_living(pid, start_time) and is_alive(pid)]


def read_pid(folder: Path) -> tuple[int, str] | None:
    """Return what a shim has left in `pid`: its process id, and when it started."""
    try:
        with open_in(folder, PID_FILE) as file:
            pid, start_time = file.read().decode().split()
        return int(pid), start_time
    except (OSError, ValueError):
        return None


def kill_all(find: Callable[[], list[int]]) -> None:
    """Kill what `find` returns until nothing is left."""

    def gone() -> bool:
        left = [pid for pid in find() if is_alive(pid)]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not left

    eventually(gone, "for processes to die")


def kill_job(job_id: str) -> None:
    kill_all(lambda: processes_of_job(job_id))


def kill_runs_with(mark: str) -> None:
    """Kill every run of a job that has the mark in its environment, and nothing else."""
    job = f"{JOB_ID_VARIABLE}=".encode()
    kill_all(lambda: [pid for pid in processes_with(mark.encode()) if _has(PROC / str(pid), job)])


def readers_of(server: int) -> list[int]:
    """Return the ids of the processes in which a server reads."""
    readers = []
    for pid in process_ids():
        with suppress(*GONE_OR_FOREIGN):
            if parent_of(pid) == server and name_of(pid) == PROCESS_NAME:
                readers.append(pid)
    return readers
