"""The ways to name a job, and whatever else is named so: by its id or the beginning of it, `@latest`, `@latest:label=value`,
`@baseline:NAME`."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import click

from evalrpc.cli import completion, wording
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.wording import BASELINE_LABEL
from evalrpc.client import EvalClient, values
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.label_selectors import parse_selector
from evalrpc.jobs.served_models import model_of
from evalrpc.v1.jobs_pb2 import JobFilter, JobView

_LATEST: Final = "@latest"
_BASELINE: Final = "@baseline"
_UUID_CHARACTERS: Final = 36
_MAX_SHOWN: Final = 5

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def job_argument(name: str = "job_id", metavar: str = "JOB", **attributes: Any) -> Callable[[FunctionT], FunctionT]:
    """Add an argument that names a job, for `resolve`."""
    return click.argument(name, metavar=metavar, shell_complete=completion.jobs, **attributes)


class Match(NamedTuple):
    """Something that a text may name."""

    id: str
    facts: tuple[str, ...]
    """What tells it from others, for people."""


class Kind(Protocol):
    """A kind of things that have ids."""

    noun: str
    """What one is called, such as `job`."""

    listed_by: str
    """The command that lists them, such as `evalrpc list`."""


class Named(Kind, Protocol):
    """A kind of things that are named in these ways."""

    def newest(self, client: EvalClient, selector: str) -> Match | None:
        """Return the newest with these labels."""

    def beginning(self, client: EvalClient, prefix: str, count: int) -> list[Match]:
        """Return the newest whose ids begin so, no more than `count`."""

    def baseline(self, client: EvalClient, name: str) -> str:
        """Return the id of the one that is the baseline of this name. Exits with 2 if there is none."""


def resolve(client: EvalClient, text: str) -> str:
    """Return the id of the job that a text names, without a call if it is a whole id. Exits with 2 if that is not one job."""
    return resolve_named(client, _Jobs(), text)


def resolve_named(client: EvalClient, named: Named, text: str) -> str:
    """Return the id of the thing that a text names, without a call if it is a whole id. Exits with 2 if that is not one."""
    kind, _, rest = text.partition(":")
    if kind == _LATEST:
        match = named.newest(client, _selector(text, rest))
        return (
            match.id if match else fail(ExitCode.WRONG_CALL, f"no {named.noun} matches {text}: `{named.listed_by}` lists them")
        )
    if kind == _BASELINE and rest:
        return named.baseline(client, rest)
    try:
        prefix = canonical_prefix(text)
    except ValueError:
        prefix = ""
    if not prefix:
        ways = "its id, the first 4 characters of it or more, @latest, @latest:LABEL=VALUE or @baseline:NAME"
        fail(ExitCode.WRONG_CALL, f"there is no {named.noun} {text}: a {named.noun} is given by {ways}")
    return prefix if is_whole(prefix) else only(named, prefix, named.beginning(client, prefix, _MAX_SHOWN + 1))


def is_whole(prefix: str) -> bool:
    """Return whether the beginning of an id is all of it."""
    return len(prefix) == _UUID_CHARACTERS


def only(kind: Kind, prefix: str, matches: Sequence[Match]) -> str:
    """Return the id of the only match. Exits with 2, and says what else begins so, if it is not one."""
    if not matches:
        fail(ExitCode.WRONG_CALL, f"there is no {kind.noun} whose id begins with {prefix}: `{kind.listed_by}` lists them")
    if len(matches) > 1:
        shown = [f"  {'  '.join((match.id, *match.facts))}" for match in matches[:_MAX_SHOWN]]
        more = ["  and more"] if len(matches) > _MAX_SHOWN else []
        fail(ExitCode.WRONG_CALL, f"the ids of several {kind.noun}s begin with {prefix}:", *shown, *more)
    return matches[0].id


def baseline_filter(name: str) -> JobFilter:
    """Return the filter for the jobs that are the baseline of this name: one, but for a moment while it moves."""
    return values.build(JobFilter, labels={BASELINE_LABEL: name})


class _Jobs:
    noun, listed_by = "job", "evalrpc list"

    def newest(self, client: EvalClient, selector: str) -> Match | None:
        return next(iter(self._first(client, JobFilter(label_selector=selector), 1)), None)

    def beginning(self, client: EvalClient, prefix: str, count: int) -> list[Match]:
        return self._first(client, JobFilter(job_id_prefix=prefix), count)

    def baseline(self, client: EvalClient, name: str) -> str:
        jobs = self._first(client, baseline_filter(name), 1)
        return (
            jobs[0].id
            if jobs
            else fail(ExitCode.WRONG_CALL, f"there is no baseline {name}: `evalrpc baseline list` lists them")
        )

    def _first(self, client: EvalClient, job_filter: JobFilter, count: int) -> list[Match]:
        jobs = islice(client.list_jobs(job_filter, count, view=JobView.JOB_VIEW_BASIC), count)
        return [Match(job.job_id, (wording.status_name(job.status), model_of(job.request))) for job in jobs]


def _selector(text: str, selector: str) -> str:
    try:
        parse_selector(selector)
    except ValueError as error:
        fail(ExitCode.WRONG_CALL, f"{text}, after the colon: {error}")
    return selector
