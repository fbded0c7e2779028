"""What is wrong with a single field, in whichever request it is. Each function yields its violations."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from evalrpc.errors import FieldViolation
from evalrpc.jobs import lifecycle
from evalrpc.jobs.ids import is_job_id
from evalrpc.printable import first_unprintable
from evalrpc.protobuf.texts import MAX_NAME_LENGTH
from evalrpc.v1.results_pb2 import MetricSelector

MAX_FILTER_VALUES: Final = 1000
MAX_STATUSES: Final = 64
MAX_LABELS: Final = 64
MAX_SELECTORS: Final = 100
MAX_REASON_LENGTH: Final = 1000
_SECONDS_PER_DAY: Final = 24 * 3600
MAX_TIMEOUT_SECONDS: Final = 366 * _SECONDS_PER_DAY
MIN_HEARTBEAT_SECONDS: Final = 0.1

_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,63}")
_LABEL_RULE: Final = "must be 1 to 63 characters of A-Z a-z 0-9 _ . / -"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

Violations = Iterator[FieldViolation]


# Texts


def text(field: str, value: str, max_length: int) -> Violations:
    """Yield what is wrong with a text that people are shown."""
    if len(value) > max_length:
        yield FieldViolation(field, f"has {len(value)} characters; at most {max_length} are allowed")
    elif (character := first_unprintable(value)) is not None:
        yield FieldViolation(field, unprintable(character))


def unprintable(character: str) -> str:
    """Describe a text that has such a character."""
    return f"must have no control or invisible characters, and has {character}"


def quote(value: str) -> str:
    """Return a text of the caller's as a description names it: in quotes, and cut."""
    return repr(value if len(value) <= 80 else value[:77] + "...")


def name(field: str, value: str, max_length: int) -> Violations:
    """Yield what is wrong with a name that ends up on a command line."""
    if not value.strip():
        yield FieldViolation(field, "must not be empty")
    elif value.startswith("-"):
        yield FieldViolation(field, f"{quote(value)} must not begin with `-`")
    yield from text(field, value, max_length)


def parsed(field: str, value: str, parse: Callable[[str], object]) -> Violations:
    """Yield what its parser, which raises ValueError, says is wrong with a text."""
    try:
        parse(value)
    except ValueError as error:
        yield FieldViolation(field, str(error))


def cancel_reason(reason: str) -> Violations:
    """Yield what is wrong with the reason of a cancel."""
    yield from text("reason", reason, MAX_REASON_LENGTH)


# Ids


def job_id(field: str, value: str) -> Violations:
    """Yield a violation for what can't be the id of a job, or of a suite run."""
    if not is_job_id(value):
        problem = "must be a UUID such as 0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c" if value else "is required"
        yield FieldViolation(field, problem)


def engine_id(value: str) -> Violations:
    """Yield a violation for what can't be the id of an engine."""
    if not value:
        yield FieldViolation("engine_id", "is required: ListEngines has the ids")
    yield from text("engine_id", value, MAX_NAME_LENGTH)


def request_id(value: str) -> Violations:
    """Yield what is wrong with the id by which a submission is repeated, if it has one."""
    if value and not _REQUEST_ID.fullmatch(value):
        yield FieldViolation("request_id", "must be 1 to 128 printable ASCII characters without spaces")


# Numbers and durations


def not_negative(field: str, number: int) -> Violations:
    """Yield a violation for a negative number."""
    if number < 0:
        yield FieldViolation(field, f"must not be negative, and is {number}")


def offsets(**numbers: int) -> Violations:
    """Yield a violation for each negative number."""
    for field, number in numbers.items():
        yield from not_negative(field, number)


def within(field: str, number: float, minimum: float, maximum: float) -> Violations:
    """Yield a violation for a number out of its bounds, as NaN is."""
    if not minimum <= number <= maximum:
        yield FieldViolation(field, f"must be from {minimum:.15g} to {maximum:.15g}, and is {number:.15g}")


def tolerance(field: str, number: float) -> Violations:
    """Yield what is wrong with the difference that is still as good."""
    if not 0 <= number < math.inf:
        yield FieldViolation(field, f"must be finite and not negative, and is {number:g}")


def heartbeat(interval: Duration) -> Violations:
    """Yield what is wrong with the interval of heartbeats; 0 means none."""
    if interval.seconds or interval.nanos:
        yield from duration("heartbeat_interval", interval, MIN_HEARTBEAT_SECONDS, MAX_TIMEOUT_SECONDS)


def duration(field: str, value: Duration, minimum_seconds: float, maximum_seconds: float) -> Violations:
    """Yield what is wrong with a duration that has bounds."""
    seconds = value.seconds + value.nanos / 1e9
    if not (minimum_seconds <= seconds <= maximum_seconds and 0 <= value.nanos < 10**9):
        yield FieldViolation(field, f"must be from {_seconds(minimum_seconds)} to {_seconds(maximum_seconds)}")


def _seconds(seconds: float) -> str:
    """Write a bound in words: `100 ms`, `366 days`."""
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    days = seconds / _SECONDS_PER_DAY
    return f"{days:.15g} days" if days.is_integer() else f"{seconds:.15g} seconds"


# Lists and maps


def at_most(field: str, values: Sequence[object], maximum: int) -> Violations:
    """Yield a violation for too many values."""
    if len(values) > maximum:
        yield FieldViolation(field, f"has {len(values)} values; at most {maximum} are allowed")


def statuses(field: str, values: Sequence[int]) -> Violations:
    """Yield what is wrong with the statuses that a filter takes."""
    if len(values) > MAX_STATUSES:
        yield from at_most(field, values, MAX_STATUSES)
        return
    for index, status in enumerate(values):
        if status not in lifecycle.LIVE | lifecycle.TERMINAL:
            yield FieldViolation(f"{field}[{index}]", f"{status} is no status that a job can have")


def labels(field: str, values: Mapping[str, str]) -> Violations:
    """Yield what is wrong with labels."""
    if len(values) > MAX_LABELS:
        yield FieldViolation(field, f"has {len(values)} labels; at most {MAX_LABELS} are allowed")
        return
    for key, value in values.items():
        if not _LABEL.fullmatch(key):
            yield FieldViolation(field, f"key {quote(key)} {_LABEL_RULE}")
        yield from text(f"{field}[{quote(key)}]", value, MAX_NAME_LENGTH)


def label_key(field: str, key: str) -> Violations:
    """Yield what is wrong with the key of a label, if there is one."""
    if key and not _LABEL.fullmatch(key):
        yield FieldViolation(field, f"{quote(key)} {_LABEL_RULE}")


def metric_selectors(field: str, selectors: Sequence[MetricSelector]) -> Violations:
    """Yield what is wrong with selectors of metrics."""
    if len(selectors) > MAX_SELECTORS:
        yield FieldViolation(field, f"has {len(selectors)} selectors; at most {MAX_SELECTORS} are allowed")
        return
    for index, selector in enumerate(selectors):
        yield from metric_selector(f"{field}[{index}]", selector)


def metric_selector(field: str, selector: MetricSelector) -> Violations:
    """Yield what is wrong with a selector of metrics."""
    if not (selector.task or selector.metric):
        yield FieldViolation(field, "must name a task or a metric")
    for part in ("task", "metric", "filter"):
        yield from text(f"{field}.{part}", getattr(selector, part), MAX_NAME_LENGTH)
