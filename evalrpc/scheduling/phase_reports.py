"""Tells now and then that an attempt is in a phase that comes before its harness starts."""

from collections.abc import Callable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock, Stopwatch
from evalrpc.v1.jobs_pb2 import JobInfo, Progress

_ALIVE_SECONDS: Final = 5.0


class PhaseReports:
    """Publishes the phase of a job's attempt, at once and then every few seconds. Used by one thread."""

    def __init__(
        self, job: JobInfo, phase: Progress.Phase.ValueType, clock: Clock, publish: Callable[[Progress], None]
    ) -> None:
        self._phase = phase
        self._clock = clock
        self._stopwatch = Stopwatch(clock, job.started_at.ToNanoseconds())
        self._publish = publish
        self._published_at = float("-inf")

    def look(self, last_output_at: Callable[[], Timestamp | None] = lambda: None) -> None:
        """Publish the phase if that is due, with the time of the last output if there is one."""
        now = self._clock.monotonic()
        if now - self._published_at < _ALIVE_SECONDS:
            return
        self._published_at = now
        progress = Progress(phase=self._phase, last_output_at=last_output_at())
        progress.elapsed.FromNanoseconds(self._stopwatch.elapsed_ns())
        self._publish(progress)
