"""The ways to name a suite run, and what is said of one. A job of a run names it, too."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import click

from evalrpc.cli import completion
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.job_ids import Match, resolve, resolve_named
from evalrpc.cli.wording import status_name
from evalrpc.client import EvalClient
from evalrpc.jobs.model_arguments import model_argument
from evalrpc.v1.jobs_pb2 import EvaluateRequest
from evalrpc.v1.suites_pb2 import SuiteRun

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def run_argument(name: str = "suite_run_id", metavar: str = "RUN", **attributes: Any) -> Callable[[FunctionT], FunctionT]:
    """Add an argument that names a suite run, for `resolve_run`."""
    return click.argument(name, metavar=metavar, shell_complete=completion.suite_runs, **attributes)


def resolve_run(client: EvalClient, text: str) -> str:
    """Return the id of the suite run that a text names, without a call if it is a whole id. Exits with 2 if it is not one."""
    return resolve_named(client, _SuiteRuns(), text)


class _SuiteRuns:
    noun, listed_by = "suite run", "evalrpc suite-runs"

    def newest(self, client: EvalClient, selector: str) -> Match | None:
        return next(_matches(client.list_suite_runs(label_selector=selector, page_size=1)), None)

    def beginning(self, client: EvalClient, prefix: str, count: int) -> list[Match]:
        return list(islice(_matches(client.list_suite_runs(suite_run_id_prefix=prefix, page_size=count)), count))

    def baseline(self, client: EvalClient, name: str) -> str:
        """The run of the job that is the baseline."""
        text = f"@baseline:{name}"
        suite_run_id = client.get_job(resolve(client, text)).suite_run_id
        return suite_run_id or fail(ExitCode.WRONG_CALL, f"the job {text} is of no suite run: `{self.listed_by}` lists them")


def _matches(runs: Iterator[SuiteRun]) -> Iterator[Match]:
    for run in runs:
        yield Match(run.suite_run_id, (status_name(run.status), run.suite.name, model_name(run)))


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
