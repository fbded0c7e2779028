"""The only source of time, so that tests can replace it."""

import time
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp


class Clock(Protocol):
    """Tells the time of day and measures intervals."""

    def now(self) -> Timestamp:
        """Return the time of day, in UTC. It may jump."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment. Never decreases."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> Timestamp:
        """Return the time of day, in UTC."""
        timestamp = Timestamp()
        timestamp.FromNanoseconds(time.time_ns())
        return timestamp

    def monotonic(self) -> float:
        """Return the system's monotonic time in seconds."""
        return time.monotonic()


class Stopwatch:
    """Tells for how long something has been going on. The time of day, which may jump, and which a run may set for its files,
    tells only for how long it had been when this was made."""

    def __init__(self, clock: Clock, begun_ns: int) -> None:
        self._clock = clock
        self._begun = clock.monotonic() - max(0, clock.now().ToNanoseconds() - begun_ns) / 1e9

    def elapsed_ns(self) -> int:
        """Return the nanoseconds since the begin."""
        return int((self._clock.monotonic() - self._begun) * 1e9)
