"""The types of flag values, and the flags that filter jobs."""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Final, TypeVar

import click
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.cli import completion
from evalrpc.client import values
from evalrpc.client.arguments import parse_arguments, parse_value
from evalrpc.errors import UnsendableError
from evalrpc.v1.history_pb2 import TrendOptions
from evalrpc.v1.jobs_pb2 import JobFilter, JobStatus

_T = TypeVar("_T")

_UNIT_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")

STATUS_NAMES: Final = [name.removeprefix("JOB_STATUS_").lower() for name in JobStatus.keys()[1:]]
"""The statuses as flags name them."""


def parse_duration(text: str) -> timedelta:
    """Parse `90`, `90s`, `1h30m`, `1.5h`, `2d`; a bare number is in seconds. Raises ValueError."""
    if _DURATION.fullmatch(text):
        return timedelta(seconds=sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))
    return timedelta(seconds=float(text))


def duration(text: str) -> timedelta:
    """Parse a duration for a flag."""
    try:
        return parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no duration such as 90s, 30m, 2h or 1d12h") from error


def time(text: str) -> Timestamp:
    """Parse a time for a flag: ISO 8601, local if it names no zone, or a duration back from now."""
    timestamp = Timestamp()
    try:
        timestamp.FromDatetime(_parse_time(text))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is neither a time such as 2026-02-14T10:30 nor a duration such as 2h") from error
    return timestamp


def arguments(text: str) -> dict[str, Any]:
    """Parse a JSON object or `k=v,k2=v2` for a flag."""
    try:
        return parse_arguments(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def argument_value(text: str) -> Any:
    """Read the value of one argument: as in `k=v,k2=v2`, but that a list or an object in JSON is one. Raises ValueError for
    one of numeric characters that are no digits."""
    if text.lstrip().startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return parse_value(text)


def label(text: str) -> tuple[str, str]:
    """Parse one label, `k=v`, for a flag."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{text!r} is not of the form key=value")
    return key, value


def once_each(pairs: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Return pairs as a dict. Raises ValueError for several values of one key, of which all but the last would be lost."""
    found: dict[str, _T] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"{key!r} has several values, and can have one" if key else "there are several values for all")
        found[key] = value
    return found


def require_once_each(_context: click.Context, _flag: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> Any:
    """Return the pairs of a repeated flag. Raises click.BadParameter for several values of one key."""
    try:
        once_each(pairs)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return pairs


def _parse_time(text: str) -> datetime:
    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        return datetime.fromisoformat(text).astimezone(UTC)


def split_commas(texts: tuple[str, ...]) -> list[str]:
    """Split `A,B` and drop empty parts."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def filter_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the flags that select jobs. The command gets them as `job_filter`."""

    @wraps(function)
    def command(
        statuses: tuple[str, ...],
        labels: tuple[tuple[str, str], ...],
        selectors: tuple[str, ...],
        since: Timestamp | None,
        until: Timestamp | None,
        models: tuple[str, ...],
        tasks: tuple[str, ...],
        harnesses: tuple[str, ...],
        owners: tuple[str, ...],
        **others: Any,
    ) -> None:
        try:
            job_filter = values.build(
                JobFilter,
                statuses=statuses_of(statuses),
                labels=dict(labels),
                models=models,
                tasks=tasks,
                harnesses=harnesses,
                owners=owners,
                created_after=since,
                created_before=until,
                label_selector=joined(selectors),
            )
        except UnsendableError as error:
            raise click.UsageError(str(error)) from error
        function(job_filter=job_filter, **others)

    for option in reversed(_FILTER_OPTIONS):
        command = option(command)
    return command


def _names(
    flag: str, parameter: str, complete: Callable[..., Any], text: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option for names, which may be repeated."""
    return click.option(flag, parameter, multiple=True, shell_complete=complete, metavar="NAME", help=text)


def status_option(things: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that selects by status. The command gets them as `statuses`."""
    return click.option(
        "--status",
        "statuses",
        multiple=True,
        type=click.Choice(STATUS_NAMES, case_sensitive=False),
        help=f"Only {things} with this status. May be repeated.",
    )


def limit_option(things: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that bounds how many of them are printed; 0 for all."""
    return click.option(
        "--limit",
        type=click.IntRange(0),
        default=50,
        show_default=True,
        metavar="N",
        help=f"Print at most this many {things}; 0 prints all.",
    )


def selector_option(things: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that selects by labels. The command gets them as `selectors`."""
    return click.option(
        *("-l", "--selector", "selectors"),
        multiple=True,
        metavar="SELECTOR",
        help=f"Only {things} with labels as Kubernetes selects them, such as 'run=x,step!=5,team in (a,b),!draft'.",
    )


def statuses_of(names: Iterable[str]) -> list["JobStatus.ValueType"]:
    """Return the statuses with these names."""
    return [JobStatus.Value(f"JOB_STATUS_{name.upper()}") for name in names]


def joined(selectors: Iterable[str]) -> str:
    """Return the selector that takes what all of these take."""
    return ",".join(text for text in selectors if text.strip())


_FILTER_OPTIONS: Final = (
    status_option("jobs"),
    click.option(
        "--label",
        "labels",
        type=label,
        callback=require_once_each,
        multiple=True,
        shell_complete=completion.labels,
        metavar="K=V",
        help="Only jobs with this label. May be repeated.",
    ),
    selector_option("jobs"),
    _names("--model", "models", completion.models, "Only jobs of this model type. May be repeated."),
    _names("--task", "tasks", completion.tasks, "Only jobs with this task. May be repeated."),
    _names("--harness", "harnesses", completion.harnesses, "Only jobs of this harness. May be repeated."),
    _names("--owner", "owners", completion.owners, "Only jobs of this owner; '' for jobs without one. May be repeated."),
    click.option(
        "--since",
        type=time,
        metavar="TIME",
        help="Only jobs created at this time or later: 2026-02-14T10:30, or back from now, such as 2h.",
    ),
    click.option("--until", type=time, metavar="TIME", help="Only jobs created before this time."),
)


def trend_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the flags that say what is an alarm. The command gets them as `options`."""

    @wraps(function)
    def command(tolerance: float, direction: str | None, **others: Any) -> None:
        is_higher_better = None if direction is None else direction == "higher"
        function(options=TrendOptions(tolerance=tolerance, higher_is_better=is_higher_better), **others)

    for option in (
        click.option(
            "--direction",
            type=click.Choice(["higher", "lower"]),
            help="For alarms: what is better, where the harness does not say.",
        ),
        click.option(
            "--tolerance", type=float, default=0.0, metavar="X", help="For alarms: a fall of this is none. Default: 0."
        ),
    ):
        command = option(command)
    return command


def labels_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the flag that gives a job labels. The command gets them as `labels`."""
    return click.option(
        "--label",
        "labels",
        type=label,
        callback=require_once_each,
        shell_complete=completion.labels,
        metavar="K=V",
        multiple=True,
        help=f"{help_text} May be repeated.",
    )


watch_option: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.option(
    "--watch", is_flag=True, help="Follow the job until it ends; exit with 1 if it does not complete."
)
"""Adds the flag that follows what was submitted."""

reconnect_timeout_option: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.option(
    "--reconnect-timeout",
    type=duration,
    default="10m",
    show_default=True,
    metavar="DURATION",
    help="Keep trying for this long to reach a server that is gone; 0 tries forever.",
)
"""Adds the flag for how long a watch outlives its server."""
