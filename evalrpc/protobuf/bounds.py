"""Numbers and times from outside become fields of a message, or are unknown. Pure.

A harness prints what it likes, and a run may set the times of its files. A field takes only so much, and protobuf can't write
every Duration and Timestamp that it can hold as JSON: a single one of those would make a whole list of jobs unreadable.
"""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

MAX_COUNT: Final = 2**63 - 1
"""The most that an int64 holds."""

MAX_SECONDS: Final = 10 * 366 * 24 * 3600
"""No evaluation takes longer than ten years, and no estimate beyond that means anything."""

MAX_DURATION_NS: Final = 315_576_000_000 * 10**9
"""The most that a Duration may have: ten thousand years."""

_MAX_INT32: Final = 2**31 - 1
_MAX_TIMESTAMP_SECONDS: Final = 253_370_764_800  # the year 9999, which also a zone ahead of UTC can show
_SECOND_NS: Final = 10**9


def count(number: object) -> int | None:
    """Return a whole number that is not negative and that an int64 holds; None for anything else."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_COUNT:
        return None
    return int(number) if number == int(number) else None


def int32(number: int | None) -> int | None:
    """Return the number if an int32 holds it, None otherwise."""
    return number if number is not None and abs(number) <= _MAX_INT32 else None


def json_integer(text: str) -> int | str:
    """Read an integer of a JSON document, for `parse_int`. One of more digits than Python reads stays text, and so is no number
    to anyone."""
    try:
        return int(text)
    except ValueError:
        return text


def duration_of_seconds(seconds: float) -> Duration | None:
    """Return a span of time from 0 to MAX_SECONDS; None for any other."""
    return duration_of_ns(int(seconds * _SECOND_NS)) if 0 <= seconds <= MAX_SECONDS else None


def duration_of_ns(nanoseconds: int) -> Duration | None:
    """Return a span of time; None if it is negative or more than a Duration may have."""
    if not 0 <= nanoseconds <= MAX_DURATION_NS:
        return None
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration


def is_span(duration: Duration) -> bool:
    """Tell whether a Duration is one from 0 to MAX_SECONDS, which protobuf can also write as JSON."""
    return 0 <= duration.seconds <= MAX_SECONDS and 0 <= duration.nanos < _SECOND_NS


def timestamp_of_ns(nanoseconds: int) -> Timestamp | None:
    """Return the time so many nanoseconds after the beginning of 1970; None if that is before it, or after the year 9998."""
    if not 0 <= nanoseconds < _MAX_TIMESTAMP_SECONDS * _SECOND_NS:
        return None
    timestamp = Timestamp()
    timestamp.FromNanoseconds(nanoseconds)
    return timestamp
