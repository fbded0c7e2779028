"""The ways to name a suite run, and what is said of one. A job of a run names it, too."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

import click

from evalrpc.cli import completion
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.job_ids import resolve
from evalrpc.client import EvalClient
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.model_arguments import model_argument
from evalrpc.jobs.suite_states import SUITE_LABEL
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobFilter, JobView
from evalrpc.v1.suites_pb2 import SuiteRun

_LATEST: Final = "@latest"
_UUID_CHARACTERS: Final = 36
_MAX_JOBS: Final = 10_000
"""How many jobs of suites are looked at, the newest first, for the beginning of a run's id."""
_MAX_SHOWN: Final = 5
_HINT: Final = (
    "a suite run is given by its id, the first 4 characters of it or more, @latest, @latest:LABEL=VALUE or @baseline:NAME"
)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def run_argument(name: str = "suite_run_id", metavar: str = "RUN", **attributes: Any) -> Callable[[FunctionT], FunctionT]:
    """Add an argument that names a suite run, for `resolve_run`."""
    return click.argument(name, metavar=metavar, shell_complete=completion.suite_runs, **attributes)


def resolve_run(client: EvalClient, text: str) -> str:
    """Return the id of the suite run that a text names, without a call if it is a whole id. Exits with 2 if it is not one."""
    kind, _, rest = text.partition(":")
    if kind == _LATEST:
        labels = ",".join(filter(None, (SUITE_LABEL, rest)))
        return _run_of(client, f"{_LATEST}:{labels}", text)
    if kind.startswith("@"):
        return _run_of(client, text, text)
    try:
        prefix = canonical_prefix(text)
    except ValueError:
        prefix = ""
    if not prefix:
        fail(ExitCode.WRONG_CALL, f"there is no suite run {text}: {_HINT}")
    return prefix if len(prefix) == _UUID_CHARACTERS else _only(client, prefix)


def model_name(run: SuiteRun) -> str:
    """Return what tells the model of a run from others: its type, and the weights that an argument names."""
    submission = run.submission
    requests = [submission.request, *(submission.harness_requests[name] for name in sorted(submission.harness_requests))]
    return " ".join(dict.fromkeys(part for request in requests for part in _model_parts(request)))


def _model_parts(request: EvaluateRequest) -> Iterator[str]:
    if request.model:
        yield request.model
    if name := model_argument(request):
        yield request.model_args.fields[name].string_value


def _run_of(client: EvalClient, job: str, text: str) -> str:
    suite_run_id = client.get_job(resolve(client, job)).suite_run_id
    if not suite_run_id:
        fail(ExitCode.WRONG_CALL, f"the job {text} is of no suite run")
    return suite_run_id


def _only(client: EvalClient, prefix: str) -> str:
    jobs = client.list_jobs(JobFilter(label_selector=SUITE_LABEL), view=JobView.JOB_VIEW_BASIC)
    found = {job.suite_run_id for job in islice(jobs, _MAX_JOBS) if job.suite_run_id.startswith(prefix)}
    if not found:
        fail(ExitCode.WRONG_CALL, f"there is no suite run whose id begins with {prefix}")
    if len(found) > 1:
        more = ["  and more"] if len(found) > _MAX_SHOWN else []
        shown = [f"  {suite_run_id}" for suite_run_id in sorted(found)[:_MAX_SHOWN]]
        fail(ExitCode.WRONG_CALL, f"the ids of several suite runs begin with {prefix}:", *shown, *more)
    return found.pop()
