"""How far a run has come, by what its log says."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

from evalrpc.clock import Clock, Stopwatch
from evalrpc.harnesses.base import Harness
from evalrpc.protobuf.bounds import MAX_COUNT, is_span, timestamp_of_ns
from evalrpc.protobuf.texts import bounded_name
from evalrpc.scheduling.log_tail import LogFollower
from evalrpc.v1 import jobs_pb2 as pb

_ALIVE_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class RunProgress:
    """Follows the log of one run, and hands each news to `publish`. Used by one thread.

    Where the run has several steps, `tasks` names what each is for, and `step_ends` says how large the log was at the end of
    each that has ended. `stopwatch` is that of the attempt. `publish` also gets why the run waits on a cluster, which
    `waits_for` says; and `begun_ns` says when it has begun there.
    """

    def __init__(
        self,
        job: pb.JobInfo,
        log: LogFollower,
        harness: Harness,
        clock: Clock,
        publish: Callable[[pb.Progress, str], None],
        tasks: Sequence[str],
        step_ends: Callable[[], Sequence[int]],
        stopwatch: Stopwatch,
        waits_for: Callable[[], str] = lambda: "",
        begun_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._job = job
        self._stopwatch = stopwatch
        self._since_begun: Stopwatch | None = None
        self._log = log
        self._harness = harness
        self._clock = clock
        self._publish = publish
        self._tasks = tasks
        self._step_ends = step_ends
        self._waits_for = waits_for
        self._begun_ns = begun_ns
        self._wait_reason = ""
        self._step = 0
        self._before = pb.Progress()  # what the steps before have come to
        self._message = pb.Progress(phase=pb.Progress.PHASE_STARTING)
        self.started = False
        """Whether `look` was called yet."""
        self._last_line = ""
        self._has_failed = False  # whether the harness could not read some line
        self._published_at = float("-inf")

    def elapsed_ns(self) -> int:
        """Return how long the attempt has been running, without the time that it waited on a cluster."""
        if self._wait_reason:
            self._since_begun = None
            return 0
        if self._since_begun is None:
            begun_ns = self._begun_ns()
            is_later = begun_ns > self._job.started_at.ToNanoseconds()
            self._since_begun = Stopwatch(self._clock, begun_ns) if is_later else self._stopwatch
        return self._since_begun.elapsed_ns()

    def look(self) -> None:
        """Read what is new in the log, and publish it; and now and then that the run is alive, if nothing is new."""
        wait_reason = self._waits_for()
        changed = self._read() or not self.started or wait_reason != self._wait_reason
        self.started, self._wait_reason = True, wait_reason
        now = self._clock.monotonic()
        if changed or now - self._published_at >= _ALIVE_SECONDS:
            self._published_at = now
            self._publish(self._whole(), wait_reason)

    def finish(self) -> pb.Progress:
        """Read the rest of the log, and return how far the run came."""
        self._read()
        self._read_line(self._log.end_line())  # nothing follows any more
        return self._whole()

    def _read(self) -> bool:
        end = self._log.size()  # before the ends of steps: so what is below it is of no step that they don't tell of
        ends = self._step_ends() if len(self._tasks) > 1 else ()
        changed = False
        for step_end in ends[self._step : len(self._tasks) - 1]:
            self._read_to(step_end)
            self._read_line(self._log.end_line())
            self._next_step()
            changed = True
        return self._read_to(end) or changed

    def _read_to(self, end: int) -> bool:
        changed = False
        for line in self._log.new_lines(end):
            changed |= self._read_line(line)
        # A bar that stands still ends where the cursor is. One that is just being written may be cut in the middle of a number.
        last_line = self._log.last_line()
        if last_line == self._last_line:
            changed |= self._read_line(last_line)
        self._last_line = last_line
        return changed

    def _read_line(self, line: str) -> bool:
        """Let the harness read a line. One that it fails at says nothing."""
        try:
            return self._harness.read_progress(line, self._message)
        except Exception:  # noqa: BLE001 - whatever a line does to a harness, a plugin's too, no run ends for want of progress
            if not self._has_failed:
                self._has_failed = True
                _log.exception("the harness can't read a line of the log", extra={"job_id": self._job.job_id})
            return False

    def _next_step(self) -> None:
        self._step += 1
        self._before = self._sum()
        self._message = pb.Progress(phase=pb.Progress.PHASE_STARTING)

    def _sum(self) -> pb.Progress:
        """Return the progress of the step at work, with the units of those before."""
        progress = pb.Progress()
        progress.CopyFrom(self._message)
        done, total = progress.done + self._before.done, progress.total + self._before.total
        if done or total:  # 0 of 8 says something, 0 of nobody knows how many does not
            progress.done = min(done, MAX_COUNT)
        if total:
            progress.total = min(total, MAX_COUNT)
        progress.unit = progress.unit or self._before.unit
        progress.current_task = self._tasks[self._step] or progress.current_task
        return progress

    def _whole(self) -> pb.Progress:
        progress = self._sum()
        _forget_nonsense(progress)
        if self._wait_reason:
            progress.phase = pb.Progress.PHASE_PENDING
        progress.elapsed.FromNanoseconds(self.elapsed_ns())
        last_output_ns = self._log.last_output_ns()
        last_output_at = None if last_output_ns is None else timestamp_of_ns(last_output_ns)  # a run may set what it likes
        progress.ClearField("last_output_at")
        if last_output_at is not None:
            progress.last_output_at.CopyFrom(last_output_at)
        return progress


def _forget_nonsense(progress: pb.Progress) -> None:
    """Drop what can't be, whichever harness has read it: it would travel with the job to every client."""
    if not is_span(progress.time_left):
        progress.ClearField("time_left")
    if not (math.isfinite(progress.rate_per_second) and progress.rate_per_second >= 0):
        progress.ClearField("rate_per_second")
    progress.unit, progress.current_task = bounded_name(progress.unit), bounded_name(progress.current_task)
