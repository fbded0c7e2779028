"""A run on a Slurm cluster, as the server sees it: by its traces on the shared disk, and by what Slurm says of its job."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import shim
from evalrpc.executors.local.traces import Exits, read_exits, traces_dir
from evalrpc.executors.slurm import states
from evalrpc.executors.slurm.batch import CLAIM_FILE, LOST_FILE, ORDER_FILE, STOP_LOOK_SECONDS, WITHDRAWN, ask_to_stop, claim
from evalrpc.executors.slurm.cluster import NEVER_ASKED, Cluster, Submission
from evalrpc.executors.slurm.commands import SlurmJob, SlurmUnavailableError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_regular_file
from evalrpc.harnesses.base import Exit

_LOOK_SECONDS: Final = 0.25
"""How often the traces are looked at while a run goes on: its end is to be known within a second."""

_SETTLE_SECONDS: Final = 5.0
"""How long Slurm may take to list what it has taken, and the disk to show what another machine has written."""

_SHIM_SECONDS: Final = 10.0
_UNSEEN_SECONDS: Final = 15.0
"""How long a run that Slurm has lost sight of has to end on its own, by what the server leaves for it on the disk."""

_KILL_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 2.0
_ASK_SECONDS: Final = 1.0
_TRIES: Final = 3
"""How often a run that has not begun is submitted, in all."""

_MAX_CLAIM_BYTES: Final = 64


class SlurmRun:
    """A run on a cluster. `is_closing` tells whether the server stops. `start_seconds`: how long it may run for Slurm without
    having begun."""

    is_warm: Final = False

    def __init__(
        self,
        node: str,
        key: RunKey,
        devices: tuple[str, ...],
        cluster: Cluster,
        submission: Submission,
        is_closing: Callable[[], bool],
        start_seconds: float,
    ) -> None:
        self.node = node
        self.devices = devices
        self._name = submission.name
        self._traces_dir = traces_dir(key.attempt_dir)
        self._cluster = cluster
        self._submission = submission
        self._is_closing = is_closing
        self._start_seconds = start_seconds
        self._running_seconds: float | None = None
        self._tries = 1
        self._is_forgotten = False
        self._wake = threading.Event()
        self._last: SlurmJob | None = None
        self._is_withdrawn = self._was_withdrawn()
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
        """See RunHandle.end. Where Slurm does not answer, what has begun ends by what is left for it on the disk. If that does
        not help either, this waits for Slurm, unless the server stops: then it raises SlurmUnavailableError."""
        self._cluster.withdraw(self._submission)
        if self._submission.failure is not None or self._withdraw() or self._is_gone():
            return
        if grace_seconds > 0 and not self._signal(signal.SIGTERM, "--full"):
            ask_to_stop(str(self._traces_dir), signal.SIGTERM)
            grace_seconds += STOP_LOOK_SECONDS
        if self._is_gone_within(grace_seconds):
            return
        ask_to_stop(str(self._traces_dir), shim.KILL_REQUEST)
        self._signal(shim.KILL_REQUEST, "--batch")
        if self._is_gone_within(_SHIM_SECONDS):
            return
        while not self._cancel():
            if self._is_gone_within(_RETRY_SECONDS):
                return
            if self._is_closing():
                raise SlurmUnavailableError("the server stops before the run has ended")
        if not self._is_gone_within(_KILL_SECONDS):
            raise RunFailedError("PROCESS_UNKILLABLE", f"Slurm could not end the run on {self.node}")

    def kill(self) -> bool:
        """Kill what is left, without waiting for it. Return whether nothing was left. Raises OSError."""
        if self._withdraw() or self._is_gone():
            return True
        ask_to_stop(str(self._traces_dir), shim.KILL_REQUEST)
        self._signal(shim.KILL_REQUEST, "--batch")
        self._cancel()
        return False

    def close(self) -> None:
        """See RunHandle.close."""
        self._cluster.watch(-1)

    def _has_ended(self) -> bool:
        """Tell whether it has ended, without a question to Slurm."""
        submission, snapshot = self._submission, self._cluster.snapshot
        if submission.failure is not None or self._is_withdrawn or self._read_exits().none_left:
            return True
        if not submission.done.is_set() or snapshot is NEVER_ASKED:
            return False
        job = snapshot.jobs.get(self._name)
        # Of one that was just taken it says nothing yet.
        settle_seconds = _SETTLE_SECONDS if job is None else 0.0
        if snapshot.asked_seconds < submission.submitted_seconds + settle_seconds:
            return False
        if job is None or job.state in states.NOT_STARTED or self._is_stuck(job):
            return not self._submit_again("" if job is None else job.id)
        return self._is_over(job)

    def _is_stuck(self, job: SlurmJob) -> bool:
        """Tell whether Slurm has said for long that it runs, while it has not even begun: a node that has failed meanwhile, or
        a slurmstepd that was killed, may leave a job so for hours."""
        if job.state != "RUNNING" or (self._traces_dir / CLAIM_FILE).exists():
            self._running_seconds = None
            return False
        now_seconds = time.monotonic()
        self._running_seconds = self._running_seconds or now_seconds
        return now_seconds >= self._running_seconds + self._start_seconds

    def _submit_again(self, job_id: str) -> bool:
        """Have it submitted again, since a job of it has been lost, unless it has begun: so it is not run twice. Return whether
        it will be."""
        is_worth_it = self._submission.options and self._tries < _TRIES
        if not is_worth_it or (self._traces_dir / CLAIM_FILE).exists():
            return False
        self._tries += 1
        self._running_seconds = None
        self._submission = self._submission.again(job_id)
        self._cluster.submit(self._submission)
        return True

    def _is_over(self, job: SlurmJob | None) -> bool:
        if job is None:
            return False
        self._last = job
        return job.state not in states.WAITING and job.state not in states.RUNNING and job.state != states.ENDING

    def _is_gone(self) -> bool:
        """Tell whether no process of it is left, and Slurm will start none. Asks Slurm, unless the shim has said so; False if
        Slurm does not answer."""
        if self._submission.failure is not None or self._is_withdrawn:
            return True
        if self._read_exits().none_left:
            self._note_end()
            return True
        if not self._submission.done.is_set():
            return False
        try:
            job = self._cluster.ask().jobs.get(self._name)
        except SlurmUnavailableError:
            return False
        if job is not None and not self._is_over(job):
            return False
        if self._withdraw():
            return True
        self._is_forgotten = job is None
        return self._stop_unseen(job is None or job.state in states.UNSEEN)

    def _withdraw(self) -> bool:
        """See to it that it never begins, whatever Slurm has been told. Return whether it has not and will not; then what Slurm
        has of it is cancelled when Slurm answers. Raises OSError."""
        path = self._traces_dir / CLAIM_FILE
        if not self._is_withdrawn:
            try:
                self._is_withdrawn = claim(str(path), WITHDRAWN) or self._was_withdrawn()
            except FileNotFoundError:  # its folder is gone
                return False
        if self._is_withdrawn:
            self._cluster.note_end(self._name)
            if self._submission.was_tried:
                self._cluster.cancel_soon(self._name)
            (self._traces_dir / ORDER_FILE).unlink(missing_ok=True)
        return self._is_withdrawn

    def _was_withdrawn(self) -> bool:
        try:
            with open_regular_file(self._traces_dir / CLAIM_FILE) as descriptor:
                return descriptor is not None and os.pread(descriptor, _MAX_CLAIM_BYTES, 0) == WITHDRAWN.encode()
        except OSError as error:
            require_no_shortage(error)
            return False

    def _stop_unseen(self, may_live: bool) -> bool:
        """Have a run that has begun, and that Slurm takes for ended or does not know, end by itself, wherever it is. Give it
        time for that, and then believe Slurm; False if the server stops before. `may_live`: Slurm has not seen its end."""
        ask_to_stop(str(self._traces_dir), shim.KILL_REQUEST)
        deadline = time.monotonic() + (_UNSEEN_SECONDS if may_live else _SETTLE_SECONDS)
        while not self._read_exits().none_left and time.monotonic() < deadline:
            if self._is_closing():
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def _note_end(self) -> None:
        """Note that nothing of it is left. Slurm notices by itself, but without slurmstepd it has to be told."""
        self._cluster.note_end(self._name)
        if self._is_lost() and not self._cancel():
            self._cluster.cancel_soon(self._name)

    def _is_lost(self) -> bool:
        """Tell whether slurmstepd was gone before the run was."""
        return (self._traces_dir / LOST_FILE).exists()

    def _is_gone_within(self, seconds: float) -> bool:
        """Wait until it is gone, for so long. That its shim says so is seen at once, that Slurm does a little later."""
        deadline, ask_seconds = time.monotonic() + seconds, time.monotonic() + _ASK_SECONDS
        while time.monotonic() < deadline and not self._read_exits().none_left:
            if time.monotonic() >= ask_seconds:
                if self._is_gone():
                    return True
                ask_seconds = time.monotonic() + _ASK_SECONDS
            time.sleep(_LOOK_SECONDS / 2)
        return self._is_gone()

    def _cancel(self, *options: str) -> bool:
        """Have Slurm cancel it, or signal it, as `options` say. Return whether Slurm has answered."""
        try:
            self._cluster.commands.cancel(self._name, *options)
        except SlurmUnavailableError:
            return False
        return True

    def _signal(self, number: signal.Signals, to_whom: str) -> bool:
        return self._cancel(f"--signal={number.name.removeprefix('SIG')}", to_whom)

    def _raise_failure(self) -> None:
        """Raise what Slurm says of the end, if it says anything. Slurm need not know it yet: its traces come first."""
        if self._is_lost():
            raise RunFailedError("RUN_LOST", "slurmstepd, which had started the run on its node, has ended before it")
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
        if self._is_forgotten:
            raise RunFailedError("RUN_LOST", "Slurm does not know the run any more, so what was left of it was ended")
        has_begun = not self._is_withdrawn and (self._traces_dir / CLAIM_FILE).exists()
        if self._last is not None and not has_begun and self._is_over(self._last):
            raise RunFailedError("START_FAILED", f"Slurm could not start the run: {self._last.state} ({self._last.reason})")

    def _read_exits(self) -> Exits:
        return read_exits(self._traces_dir)
