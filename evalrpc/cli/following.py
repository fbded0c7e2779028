"""Follows a job to its end: as JSON events for a program, as lines in a log, or as a live line on a terminal."""

from collections.abc import Generator, Iterable
from contextlib import suppress
from datetime import timedelta

import click

from evalrpc.cli import wording
from evalrpc.cli.exit_codes import INTERRUPTED, JOB_NOT_COMPLETED, fail
from evalrpc.cli.output import is_terminal, print_json_line, print_table
from evalrpc.client import EvalClient
from evalrpc.errors import EvalrpcError, UnavailableError
from evalrpc.v1.jobs_pb2 import JobEvent, JobFilter, JobInfo, JobStatus

_HEARTBEAT_SECONDS = 5.0


def follow(client: EvalClient, job_id: str, reconnect_timeout: timedelta, *, as_json: bool) -> None:
    """Show the job until it ends, then its metrics. Exits with 1 if it did not complete, with 130 on Ctrl-C."""
    events = _watch(client, job_id, reconnect_timeout, None if as_json else _HEARTBEAT_SECONDS)
    try:
        job = _print_events(events) if as_json else _show(_states(client, events))
    except KeyboardInterrupt:
        events.close()
        fail(INTERRUPTED, f"the job runs on; to watch it again: evalrpc watch {job_id}")
    if not as_json:
        show_outcome(job)
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        raise click.exceptions.Exit(JOB_NOT_COMPLETED)


def follow_all(client: EvalClient, job_filter: JobFilter, *, as_json: bool) -> None:
    """Print a line for every job and each of its changes, until Ctrl-C."""
    shown: dict[str, str] = {}
    breaks = _Breaks(client)
    with suppress(KeyboardInterrupt):
        for event in client.watch_all(job_filter, on_disconnect=breaks.report):
            breaks.over()
            if as_json:
                print_json_line(event)
            elif event.HasField("job") and shown.get(event.job.job_id) != (line := wording.describe(event.job)):
                shown[event.job.job_id] = line
                click.echo(f"{event.job.job_id}  {line}")
            if event.terminal:
                shown.pop(event.job.job_id, None)


def show_outcome(job: JobInfo) -> None:
    """Print a job's metrics and, on stderr, where its files are and, if it did not complete, why."""
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        for line in (*job.error.log_tail, f"evalrpc: job {job.job_id}: {wording.describe(job)}"):
            click.echo(line, err=True)
    if job.status == JobStatus.JOB_STATUS_COMPLETED or job.results:
        _show_results(job)


def _show_results(job: JobInfo) -> None:
    print_table(wording.METRIC_COLUMNS, wording.metric_rows(job))
    for result in job.results.values():
        if provenance := wording.provenance(result):
            click.echo(f"evaluated with {provenance}", err=True)
        click.echo(f"results on the server: {result.results}", err=True)
        if result.metrics_truncated:
            shown = f"{len(result.metrics)} of {result.metric_count} metrics are shown"
            click.echo(f"{shown}; all of them: evalrpc metrics {job.job_id}", err=True)
    click.echo(f"to copy them here: evalrpc download {job.job_id} DIR", err=True)


def _watch(
    client: EvalClient, job_id: str, reconnect_timeout: timedelta, heartbeat_seconds: float | None
) -> Generator[JobEvent, None, None]:
    breaks = _Breaks(client)
    for event in client.watch(
        job_id,
        heartbeat_interval_seconds=heartbeat_seconds,
        reconnect_timeout_seconds=reconnect_timeout.total_seconds() or None,
        on_disconnect=breaks.report,
    ):
        breaks.over()
        yield event


class _Breaks:
    """Reports on stderr the first of several consecutive disconnects."""

    def __init__(self, client: EvalClient) -> None:
        self._client = client
        self._reported = False

    def report(self, error: EvalrpcError, delay_seconds: float) -> None:
        del delay_seconds
        if not self._reported:
            click.echo(f"evalrpc: lost the server at {self._client.address}, trying again ({error.message})", err=True)
        self._reported = True

    def over(self) -> None:
        self._reported = False


def _states(client: EvalClient, events: Iterable[JobEvent]) -> Generator[JobInfo, None, None]:
    """Yield the job after each event. Its queue position changes without an event, so it is fetched on heartbeats."""
    job = JobInfo()
    for event in events:
        if event.HasField("job"):
            job = event.job
        elif job.status == JobStatus.JOB_STATUS_QUEUED:
            with suppress(UnavailableError, TimeoutError):
                job = client.get_job(job.job_id)
        yield job


def _print_events(events: Iterable[JobEvent]) -> JobInfo:
    job = JobInfo()
    for event in events:
        print_json_line(event)
        job = event.job
    return job


def _show(states: Iterable[JobInfo]) -> JobInfo:
    return _show_live(states) if is_terminal() else _show_lines(states)


def _show_lines(states: Iterable[JobInfo]) -> JobInfo:
    job, shown, finished = JobInfo(), "", _Finished()
    for job in states:
        for line in finished.news(job):
            click.echo(line)
        line = wording.describe(job)
        if line != shown:
            click.echo(line)
        shown = line
    return job


class _Finished:
    """The metrics already printed of tasks that finished before the job."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def news(self, job: JobInfo) -> list[str]:
        """Return a line for each new metric of an unfinished job: those of a finished one come in a table."""
        if job.status in wording.TERMINAL:
            return []
        lines = [line for line in wording.metric_lines(job) if line not in self._shown]
        self._shown.update(lines)
        return lines


def _show_live(states: Iterable[JobInfo]) -> JobInfo:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description}", markup=False)
    job, finished = JobInfo(), _Finished()
    with Progress(SpinnerColumn(), BarColumn(bar_width=30), TimeElapsedColumn(), words, transient=True) as display:
        line = display.add_task("", total=None)
        for job in states:
            for news in finished.news(job):
                display.console.print(news, markup=False, highlight=False)
            done, total = job.progress.done, job.progress.total or None
            display.update(line, description=wording.describe(job), completed=done, total=total)
    return job
