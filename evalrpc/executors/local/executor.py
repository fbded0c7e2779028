"""Runs commands on this machine, each in a session of its own, writing straight to a log file.

A run's traces on the disk are all that is needed to find it again: its parent (`shim.py`) writes them, in `attempt_dir/run`.
Waiting works on a pidfd, which any process may have of any other, so a run found again is handled just as one that was started.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import shim
from evalrpc.executors.local.environment import build_environment
from evalrpc.executors.local.fork_server import ForkServer
from evalrpc.executors.local.processes import (
    ScriptProcess,
    jobs_with_processes,
    name_of,
    processes_of_job,
    processes_of_script,
    send_signal,
)
from evalrpc.executors.local.traces import Exits, has_output, has_pid, make_room, read_exits, read_pid
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.private import make_private_folder
from evalrpc.harnesses.base import Command, Exit

TRACES_DIR: Final = "run"

_SURVIVOR_CHECK_SECONDS: Final = 0.02
_KILL_SECONDS: Final = 30.0
_START_SECONDS: Final = 30.0
_FORK_SERVERS: Final = 3  # how many may be killed before a run is given up
_PARENT_SECONDS: Final = 5.0  # how long a parent may take to see that none is left


class LocalExecutor:
    """The executor for the GPUs of this machine. `environment` is what runs inherit. May be used from several threads.

    The fork server, which forks the parents of runs, is started by the first run or by `prepare`.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._fork_server: ForkServer | None = None

    def prepare(self) -> None:
        """Start the fork server, unless it is there. Where that fails, the next run will say why."""
        with suppress(OSError):
            self._get_fork_server()

    def make_room(self, key: RunKey, step_count: int) -> None:
        """Make the folder of a run's traces, with room for them. Raises OSError."""
        make_room(_traces_dir(key), step_count)

    def start(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> "LocalRun":
        """Start a run. Raises RunFailedError with reason START_FAILED; what only shows when the program is started, such as a
        program that does not exist, is raised by `exit_status` instead. Raises OSError where this server lacks something at
        present; then `find` tells whether the run has begun all the same."""
        wake = os.eventfd(0)  # first: where no descriptor is left, nothing is started
        try:
            make_private_folder(_traces_dir(key))
            pid, fork_server = self._hand_over(key, self._order(key, command, gpus))
            return LocalRun(key, pid, fork_server, wake)
        except OSError as error:
            os.close(wake)
            require_no_shortage(error)
            raise RunFailedError("START_FAILED", f"the run could not be started: {error}") from error

    def find(self, key: RunKey) -> "LocalRun | None":
        """Find a run that an earlier server started, alive, ended or vanished. None: it never started. Raises OSError."""
        if not _has_begun(key):
            return None
        pid, wake = _living_pid(key), os.eventfd(0)
        try:
            return LocalRun(key, pid, None, wake)
        except OSError:
            os.close(wake)
            raise

    def jobs_with_processes(self) -> set[str]:
        """Return the ids of the jobs of which processes are there, also those of other servers. Raises OSError."""
        return jobs_with_processes()

    def kill_leftovers(self, key: RunKey) -> bool:
        """Kill what is left of a run, without waiting for it. Return whether nothing was. Raises OSError."""
        parent_pid = _living_pid(key)
        # A look can miss a process that is forked meanwhile, so it takes two to believe that none is left.
        survivors = processes_of_job(key.job_id, parent_pid) or processes_of_job(key.job_id, parent_pid)
        send_signal(survivors, signal.SIGKILL)
        return not survivors

    def close(self) -> None:
        """End the fork server; runs go on."""
        with self._lock:
            fork_server = self._fork_server
        if fork_server is not None:
            self._discard(fork_server)

    def _order(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> Mapping[str, Any]:
        return {
            "steps": [command.argv, *command.further_steps],
            "files": {str(path): content for path, content in command.files.items()},
            "env": build_environment(self._environment, command.env, gpus, key.job_id, key.attempt),
            "cwd": str(Path.cwd() / (command.cwd or "")),
            "umask": command.umask,
            "log": str(key.log_path),
            "traces_dir": str(_traces_dir(key)),
        }

    def _hand_over(self, key: RunKey, order: Mapping[str, Any]) -> tuple[int | None, ForkServer | None]:
        """Give the order to the fork server, or to a new one if it is gone. Return the parent that it has forked, unless
        that has ended, and which fork server did, if that is still there. Raises OSError."""
        for _ in range(_FORK_SERVERS):
            fork_server = self._get_fork_server()
            try:
                return fork_server.fork(order), fork_server
            except BrokenPipeError:  # somebody killed it
                self._discard(fork_server)
            if _has_begun(key):  # it had carried out the order before
                return _living_pid(key), None
        raise OSError("the process that starts runs ends by itself")

    def _get_fork_server(self) -> ForkServer:
        with self._lock:
            if self._fork_server is None:
                self._fork_server = ForkServer()
            return self._fork_server

    def _discard(self, fork_server: ForkServer) -> None:
        with self._lock:
            if self._fork_server is fork_server:
                self._fork_server = None
        fork_server.close()


def _traces_dir(key: RunKey) -> Path:
    return key.attempt_dir / TRACES_DIR


def _has_begun(key: RunKey) -> bool:
    """Tell whether there is, or was, a parent of a run. If not, there will be none."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        # What was to fork it may have died just before the parent wrote the file. So the processes come first: one that is not
        # about to write it any more has written it. A look can miss what is forked meanwhile, so it takes two.
        about_to_begin = processes_of_job(key.job_id) or _about_to_begin() or _about_to_begin()
        if has_pid(_traces_dir(key)):
            break
        if not about_to_begin:
            return has_output(_traces_dir(key), key.log_path)
        time.sleep(_SURVIVOR_CHECK_SECONDS)
    return True


def _about_to_begin() -> list[int]:
    """Return processes that may yet begin a run: parents just forked, and fork servers whose server has ended."""
    return [
        process.pid
        for process in processes_of_script(Path(shim.__file__), 2)
        if process.name != shim.RUN_NAME and not _is_fork_server_at_work(process)
    ]


def _is_fork_server_at_work(process: ScriptProcess) -> bool:
    server, start_time = process.arguments
    return process.parent == int(server) and _is_living(int(server), start_time)


class LocalRun:
    """A run on this machine. `pid` is that of its parent, and None if that has ended already; `fork_server` is what forked it,
    and None if that is unknown. `wake` is an eventfd, which is its own from then on. Raises OSError."""

    def __init__(self, key: RunKey, pid: int | None, fork_server: ForkServer | None, wake: int) -> None:
        self._key = key
        self._fork_server = fork_server
        self._exit_code: int | None = None
        self._parent = pid  # seen alive by this server, so its number stays taken while its session has members
        self._since_ticks = _started_ticks(pid)
        self._pidfd = _open_pidfd(pid)
        self._wake = wake
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        if self._pidfd is not None:
            self._poll.register(self._pidfd, select.POLLIN)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the run has ended, `interrupt` is called, or time is up. Tell whether it has ended."""
        if self._pidfd is None:
            return True
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout_seconds * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._pidfd in ready

    def interrupt(self) -> None:
        """Make a `wait`, now or the next, return early."""
        os.eventfd_write(self._wake, 1)

    def step_ends(self) -> list[int]:
        """Return the size of the log at the end of each step that has ended. Raises OSError."""
        return [step.log_size_bytes for step in self._read_exits().steps]

    def exit_status(self, step: int = 0) -> Exit:
        """Say how a step of an ended run ended, by what its parent wrote down. Raises RunFailedError, OSError."""
        steps = self._read_exits().steps
        if step >= len(steps):
            return self._exit_of_parent()
        end = steps[step]
        if end.error is not None:
            raise RunFailedError("START_FAILED", f"the program could not be started: {end.error}")
        return Exit(code=end.code, signal=end.signal)

    def end(self, grace_seconds: float) -> None:
        """End every process of the run: SIGTERM, a grace period, SIGKILL. Returns once none is left.

        The parent is killed last, and only if it does not end by itself: it adopts what has lost its own parent. Raises OSError
        where it can't be seen which are left.
        """
        if self.wait(0) and self._read_exits().none_left:
            return
        if not (
            self._gone_after(signal.SIGTERM, signal.SIGTERM, grace_seconds)
            or self._gone_after(signal.SIGKILL, shim.KILL_REQUEST, _PARENT_SECONDS)
            or self._gone_after(signal.SIGKILL, signal.SIGKILL, _KILL_SECONDS)
        ):
            left = ", ".join(map(str, self._survivors()))
            raise RunFailedError("PROCESS_UNKILLABLE", f"processes {left} of the run could not be killed")

    def close(self) -> None:
        """Let go of the run's descriptors, and of its parent if that has ended."""
        if self.wait(0):
            self._reap()
        for descriptor in (self._pidfd, self._wake):
            if descriptor is not None:
                os.close(descriptor)

    def _gone_after(self, number: signal.Signals, to_parent: signal.Signals, seconds: float) -> bool:
        """Signal what is left of the run until none is, or time is up. New processes of it get the signal too.

        A look at /proc can miss a process that is forked meanwhile, so it takes two to believe that all are gone.
        """
        deadline = time.monotonic() + seconds
        signalled: set[int] = set()
        while survivors := self._survivors() or (signalled and self._survivors()):
            new = set(survivors) - signalled
            send_signal(new & {self._parent}, to_parent)  # first, so that it starts no further step
            send_signal(new - {self._parent}, number)
            signalled |= new
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(_SURVIVOR_CHECK_SECONDS, max(0.0, deadline - time.monotonic())))
        return True

    def _survivors(self) -> list[int]:
        return processes_of_job(self._key.job_id, self._parent, self._since_ticks)

    def _read_exits(self) -> Exits:
        return read_exits(_traces_dir(self._key))

    def _exit_of_parent(self) -> Exit:
        """Judge by the parent itself, which was killed before it could write anything down."""
        exit_code = self._reap()
        # It ended by itself without a word only where the disk took none: then nobody knows how the program ended.
        return Exit(signal=-exit_code) if exit_code is not None and exit_code < 0 else Exit()

    def _reap(self) -> int | None:
        """Let go of the parent, which has ended, and return how it did, if that can be known."""
        if self._fork_server is not None and self._parent is not None:
            self._exit_code = self._fork_server.reap(self._parent)
            self._fork_server = None
        return self._exit_code


def _living_pid(key: RunKey) -> int | None:
    """Return the recorded process if it still runs and is a parent of runs, for a run may write there what it likes. Raises
    OSError where that can't be told."""
    recorded = read_pid(_traces_dir(key))
    return recorded[0] if recorded and _is_living(*recorded) and _is_parent(recorded[0]) else None


def _is_parent(pid: int) -> bool:
    """Tell by its name whether a process is a parent of runs; one that has just begun has the fork server's. Raises OSError."""
    try:
        return name_of(pid) in (shim.RUN_NAME, shim.FORK_SERVER_NAME)
    except OSError as error:
        require_no_shortage(error)
        return False


def _is_living(pid: int, start_time: str) -> bool:
    """Tell whether the process still runs, and not another one that got its number. Raises OSError where that can't be told."""
    try:
        return shim.start_time(pid) == start_time
    except OSError as error:
        require_no_shortage(error)
        return False


def _started_ticks(pid: int | None) -> int:
    """Return when a process started, and 0 for one that is gone: then anything may belong to its run."""
    try:
        return int(shim.start_time(pid)) if pid is not None else 0
    except OSError as error:
        require_no_shortage(error)
        return 0


def _open_pidfd(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
