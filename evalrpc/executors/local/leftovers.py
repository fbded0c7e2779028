"""Whether a run has begun, and what is left of it: by its traces, its shim, its cgroup, and a search through all processes."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.executors.base import RunKey
from evalrpc.executors.local import shim, warm_parent
from evalrpc.executors.local.cgroups import RunCgroup
from evalrpc.executors.local.processes import ScriptProcess, processes_of_job, processes_of_script, send_signal
from evalrpc.executors.local.shims import find_shim
from evalrpc.executors.local.traces import has_output, has_pid, traces_dir, uid_of_shim
from evalrpc.files.errnos import require_no_shortage

LOOK_SECONDS: Final = 0.02
"""How long to wait before processes are looked for again."""
_START_SECONDS: Final = 30.0


class Left(NamedTuple):
    """Processes that are left of a run."""

    pids: frozenset[int]
    has_others: bool
    """Whether there are some that this process can't see, in another namespace."""

    def __bool__(self) -> bool:
        return bool(self.pids) or self.has_others


class Leftovers:
    """Finds and kills what is left of a run: the processes in its cgroup, if it has one, and those that a search finds. Both
    are needed, since a process that may write to cgroups can leave its own. Every method raises OSError."""

    def __init__(self, key: RunKey, shim_pid: int | None, cgroup: RunCgroup | None) -> None:
        self.shim: Final = shim_pid
        self.cgroup: Final = cgroup
        self._job_id = key.job_id
        self._uids = _uids(key)
        self._since_ticks = _started_ticks(shim_pid)

    def look(self) -> Left:
        """Return what is left."""
        found = processes_of_job(self._job_id, self.shim, self._since_ticks, self._uids)
        if self.cgroup is None:
            return Left(frozenset(found), has_others=False)
        return Left(frozenset([*found, *self.cgroup.processes()]), self.cgroup.is_populated())

    def kill(self) -> None:
        """Kill it, without waiting for the end."""
        if self.cgroup is not None:
            self.cgroup.kill()
        send_signal(self.look().pids, signal.SIGKILL)

    def clean_up(self) -> None:
        """Remove the cgroup, once nothing is left."""
        if self.cgroup is not None:
            with suppress(OSError):  # a later server may find it, empty
                self.cgroup.remove()


def traces_of(key: RunKey) -> Path:
    """Return the folder of a run's traces."""
    return traces_dir(key.attempt_dir)


def shim_of(key: RunKey) -> int | None:
    """Return the process id of the shim of a run, if that is alive. Raises OSError."""
    return find_shim(key.job_id, key.attempt, uid_of_shim(traces_of(key)))


def _uids(key: RunKey) -> tuple[int, ...]:
    """Return the accounts that processes of a run can have. None: those of any account count, which carry its id. Raises
    OSError."""
    if key.account is None:
        return ()
    uid = uid_of_shim(traces_of(key))
    return (key.account.uid, os.geteuid()) if uid is None else (key.account.uid, uid)


def _started_ticks(pid: int | None) -> int:
    """Return when a process started, in kernel ticks; 0 if it is gone: then any process may belong to its run."""
    try:
        return int(shim.start_time(pid)) if pid is not None else 0
    except OSError as error:
        require_no_shortage(error)
        return 0


def has_begun(key: RunKey) -> bool:
    """Tell whether a run has, or had, a shim. If not, it never will. Raises OSError."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        # The fork server may have died just before the shim wrote the file. So look at the processes before the file: one that
        # is no longer about to write it has written it. A scan can miss a process that is forked during it, so it takes two.
        uid = uid_of_shim(traces_of(key))
        about_to_begin = processes_of_job(key.job_id, uids=_uids(key)) or _about_to_begin(uid) or _about_to_begin(uid)
        if _has_left_traces(key):
            break
        if not about_to_begin:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _has_left_traces(key: RunKey) -> bool:
    """Tell whether there is anything of a run, which may have removed some of it."""
    traces = traces_of(key)
    has_log = uid_of_shim(traces) is not None
    return has_pid(traces) or has_output(traces, key.log_path, has_log=has_log) or shim_of(key) is not None


def _about_to_begin(uid: int | None) -> list[int]:
    """Return processes that may yet begin a run: shims just forked, and fork servers and parents whose server has ended. `uid`:
    the account of parents, if it is another one."""
    fork_servers = [each for each in processes_of_script(Path(shim.__file__), 2) if each.name != shim.RUN_NAME]
    # A run that was forked by a parent still looks like the parent, but for its name.
    parents = [each for each in processes_of_script(Path(warm_parent.__file__), 2, uid) if each.name == shim.FORK_SERVER_NAME]
    return [process.pid for process in (*fork_servers, *parents) if not _is_fork_server_at_work(process)]


def _is_fork_server_at_work(process: ScriptProcess) -> bool:
    server, start_time = process.arguments
    return process.parent == int(server) and is_living(int(server), start_time)


def is_living(pid: int, start_time: str) -> bool:
    """Tell whether the process still runs, and its id was not reused. Raises OSError if that can't be determined."""
    try:
        return shim.start_time(pid) == start_time
    except OSError as error:
        require_no_shortage(error)
        return False
