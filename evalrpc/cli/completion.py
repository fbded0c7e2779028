"""What a shell completes: the ids of jobs, harnesses, tasks, models and labels, as the server has them.

Each function has the signature that click wants of `shell_complete`. The server has a second to answer; if it does not, or
anything else goes wrong, nothing is completed.
"""

import gc
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

import click
from click.shell_completion import CompletionItem

from evalrpc.cli import wording
from evalrpc.cli.credential_flags import given_credentials
from evalrpc.cli.wording import BASELINE_LABEL
from evalrpc.client import EvalClient
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.served_models import model_of
from evalrpc.printable import printable
from evalrpc.v1.jobs_pb2 import JobFilter, JobInfo, JobView

_MAX_SECONDS: Final = 1.0
_MAX_JOBS: Final = 50
_MAX_NAMES: Final = 1000
_LATEST: Final = CompletionItem("@latest", help="the newest job")
_LATEST_RUN: Final = CompletionItem("@latest", help="the newest suite run")


def jobs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of a job: one of the latest or, once it is long enough to search for, of any."""
    del parameter
    if incomplete.startswith("@"):
        return [_LATEST] if _LATEST.value.startswith(incomplete) else []

    def items(client: EvalClient) -> list[CompletionItem]:
        listed = _latest_jobs(client, JobFilter(job_id_prefix=_prefix(incomplete)))
        return [_job_item(job) for job in listed if job.job_id.startswith(incomplete.lower())]

    return _ask(context, items)


def harnesses(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a harness."""
    del parameter
    return _ask(context, lambda client: _items(incomplete, (harness.name for harness in client.list_harnesses())))


def tasks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a task of the harness that was named before it; of several with commas, the last."""
    del parameter
    before, last = _split_last(incomplete)
    return _ask(context, lambda client: _items(last, client.list_tasks(last, _harness(context)), before))


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a model type of the harness that was named before it."""
    del parameter
    return _ask(context, lambda client: _items(incomplete, client.list_models(incomplete, _harness(context))))


def suites(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a suite."""
    del parameter
    return _ask(context, lambda client: _items(incomplete, (suite.name for suite in client.list_suites())))


def suite_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of one of the latest suite runs."""
    del parameter
    if incomplete.startswith("@"):
        return [_LATEST_RUN] if _LATEST_RUN.value.startswith(incomplete) else []

    def items(client: EvalClient) -> list[CompletionItem]:
        runs = islice(client.list_suite_runs(page_size=_MAX_JOBS), _MAX_JOBS)
        return _items(incomplete.lower(), (run.suite_run_id for run in runs))

    return _ask(context, items)


def owners(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the owner of a job, as the latest jobs have them."""
    del parameter
    return _ask(context, lambda client: _items(incomplete, {job.owner for job in _latest_jobs(client) if job.owner}))


def labels(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete `key=value`, as the latest jobs have it."""
    del parameter
    return _ask(
        context,
        lambda client: _items(
            incomplete, {f"{key}={value}" for job in _latest_jobs(client) for key, value in job.labels.items()}
        ),
    )


def label_keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the key of a label that the latest jobs have; of several with commas, the last."""
    del parameter
    before, last = _split_last(incomplete)
    return _ask(context, lambda client: _items(last, {key for job in _latest_jobs(client) for key in job.labels}, before))


def baselines(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a baseline."""
    del parameter

    def items(client: EvalClient) -> list[CompletionItem]:
        listed = _latest_jobs(client, JobFilter(label_selector=BASELINE_LABEL))
        return _items(incomplete, {job.labels[BASELINE_LABEL] for job in listed})

    return _ask(context, items)


def _ask(context: click.Context, items: Callable[[EvalClient], list[CompletionItem]]) -> list[CompletionItem]:
    try:
        with EvalClient(_address(context), timeout_seconds=_MAX_SECONDS, **given_credentials(context)) as client:
            return items(client)
    except Exception:  # noqa: BLE001 - the last resort: it would be printed into the line that the person is typing
        return []
    finally:
        gc.collect()  # as in connection.connect


def _address(context: click.Context) -> str | None:
    """Return the address given so far, after the command's name or before it: no command has run that would pass it on."""
    given: str | None = context.params.get("address")
    return given or (_address(context.parent) if context.parent else None)


def _harness(context: click.Context) -> str:
    named = context.params.get("harness") or next(iter(context.params.get("harnesses") or ()), "")
    return str(named)


def _latest_jobs(client: EvalClient, job_filter: JobFilter | None = None) -> Iterable[JobInfo]:
    return islice(client.list_jobs(job_filter, _MAX_JOBS, view=JobView.JOB_VIEW_BASIC), _MAX_JOBS)


def _job_item(job: JobInfo) -> CompletionItem:
    return CompletionItem(job.job_id, help=printable(f"{wording.status_name(job.status)} {model_of(job.request)}"))


def _prefix(incomplete: str) -> str:
    try:
        return canonical_prefix(incomplete)
    except ValueError:
        return ""


def _split_last(incomplete: str) -> tuple[str, str]:
    before, comma, last = incomplete.rpartition(",")
    return before + comma, last


def _items(incomplete: str, names: Iterable[str], before: str = "") -> list[CompletionItem]:
    """Return the names that begin so, after what stands before them. One that a terminal can't show is no help."""
    fitting = (name for name in islice(names, _MAX_NAMES) if name.startswith(incomplete) and printable(name) == name)
    return [CompletionItem(before + name) for name in sorted(fitting)]
