"""How far a run has come, by what its log says."""

from collections.abc import Callable
from typing import Final

from google.protobuf.duration_pb2 import Duration

from evalrpc.clock import Clock
from evalrpc.harnesses.base import Harness
from evalrpc.logs import LogFollower
from evalrpc.v1 import job_pb2 as pb

_ALIVE_SECONDS: Final = 5.0


class RunProgress:
    """Follows the log of one run, and hands each news to `publish`. Used by one thread."""

    def __init__(
        self, job: pb.JobInfo, log: LogFollower, harness: Harness, clock: Clock, publish: Callable[[pb.Progress], None]
    ) -> None:
        self._job = job
        self._log = log
        self._harness = harness
        self._clock = clock
        self._publish = publish
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
            self._stamp()
            self._publish(_copy(self._message))

    def finish(self) -> pb.Progress:
        """Read the rest of the log, and return how far the run came."""
        self._read()
        self._stamp()
        return _copy(self._message)

    def _read(self) -> bool:
        changed = False
        for line in self._log.new_lines():
            changed |= self._harness.read_progress(line, self._message)
        # A bar that stands still ends where the cursor is. One that is just being written may be cut in the middle of a number.
        last_line = self._log.last_line()
        if last_line == self._last_line:
            changed |= self._harness.read_progress(last_line, self._message)
        self._last_line = last_line
        return changed

    def _stamp(self) -> None:
        self._message.elapsed.CopyFrom(_duration(self.elapsed_ns()))
        last_output_ns = self._log.last_output_ns()
        if last_output_ns is not None:
            self._message.last_output_at.FromNanoseconds(last_output_ns)


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, nanoseconds))
    return duration


def _copy(progress: pb.Progress) -> pb.Progress:
    copy = pb.Progress()
    copy.CopyFrom(progress)
    return copy
