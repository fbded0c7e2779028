"""The ways to name a job: by its id or the beginning of it, `@latest`, `@latest:label=value`, `@baseline:NAME`."""

from collections.abc import Callable
from itertools import islice
from typing import Any, Final, TypeVar

import click

from evalrpc.cli import completion, wording
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.wording import BASELINE_LABEL
from evalrpc.client import EvalClient
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.label_selectors import parse_selector
from evalrpc.jobs.served_models import model_of
from evalrpc.v1.jobs_pb2 import JobFilter, JobInfo, JobView

_LATEST: Final = "@latest"
_BASELINE: Final = "@baseline"
_UUID_CHARACTERS: Final = 36
_MAX_SHOWN: Final = 5
_HINT: Final = "a job is given by its id, the first 4 characters of it or more, @latest, @latest:LABEL=VALUE or @baseline:NAME"

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def job_argument(name: str = "job_id", metavar: str = "JOB", **attributes: Any) -> Callable[[FunctionT], FunctionT]:
    """Add an argument that names a job, for `resolve`."""
    return click.argument(name, metavar=metavar, shell_complete=completion.jobs, **attributes)


def resolve(client: EvalClient, text: str) -> str:
    """Return the id of the job that a text names, without a call if it is a whole id. Exits with 2 if that is not one job."""
    kind, _, rest = text.partition(":")
    if kind == _LATEST:
        return _newest(client, _labelled(text, rest), f"no job matches {text}")
    if kind == _BASELINE and rest:
        return _newest(client, baseline_filter(rest), f"there is no baseline {rest}: `evalrpc baseline list` lists them")
    try:
        prefix = canonical_prefix(text)
    except ValueError:
        prefix = ""
    if not prefix:
        fail(ExitCode.WRONG_CALL, f"there is no job {text}: {_HINT}")
    return prefix if len(prefix) == _UUID_CHARACTERS else _only(client, prefix)


def baseline_filter(name: str) -> JobFilter:
    """Return the filter for the jobs that are the baseline of this name: one, but for a moment while it moves."""
    return JobFilter(labels={BASELINE_LABEL: name})


def _labelled(text: str, selector: str) -> JobFilter:
    try:
        parse_selector(selector)
    except ValueError as error:
        fail(ExitCode.WRONG_CALL, f"{text}, after the colon: {error}")
    return JobFilter(label_selector=selector)


def _newest(client: EvalClient, job_filter: JobFilter, otherwise: str) -> str:
    job = next(iter(_first(client, job_filter, 1)), None)
    if job is None:
        fail(ExitCode.WRONG_CALL, otherwise)
    return job.job_id


def _only(client: EvalClient, prefix: str) -> str:
    matches = _first(client, JobFilter(job_id_prefix=prefix), _MAX_SHOWN + 1)
    if not matches:
        fail(ExitCode.WRONG_CALL, f"there is no job whose id begins with {prefix}")
    if len(matches) > 1:
        facts = ((job.job_id, wording.status_name(job.status), model_of(job.request)) for job in matches[:_MAX_SHOWN])
        shown = [f"  {'  '.join(each)}" for each in facts]
        more = ["  and more"] if len(matches) > _MAX_SHOWN else []
        fail(ExitCode.WRONG_CALL, f"the ids of several jobs begin with {prefix}:", *shown, *more)
    return matches[0].job_id


def _first(client: EvalClient, job_filter: JobFilter, count: int) -> list[JobInfo]:
    return list(islice(client.list_jobs(job_filter, count, view=JobView.JOB_VIEW_BASIC), count))
