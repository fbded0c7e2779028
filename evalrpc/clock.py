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
