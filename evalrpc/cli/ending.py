"""The commands that cancel and delete jobs: one, or all that match a filter."""

import sys
from collections.abc import Callable, Collection
from typing import Final

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import client_options, connect
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import print_json, print_json_line, print_line
from evalrpc.cli.parameters import filter_options
from evalrpc.client import EvalClient
from evalrpc.errors import JobFinishedError, JobNotFinishedError, JobNotFoundError, JobNotQueuedError
from evalrpc.v1.jobs_pb2 import DeleteJobResponse, JobFilter, JobInfo, JobStatus, JobView

_LARGEST_PAGE: Final = 1000
_OVERTAKEN: Final = (JobFinishedError, JobNotFinishedError, JobNotFoundError, JobNotQueuedError)
"""What became of a job between the listing and the call, so that it is not one of those that were meant any more."""

_yes_option: Final = click.option("--yes", is_flag=True, help="Do not ask before several jobs are changed.")


@click.command(short_help="Cancel a job, or all that match a filter.")
@job_argument(metavar="[JOB]", required=False)
@filter_options
@click.option("--reason", default="", metavar="TEXT", help="Say why, for those who look later.")
@click.option("--queued-only", is_flag=True, help="Let a job that runs go on, and exit with 2 then if it is the only one.")
@_yes_option
@client_options
def cancel_command(
    job_id: str | None, job_filter: JobFilter, reason: str, queued_only: bool, yes: bool, address: str | None, as_json: bool
) -> None:
    """Cancel a job, or all queued and running jobs that match a filter. A running job is ended with all its processes, which
    takes a moment.

    With a filter, the command asks first, unless --yes is given, and prints a line for each job.
    """
    _require_one(job_id, job_filter)
    statuses = [JobStatus.JOB_STATUS_QUEUED] + ([] if queued_only else [JobStatus.JOB_STATUS_RUNNING])
    with connect(address) as client:
        if job_id:
            job = client.cancel_job(resolve(client, job_id), reason, queued_only=queued_only)
            print_json(job) if as_json else print_line(wording.describe(job))
            return

        def cancel(job_id: str) -> None:
            job = client.cancel_job(job_id, reason, queued_only=queued_only)
            print_json_line(job) if as_json else print_line(f"{job_id}: {wording.describe(job)}")

        _for_each(client, _narrowed(job_filter, statuses), cancel, "cancel", yes=yes)


@click.command(short_help="Delete a job that has ended, or all that match a filter.")
@job_argument(metavar="[JOB]", required=False)
@filter_options
@_yes_option
@client_options
def delete_command(job_id: str | None, job_filter: JobFilter, yes: bool, address: str | None, as_json: bool) -> None:
    """Delete a job that has ended, or all that match a filter, and everything that the server created for them.

    With a filter, the command asks first, unless --yes is given, and prints a line for each job.
    """
    _require_one(job_id, job_filter)
    with connect(address) as client:
        if job_id:
            job_id = resolve(client, job_id)
            client.delete_job(job_id)
            print_json(DeleteJobResponse()) if as_json else print_line(f"deleted {job_id}")
            return

        def delete(job_id: str) -> None:
            client.delete_job(job_id)
            print_json_line(JobInfo(job_id=job_id)) if as_json else print_line(f"deleted {job_id}")

        _for_each(client, _narrowed(job_filter, wording.TERMINAL), delete, "delete", yes=yes)


def _require_one(job_id: str | None, job_filter: JobFilter) -> None:
    if job_id and job_filter != JobFilter():
        raise click.UsageError("give either a JOB or a filter, not both")
    if not job_id and job_filter == JobFilter():
        raise click.UsageError("give a JOB, or a filter such as --label run=x")


def _narrowed(job_filter: JobFilter, statuses: Collection["JobStatus.ValueType"]) -> JobFilter:
    """Return a filter that takes only jobs of these statuses. Raises click.UsageError if it asks for others alone."""
    asked = set(job_filter.statuses) or set(statuses)
    if not asked & set(statuses):
        names = " or ".join(wording.status_name(status).lower() for status in statuses)
        raise click.UsageError(f"--status: a job has to be {names} for this")
    narrowed = JobFilter()
    narrowed.CopyFrom(job_filter)
    narrowed.statuses[:] = sorted(asked & set(statuses))
    return narrowed


def _for_each(client: EvalClient, job_filter: JobFilter, change: Callable[[str], None], verb: str, *, yes: bool) -> None:
    """Change every job that matches, after a question. One that has meanwhile come to another state is left alone."""
    job_ids = [job.job_id for job in client.list_jobs(job_filter, _LARGEST_PAGE, view=JobView.JOB_VIEW_BASIC)]
    if not job_ids:
        print_line("evalrpc: no job matches", err=True)
        return
    if not yes:
        _ask(f"{verb} {len(job_ids)} job{'s' if len(job_ids) > 1 else ''}")
    for job_id in job_ids:
        try:
            change(job_id)
        except _OVERTAKEN as error:
            print_line(f"evalrpc: left alone: {error.message}", err=True)


def is_asked() -> bool:
    """Return whether there is a person who can answer."""
    return sys.stdin.isatty()


def _ask(deed: str) -> None:
    """Exit with 2 unless the person at the terminal agrees."""
    if not is_asked():
        fail(ExitCode.WRONG_CALL, f"this would {deed}: repeat it with --yes")
    if not click.confirm(f"{deed.capitalize()}?", err=True):
        fail(ExitCode.WRONG_CALL, "nothing was changed")
