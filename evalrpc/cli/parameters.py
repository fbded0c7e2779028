"""The kinds of values that flags take."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.client.arguments import parse_arguments
from evalrpc.v1.job_pb2 import JobStatus

_UNIT_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")

STATUS_NAMES: Final = [name.removeprefix("JOB_STATUS_").lower() for name in JobStatus.keys()[1:]]
"""The statuses as flags name them."""


def parse_duration(text: str) -> timedelta:
    """Read `90`, `90s`, `1h30m`, `1.5h`, `2d`; a bare number is in seconds. Raises ValueError."""
    if _DURATION.fullmatch(text):
        return timedelta(seconds=sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))
    return timedelta(seconds=float(text))


def duration(text: str) -> timedelta:
    """Read a span of time for a flag."""
    try:
        return parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no duration such as 90s, 30m, 2h or 1d12h") from error


def time(text: str) -> Timestamp:
    """Read a time for a flag: ISO 8601, local where it names no zone, or a duration back from now."""
    timestamp = Timestamp()
    try:
        timestamp.FromDatetime(_parse_time(text))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is neither a time such as 2026-02-14T10:30 nor a duration such as 2h") from error
    return timestamp


def arguments(text: str) -> dict[str, Any]:
    """Read a JSON object or `k=v,k2=v2` for a flag."""
    try:
        return parse_arguments(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def label(text: str) -> tuple[str, str]:
    """Read one label, `k=v`, for a flag."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{text!r} is not of the form key=value")
    return key, value


def _parse_time(text: str) -> datetime:
    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        return datetime.fromisoformat(text).astimezone(UTC)


def split_commas(texts: tuple[str, ...]) -> list[str]:
    """Split `A,B` and drop what is empty."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]
