"""A run on a Slurm cluster, as the server sees it: by its traces on the shared disk, and by what Slurm says of its job."""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import shim
from evalrpc.executors.local.traces import Exits, read_exits, traces_dir
from evalrpc.executors.slurm import states
from evalrpc.executors.slurm.batch import CLAIM_FILE
from evalrpc.executors.slurm.cluster import NEVER_ASKED, Cluster, Submission
from evalrpc.executors.slurm.commands import SlurmJob, SlurmUnavailableError
from evalrpc.harnesses.base import Exit

_T = TypeVar("_T")

_LOOK_SECONDS: Final = 0.25
"""How often the traces are looked at while a run goes on: its end is to be known within a second."""

_SETTLE_SECONDS: Final = 5.0
"""How long Slurm may take to list what it has taken, and the disk to show what another machine has written."""

_SHIM_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 2.0


class SlurmRun:
    """A run on a cluster. `is_closing` tells whether the server stops."""

    is_warm: Final = False

    def __init__(
        self,
        node: str,
        key: RunKey,
        devices: tuple[str, ...],
        cluster: Cluster,
        submission: Submission,
        is_closing: Callable[[], bool],
    ) -> None:
        self.node = node
        self.devices = devices
        self._name = submission.name
        self._traces_dir = traces_dir(key.attempt_dir)
        self._cluster = cluster
        self._submission = submission
        self._is_closing = is_closing
        self._wake = threading.Event()
        self._last: SlurmJob | None = None
        cluster.watch(1)

    @property
    def waits_for(self) -> str:
        """Why it has not begun; empty once it has."""
        if (self._traces_dir / shim.PID_FILE).exists():
            return ""
        if not self._submission.done.is_set():
            problem = self._submission.problem
            return f"{self.node}: Slurm takes no runs at present: {problem}" if problem else f"{self.node}: is being submitted"
        job = self._cluster.snapshot.jobs.get(self._name)
        return states.wait_reason(self.node, job.state, job.reason) if job is not None and job.state in states.WAITING else ""

    @property
    def begun_ns(self) -> int:
        """When the first submission claimed it."""
        try:
            return (self._traces_dir / CLAIM_FILE).stat().st_mtime_ns
        except OSError:
            return 0

    def owns_port(self, port: int) -> bool | None:  # noqa: ARG002 - nobody knows
        """Say that nobody listens: engines run on the server's own machine."""
        return None

    def wait(self, timeout_seconds: float) -> bool:
        """See RunHandle.wait."""
        deadline = time.monotonic() + timeout_seconds
        while not self._has_ended():
            left_seconds = deadline - time.monotonic()
            if self._wake.wait(max(0.0, min(_LOOK_SECONDS, left_seconds))):
                self._wake.clear()
                return self._has_ended()
            if left_seconds <= _LOOK_SECONDS:
                return self._has_ended()
        return True

    def interrupt(self) -> None:
        """See RunHandle.interrupt."""
        self._wake.set()

    def step_ends(self) -> list[int]:
        """See RunHandle.step_ends."""
        return [step.log_size_bytes for step in self._read_exits().steps]

    def exit_status(self, step: int = 0) -> Exit:
        """See RunHandle.exit_status. Where Slurm says why the run ended, that counts more than the signal that it used."""
        if self._submission.failure is not None:
            raise self._submission.failure
        steps = self._read_exits().steps
        end = steps[step] if step < len(steps) else None
        if end is None or end.signal is not None:
            self._raise_failure()
        if end is None:
            return Exit()
        if end.error is not None:
            raise RunFailedError("START_FAILED", f"the program could not be started: {end.error}")
        return Exit(code=end.code, signal=end.signal)

    def end(self, grace_seconds: float) -> None:
        """See RunHandle.end. While Slurm does not answer it can't be ended, so this waits for Slurm, unless the server stops:
        then it raises SlurmUnavailableError."""
        if self._is_gone() or self._cluster.withdraw(self._submission):
            return
        commands = self._cluster.commands
        self._ask_slurm(lambda: commands.cancel(self._name, "--state=PENDING"))
        if grace_seconds > 0:
            self._ask_slurm(lambda: commands.cancel(self._name, "--signal=TERM", "--full"))
        if self._is_gone_within(grace_seconds):
            return
        self._ask_slurm(lambda: commands.cancel(self._name, "--signal=USR1", "--batch"))
        if self._is_gone_within(_SHIM_SECONDS):
            return
        self._ask_slurm(lambda: commands.cancel(self._name))
        if not self._is_gone_within(_KILL_SECONDS):
            raise RunFailedError("PROCESS_UNKILLABLE", f"Slurm could not end the run on {self.node}")

    def kill(self) -> bool:
        """Kill what is left, without waiting for it. Return whether nothing was left. Raises SlurmUnavailableError."""
        if self._is_gone():
            return True
        self._cluster.commands.cancel(self._name, "--signal=USR1", "--batch")
        self._cluster.commands.cancel(self._name)
        return False

    def close(self) -> None:
        """See RunHandle.close."""
        self._cluster.watch(-1)

    def _has_ended(self) -> bool:
        """Tell whether it has ended, without a question to Slurm."""
        submission, snapshot = self._submission, self._cluster.snapshot
        if submission.failure is not None or self._read_exits().none_left:
            return True
        if not submission.done.is_set() or snapshot is NEVER_ASKED:
            return False
        job = snapshot.jobs.get(self._name)
        if job is None:  # of one that was just taken this says nothing yet
            return snapshot.asked_seconds >= submission.submitted_seconds + _SETTLE_SECONDS
        return self._is_over(job)

    def _is_over(self, job: SlurmJob | None) -> bool:
        if job is None:
            return False
        self._last = job
        return job.state not in states.WAITING and job.state not in states.RUNNING and job.state != states.ENDING

    def _is_gone(self) -> bool:
        """Tell whether no process of it is left, and Slurm will start none. Asks Slurm, unless the shim has said so."""
        if self._submission.failure is not None:
            return True
        if self._read_exits().none_left:
            self._let_slurm_notice()
            return True
        if not self._submission.done.is_set():
            return False
        job = self._ask_slurm(self._cluster.ask).jobs.get(self._name)
        return job is None or self._is_over(job)

    def _let_slurm_notice(self) -> None:
        """Wait a moment until Slurm knows that it has ended, so that nobody finds it there; but not for a long epilog."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                job = self._cluster.ask().jobs.get(self._name)
            except SlurmUnavailableError:
                return
            if job is None or job.state not in states.RUNNING:
                return
            time.sleep(_LOOK_SECONDS / 5)

    def _is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._is_gone():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def _ask_slurm(self, ask: Callable[[], _T]) -> _T:
        while True:
            try:
                return ask()
            except SlurmUnavailableError:
                if self._is_closing():
                    raise
                time.sleep(_RETRY_SECONDS)

    def _raise_failure(self) -> None:
        """Raise what Slurm says of the end, if it says anything. Slurm need not know it yet: its traces come first."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        job = self._last
        while not self._is_over(job) and time.monotonic() < deadline:
            try:
                job = self._cluster.ask().jobs.get(self._name)
            except SlurmUnavailableError:
                break
            if job is None:
                break
            time.sleep(_LOOK_SECONDS)
        failure = states.FAILURES.get(self._last.state) if self._last is not None else None
        if failure is not None:
            raise RunFailedError(failure.reason, failure.text)
        if self._last is not None and not (self._traces_dir / shim.PID_FILE).exists() and self._is_over(self._last):
            raise RunFailedError("START_FAILED", f"Slurm could not start the run: {self._last.state} ({self._last.reason})")

    def _read_exits(self) -> Exits:
        return read_exits(self._traces_dir)
