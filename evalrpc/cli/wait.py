"""`evalrpc wait`: until jobs have ended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta

import click

from evalrpc.cli.connection import connect, table_options
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.following import Breaks
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.job_table import job_columns, job_row, typical_row
from evalrpc.cli.output import Form, GrowingTable, print_json_line
from evalrpc.cli.parameters import duration, reconnect_timeout_option
from evalrpc.cli.wording import TERMINAL
from evalrpc.client import EvalClient
from evalrpc.v1.jobs_pb2 import JobEventType, JobFilter, JobInfo, JobStatus, JobView


@click.command(short_help="Wait until jobs have ended.")
@job_argument("jobs", "JOB...", nargs=-1, required=True)
@click.option("--any", "any_suffices", is_flag=True, help="Wait only until one of them has ended.")
@click.option("--timeout", type=duration, metavar="DURATION", help="Wait no longer than this, then exit with 124.")
@reconnect_timeout_option
@table_options
def wait_command(
    jobs: tuple[str, ...],
    any_suffices: bool,
    timeout: timedelta | None,
    reconnect_timeout: timedelta,
    address: str | None,
    form: Form,
) -> None:
    """Wait until all of these jobs have ended, and print each when it has.

    Exits with 1 if any of those that were printed did not complete.
    """
    with connect(address) as client:
        job_ids = list(dict.fromkeys(resolve(client, text) for text in jobs))
        show, ended = print_json_line if form in (Form.JSON, Form.JSONL) else _table(form), []
        try:
            for job in _ended(client, job_ids, timeout, reconnect_timeout):
                show(job)
                ended.append(job.status)
                if any_suffices:
                    break
        except TimeoutError:
            if timeout is None:
                raise  # it was an answer that took too long
            left = len(job_ids) - len(ended)
            fail(ExitCode.TIMED_OUT, f"the time is over, and {left} of {len(job_ids)} jobs have not ended: they go on")
        except KeyboardInterrupt:
            fail(ExitCode.INTERRUPTED)
    if set(ended) != {JobStatus.JOB_STATUS_COMPLETED}:
        raise click.exceptions.Exit(ExitCode.NOT_PASSED)


def _table(form: Form) -> Callable[[JobInfo], None]:
    table = GrowingTable(form, job_columns(()), typical_row(()))
    return lambda job: table.print_row(job_row(job, ()))


def _ended(
    client: EvalClient, job_ids: Sequence[str], timeout: timedelta | None, reconnect_timeout: timedelta
) -> Iterator[JobInfo]:
    """Yield each job once it has ended. Raises TimeoutError.

    The stream has begun, and sent its BOOKMARK, before the jobs are looked at, so that no end is missed. With a timeout they
    are looked at before as well, however short it is.
    """
    pending, breaks = set(job_ids), Breaks(client)

    def look(named: Sequence[str]) -> Iterator[JobInfo]:
        for job_id in filter(pending.__contains__, named):
            job = client.get_job(job_id)
            if job.status in TERMINAL:
                pending.remove(job_id)
                yield job

    if timeout is not None:
        yield from look(job_ids)
        if not pending:
            return
    events = client.watch_all(
        JobFilter(statuses=TERMINAL),
        view=JobView.JOB_VIEW_BASIC,
        skip_snapshots=True,
        timeout_seconds=None if timeout is None else timeout.total_seconds(),
        reconnect_timeout_seconds=reconnect_timeout.total_seconds() or None,
        on_disconnect=breaks.report,
    )
    with closing(events):
        for event in events:
            breaks.over()
            named = job_ids if event.type == JobEventType.JOB_EVENT_TYPE_BOOKMARK else [event.job.job_id]
            yield from look(named)
            if not pending:
                return
