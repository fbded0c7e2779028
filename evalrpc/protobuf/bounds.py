"""Turns untrusted numbers and times into message fields; those out of range are unknown. Pure.

A harness may print anything, and a run may set any time on its files. Fields have a limited range, and protobuf can't write
every Duration and Timestamp that it can hold as JSON: a single bad one would make a whole list of jobs unreadable.
"""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

MAX_COUNT: Final = 2**63 - 1
"""The largest int64."""

MAX_SECONDS: Final = 10 * 366 * 24 * 3600
"""Ten years. No evaluation takes longer, and a longer estimate is meaningless."""

MAX_DURATION_NS: Final = 315_576_000_000 * 10**9
"""The longest Duration: ten thousand years."""

_MAX_INT32: Final = 2**31 - 1
_MAX_TIMESTAMP_SECONDS: Final = 253_370_764_800  # the year 9999: zones ahead of UTC can show times before it
_SECOND_NS: Final = 10**9


def count(number: object) -> int | None:
    """Return a whole, non-negative number that fits an int64; None for anything else."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_COUNT:
        return None
    return int(number) if number == int(number) else None


def int32(number: int | None) -> int | None:
    """Return the number if it fits an int32, None otherwise."""
    return number if number is not None and abs(number) <= _MAX_INT32 else None


def json_integer(text: str) -> int | str:
    """Parse an integer of a JSON document, for `parse_int`. One with more digits than Python converts stays text, and so counts
    as no number."""
    try:
        return int(text)
    except ValueError:
        return text


def duration_of_seconds(seconds: float) -> Duration | None:
    """Return a Duration from 0 to MAX_SECONDS; None for any other."""
    return duration_of_ns(int(seconds * _SECOND_NS)) if 0 <= seconds <= MAX_SECONDS else None


def duration_of_ns(nanoseconds: int) -> Duration | None:
    """Return a Duration; None if it is negative or too long for one."""
    if not 0 <= nanoseconds <= MAX_DURATION_NS:
        return None
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration


def is_span(duration: Duration) -> bool:
    """Return whether a Duration is within 0 to MAX_SECONDS, which protobuf can also write as JSON."""
    return 0 <= duration.seconds <= MAX_SECONDS and 0 <= duration.nanos < _SECOND_NS


def timestamp_of_ns(nanoseconds: int) -> Timestamp | None:
    """Return the Timestamp of nanoseconds since the Unix epoch; None if that is before the epoch or after the year 9998."""
    if not 0 <= nanoseconds < _MAX_TIMESTAMP_SECONDS * _SECOND_NS:
        return None
    timestamp = Timestamp()
    timestamp.FromNanoseconds(nanoseconds)
    return timestamp
