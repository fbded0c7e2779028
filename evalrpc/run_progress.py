"""How far a run has come, by what its log says."""

from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from evalrpc.clock import Clock
from evalrpc.harnesses.base import Harness
from evalrpc.logs import LogFollower
from evalrpc.v1 import job_pb2 as pb

_ALIVE_SECONDS: Final = 5.0


class RunProgress:
    """Follows the log of one run, and hands each news to `publish`. Used by one thread.

    Where the run has several steps, `tasks` names what each is for, and `step_ends` says how large the log was at the end of
    each that has ended.
    """

    def __init__(
        self,
        job: pb.JobInfo,
        log: LogFollower,
        harness: Harness,
        clock: Clock,
        publish: Callable[[pb.Progress], None],
        tasks: Sequence[str] = ("",),
        step_ends: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self._job = job
        self._log = log
        self._harness = harness
        self._clock = clock
        self._publish = publish
        self._tasks = tasks
        self._step_ends = step_ends
        self._step = 0
        self._before = pb.Progress()  # what the steps before have come to
        self._message = pb.Progress(phase=pb.Progress.PHASE_STARTING)
        self.started = False
        """Whether `look` was called yet."""
        self._last_line = ""
        self._published_at = float("-inf")

    def elapsed_ns(self) -> int:
        """Return how long the attempt has been running."""
        return self._clock.now().ToNanoseconds() - self._job.started_at.ToNanoseconds()

    def look(self) -> None:
        """Read what is new in the log, and publish it; and now and then that the run is alive, if nothing is new."""
        changed = self._read() or not self.started
        self.started = True
        now = self._clock.monotonic()
        if changed or now - self._published_at >= _ALIVE_SECONDS:
            self._published_at = now
            self._publish(self._whole())

    def finish(self) -> pb.Progress:
        """Read the rest of the log, and return how far the run came."""
        self._read()
        return self._whole()

    def _read(self) -> bool:
        end = self._log.size()  # before the ends of steps: so what is below it is of no step that they don't tell of
        ends = self._step_ends() if len(self._tasks) > 1 else ()
        changed = False
        for step_end in ends[self._step : len(self._tasks) - 1]:
            self._read_to(step_end)
            self._harness.read_progress(self._log.end_line(), self._message)
            self._next_step()
            changed = True
        return self._read_to(end) or changed

    def _read_to(self, end: int) -> bool:
        changed = False
        for line in self._log.new_lines(end):
            changed |= self._harness.read_progress(line, self._message)
        # A bar that stands still ends where the cursor is. One that is just being written may be cut in the middle of a number.
        last_line = self._log.last_line()
        if last_line == self._last_line:
            changed |= self._harness.read_progress(last_line, self._message)
        self._last_line = last_line
        return changed

    def _next_step(self) -> None:
        self._step += 1
        self._before = self._sum()
        self._message = pb.Progress(phase=pb.Progress.PHASE_STARTING)

    def _sum(self) -> pb.Progress:
        """Return the progress of the step at work, with the units of those before."""
        progress = pb.Progress()
        progress.CopyFrom(self._message)
        progress.done += self._before.done
        progress.total += self._before.total
        progress.unit = progress.unit or self._before.unit
        progress.current_task = self._tasks[self._step] or progress.current_task
        return progress

    def _whole(self) -> pb.Progress:
        progress = self._sum()
        progress.elapsed.CopyFrom(_duration(self.elapsed_ns()))
        last_output_ns = self._log.last_output_ns()
        if last_output_ns is not None:
            progress.last_output_at.FromNanoseconds(last_output_ns)
        return progress


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, nanoseconds))
    return duration
