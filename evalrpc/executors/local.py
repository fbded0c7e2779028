"""Runs commands on this machine, each in a session of its own, writing straight to a log file.

A run's traces on the disk are all that is needed to find it again: `child.py` writes them, in `attempt_dir/run`. Waiting works
on a pidfd, which any process may have of any other, so a run found again is handled just as one that was started.
"""

import marshal
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.executors import child
from evalrpc.executors.base import RunKey
from evalrpc.executors.environment import build_environment
from evalrpc.executors.processes import processes_of_job, processes_of_script, send_signal
from evalrpc.harnesses.base import Command, Exit

TRACES_DIR: Final = "run"

_SURVIVOR_CHECK_SECONDS: Final = 0.02
_KILL_SECONDS: Final = 30.0
_START_SECONDS: Final = 5.0
_SPARES: Final = 2  # while one is taken, the next is ready already


class LocalExecutor:
    """The executor for the GPUs of this machine. `environment` is what runs inherit. May be used from several threads.

    The parents of the next runs are started ahead of time, by the first run or by `prepare`.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._spares: deque[subprocess.Popen[bytes]] = deque()
        self._closed = False

    def prepare(self) -> None:
        """Start the parents of the next runs, unless they are there. Where that fails, the next run will say why."""
        with self._lock, suppress(OSError):
            while len(self._spares) < _SPARES and not self._closed:
                self._spares.append(_start_child())

    def start(self, key: RunKey, command: Command, gpus: tuple[str, ...]) -> "LocalRun":
        """Start a run. Raises RunFailedError with reason START_FAILED; what only shows when the program is started, such as a
        program that does not exist, is raised by `exit_status` instead."""
        traces_dir = key.attempt_dir / TRACES_DIR
        try:
            traces_dir.mkdir(parents=True, exist_ok=True)
            for path, content in command.files.items():
                path.write_bytes(content)
            key.log_path.touch()
            process = self._hand_over(self._order(key, command, gpus, traces_dir))
        except OSError as error:
            raise RunFailedError("START_FAILED", f"the run could not be started: {error}") from error
        self.prepare()
        return LocalRun(key, process.pid, process)

    def find(self, key: RunKey) -> "LocalRun | None":
        """Find a run that an earlier server started, alive, ended or vanished. None: it never started."""
        pid_file = key.attempt_dir / TRACES_DIR / child.PID_FILE
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            # That server may have died just before the child script wrote the file. So the processes come first: one that is
            # not about to write it any more has written it.
            about_to_begin = processes_of_job(key.job_id) or _orphaned_spares()
            if pid_file.exists():
                break
            if not about_to_begin:
                return None
            time.sleep(_SURVIVOR_CHECK_SECONDS)
        return LocalRun(key, _living_pid(pid_file), None)

    def close(self) -> None:
        """Let go of what was started ahead of time; runs go on."""
        with self._lock:
            self._closed = True
            spares = list(self._spares)
            self._spares.clear()
        for spare in spares:
            _dismiss(spare)

    def _order(self, key: RunKey, command: Command, gpus: tuple[str, ...], traces_dir: Path) -> bytes:
        order = {
            "steps": [command.argv, *command.further_steps],
            "env": build_environment(self._environment, command.env, gpus, key.job_id, key.attempt),
            "cwd": str(Path.cwd() / (command.cwd or "")),
            "log": str(key.log_path),
            "traces_dir": str(traces_dir),
        }
        return marshal.dumps(order)

    def _hand_over(self, order: bytes) -> "subprocess.Popen[bytes]":
        """Give the order to the spare child script, or to a new one if it is gone. Raises OSError."""
        with self._lock:
            process = self._spares.popleft() if self._spares else _start_child()
        try:
            return _send(process, order)
        except BrokenPipeError:  # somebody killed it
            _dismiss(process)
        return _send(_start_child(), order)


def _start_child() -> "subprocess.Popen[bytes]":
    server = os.getpid()
    return subprocess.Popen(
        (sys.executable, "-I", "-S", child.__file__, str(server), child.start_time(server)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _send(process: "subprocess.Popen[bytes]", order: bytes) -> "subprocess.Popen[bytes]":
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    with process.stdin:
        process.stdin.write(order)
    return process


def _dismiss(process: "subprocess.Popen[bytes]") -> None:
    """End a child script that has no order: the end of its input tells it."""
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()


def _orphaned_spares() -> list[int]:
    """Return child scripts of servers that have ended: each ends in a moment, or has an order that it is about to carry out."""
    return [
        pid
        for pid, name, (server, start_time) in processes_of_script(Path(child.__file__), 2)
        if name != child.RUN_NAME and not _is_living(int(server), start_time)
    ]


class LocalRun:
    """A run on this machine. `pid` is that of the child script, and None if it has ended already."""

    def __init__(self, key: RunKey, pid: int | None, process: subprocess.Popen[bytes] | None) -> None:
        self._key = key
        self._process = process
        self._session = pid  # seen alive by this server, so its number stays taken while the session has members
        self._since_ticks = _started_ticks(pid)
        self._pidfd = _open_pidfd(pid)
        self._wake = os.eventfd(0)
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
        if self._pidfd in ready and self._process is not None:
            self._process.wait()  # reap it
        return self._pidfd in ready

    def interrupt(self) -> None:
        """Make a `wait`, now or the next, return early."""
        os.eventfd_write(self._wake, 1)

    def step_ends(self) -> list[int]:
        """Return the size of the log at the end of each step that has ended."""
        return [int(line.partition(" ")[0]) for line in self._read_exits()]

    def exit_status(self, step: int = 0) -> Exit:
        """Say how a step of an ended run ended, by what the child script wrote down."""
        lines = self._read_exits()
        _, kind, value = lines[step].split(" ", 2) if step < len(lines) else ("", "", "")
        if kind == "error":
            raise RunFailedError("START_FAILED", f"the program could not be started: {value}")
        if kind == "code":
            return Exit(code=int(value))
        if kind == "signal":
            return Exit(signal=int(value))
        return self._exit_of_child()

    def end(self, grace_seconds: float) -> None:
        """End every process of the run: SIGTERM, a grace period, SIGKILL. Returns once none is left."""
        if self._gone_after(signal.SIGTERM, grace_seconds) or self._gone_after(signal.SIGKILL, _KILL_SECONDS):
            if self._process is not None:
                self._process.wait()  # it is a zombie at most
            return
        left = ", ".join(map(str, self._survivors()))
        raise RunFailedError("PROCESS_UNKILLABLE", f"processes {left} of the run could not be killed")

    def close(self) -> None:
        """Let go of the run's descriptors, and of its zombie if it has ended."""
        if self._process is not None:
            self._process.poll()
        for descriptor in (self._pidfd, self._wake):
            if descriptor is not None:
                os.close(descriptor)

    def _gone_after(self, number: signal.Signals, seconds: float) -> bool:
        """Signal what is left of the run until none is, or time is up. New processes of it get the signal too.

        A look at /proc can miss a process that is forked meanwhile, so it takes two to believe that all are gone.
        """
        deadline = time.monotonic() + seconds
        signalled: set[int] = set()
        while survivors := self._survivors() or (signalled and self._survivors()):
            send_signal([pid for pid in survivors if pid not in signalled], number)
            signalled.update(survivors)
            if time.monotonic() >= deadline:
                return False
            self._await_exit(min(_SURVIVOR_CHECK_SECONDS, max(0.0, deadline - time.monotonic())))
        return True

    def _survivors(self) -> list[int]:
        return processes_of_job(self._key.job_id, self._session, self._since_ticks)

    def _await_exit(self, seconds: float) -> None:
        if self._process is not None:
            self._process.poll()  # reap the child script once it is dead
        time.sleep(seconds)

    def _read_exits(self) -> list[str]:
        try:
            return (self._key.attempt_dir / TRACES_DIR / child.EXIT_FILE).read_text().split("\n")[:-1]
        except OSError:
            return []

    def _exit_of_child(self) -> Exit:
        """Judge by the child script itself, which was killed before it could write anything down."""
        returncode = self._process.poll() if self._process is not None else None
        # It ended by itself without a word only where the disk took none: then nobody knows how the program ended.
        return Exit(signal=-returncode) if returncode is not None and returncode < 0 else Exit()


def _living_pid(pid_file: Path) -> int | None:
    """Return the recorded process if it still runs."""
    try:
        pid_text, start_time = pid_file.read_text().split()
        return int(pid_text) if _is_living(int(pid_text), start_time) else None
    except (OSError, ValueError):
        return None


def _is_living(pid: int, start_time: str) -> bool:
    """Tell whether the process still runs, and not another one that got its number."""
    try:
        return child.start_time(pid) == start_time
    except OSError:
        return False


def _started_ticks(pid: int | None) -> int:
    """Return when a process started, and 0 for one that is gone: then anything may belong to its run."""
    try:
        return int(child.start_time(pid)) if pid is not None else 0
    except OSError:
        return 0


def _open_pidfd(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
