"""Follows a job to its end: as JSON events for a program, as lines in a log, or as a live line on a terminal."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta

import click

from evalrpc.cli import job_table, wording
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.job_table import job_columns, job_row, typical_row
from evalrpc.cli.output import Form, GrowingTable, is_terminal, print_items, print_json_line, print_line, terminal_cells
from evalrpc.cli.tables import Cell
from evalrpc.client import EvalClient
from evalrpc.errors import EvalrpcError, UnavailableError
from evalrpc.printable import printable
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.jobs_pb2 import JobEvent, JobEventType, JobFilter, JobInfo, JobStatus

_HEARTBEAT_SECONDS = 5.0
_BAR_CELLS = 30
_POSITION_MAY_HAVE_CHANGED = (JobEventType.JOB_EVENT_TYPE_BOOKMARK, JobEventType.JOB_EVENT_TYPE_UPDATED)


def follow(client: EvalClient, job_id: str, reconnect_timeout: timedelta, form: Form) -> None:
    """Show the job until it ends, then its metrics. Exits with 1 if it did not complete, with 130 on Ctrl-C."""
    as_json = form in (Form.JSON, Form.JSONL)
    events = _watch(client, job_id, reconnect_timeout, None if as_json else _HEARTBEAT_SECONDS)
    try:
        job = _print_events(events) if as_json else _show(_states(client, events), form)
    except KeyboardInterrupt:
        events.close()
        fail(ExitCode.INTERRUPTED, f"the job runs on; to watch it again: evalrpc watch {job_id}")
    if not as_json:
        show_outcome(job, form)
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        raise click.exceptions.Exit(ExitCode.NOT_PASSED)


def follow_all(client: EvalClient, job_filter: JobFilter, label_columns: Sequence[str], form: Form) -> None:
    """Print a row, or an event as JSON, for every job and each of its changes, until Ctrl-C."""
    show = print_json_line if form in (Form.JSON, Form.JSONL) else _EventTable(label_columns, form).show
    breaks = Breaks(client)
    with suppress(KeyboardInterrupt):
        for event in client.watch_all(job_filter, on_disconnect=breaks.report):
            breaks.over()
            show(event)


class _EventTable:
    """A table with a row for each change of a job that can be seen in it, however much time has passed."""

    def __init__(self, label_columns: Sequence[str], form: Form) -> None:
        self._label_columns = label_columns
        self._table = GrowingTable(form, job_columns(label_columns), typical_row(label_columns))
        self._shown: dict[str, tuple[Cell, ...]] = {}

    def show(self, event: JobEvent) -> None:
        """Print the job of an event, unless it was printed like this before. The first event, of whatever type, brings the
        header: the server follows."""
        self._table.print_header()
        if not event.HasField("job"):
            return
        job_id, status, duration, *others = job_row(event.job, self._label_columns)
        if event.type == JobEventType.JOB_EVENT_TYPE_DELETED:
            status = "DELETED" if event.terminal else "LEFT"
        if self._shown.get(event.job.job_id) != (status, *others):
            self._table.print_row((job_id, status, duration, *others))
        self._shown[event.job.job_id] = (status, *others)
        if event.terminal or event.type == JobEventType.JOB_EVENT_TYPE_DELETED:
            del self._shown[event.job.job_id]


def show_outcome(job: JobInfo, form: Form) -> None:
    """Print a job's metrics and, on stderr, where its files are, what is doubtful and, if it did not complete, why."""
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        for line in wording.new_lines(job.error.log_tail, job.error.message):
            print_line(line, err=True)
        print_line(f"evalrpc: job {job.job_id}: {wording.describe(job)}", err=True)
    if job.status == JobStatus.JOB_STATUS_COMPLETED or job.results:
        _show_results(job, form)
    for warning in job.warnings:
        print_line(f"evalrpc: warning: {warning}", err=True)


def _show_results(job: JobInfo, form: Form) -> None:
    print_items(form, wording.METRIC_COLUMNS, wording.metric_rows(job), wording.model_metrics(job))
    for result in job.results.values():
        if provenance := wording.provenance(result):
            print_line(f"evaluated with {provenance}", err=True)
        print_line(f"results on the server: {result.results}", err=True)
        if result.metrics_truncated:
            shown = f"{len(result.metrics)} of {result.metric_count} metrics are shown"
            print_line(f"{shown}; all of them: evalrpc metrics {job.job_id}", err=True)
    print_line(f"to copy them here: evalrpc download {job.job_id} DIR", err=True)


def _watch(
    client: EvalClient, job_id: str, reconnect_timeout: timedelta, heartbeat_seconds: float | None
) -> Generator[JobEvent, None, None]:
    breaks = Breaks(client)
    for event in client.watch(
        job_id,
        heartbeat_interval_seconds=heartbeat_seconds,
        reconnect_timeout_seconds=reconnect_timeout.total_seconds() or None,
        on_disconnect=breaks.report,
    ):
        breaks.over()
        yield event


class Breaks:
    """Reports on stderr the first of several consecutive disconnects."""

    def __init__(self, client: EvalClient) -> None:
        self._client = client
        self._reported = False

    def report(self, error: EvalrpcError, delay_seconds: float) -> None:
        """Report a disconnect, unless the one before it was reported and nothing has come since."""
        del delay_seconds
        if not self._reported:
            print_line(f"evalrpc: lost the server at {self._client.address}, trying again ({error.message})", err=True)
        self._reported = True

    def over(self) -> None:
        """Record that something has come."""
        self._reported = False


def _states(client: EvalClient, events: Iterable[JobEvent]) -> Generator[JobInfo, None, None]:
    """Yield the job after each event. Its queue position is in snapshots only, so it is fetched on heartbeats and updates."""
    job = JobInfo()
    for event in events:
        if event.HasField("job"):
            job = event.job
        if job.status == JobStatus.JOB_STATUS_QUEUED and event.type in _POSITION_MAY_HAVE_CHANGED:
            with suppress(UnavailableError, TimeoutError):
                job = client.get_job(job.job_id)
        yield job


def _print_events(events: Iterable[JobEvent]) -> JobInfo:
    job = JobInfo()
    for event in events:
        print_json_line(event)
        job = event.job
    return job


def _show(states: Iterable[JobInfo], form: Form) -> JobInfo:
    if is_terminal() and form is not Form.CSV:
        return _show_live(states)
    return _show_lines(states, err=form is Form.CSV)  # so that stdout has nothing but the table


def _show_lines(states: Iterable[JobInfo], *, err: bool) -> JobInfo:
    job, shown, news = JobInfo(), "", _News()
    for job in states:
        for line in news.of(job):
            print_line(line, err=err)
        line = wording.describe(job)
        if line != shown:
            print_line(line, err=err)
        shown = line
    return job


class _News:
    """What is printed once: the metrics of tasks that finish before the job, and what clients change of it."""

    def __init__(self) -> None:
        self._shown: set[str] = set()
        self._settings = ""

    def of(self, job: JobInfo) -> list[str]:
        """Return the lines that are new."""
        settings, self._settings = self._settings, wording.settings(job)
        updated = [f"updated: {self._settings}"] if settings not in ("", self._settings) else []
        return updated + self._metrics(job)

    def _metrics(self, job: JobInfo) -> list[str]:
        """Return a line for each new metric of an unfinished job: those of a finished one come in a table."""
        if job.status in wording.TERMINAL:
            return []
        lines = [line for line in wording.metric_lines(job) if line not in self._shown]
        self._shown.update(lines)
        return lines


class RunTime:
    """How long the job has been running, as the server said with its last event; this machine's clock adds the time since."""

    def __init__(self) -> None:
        self.take(JobInfo())

    def take(self, job: JobInfo) -> None:
        """Go on from this state."""
        self._job, self._taken_seconds = job, job_table.clock.monotonic()

    def text(self) -> str:
        """Return it as text; empty for a job that never ran."""
        job = self._job
        if job.status == JobStatus.JOB_STATUS_RUNNING and job.progress.HasField("elapsed"):
            since_seconds = job_table.clock.monotonic() - self._taken_seconds
            return wording.seconds_text(seconds_of(job.progress.elapsed) + since_seconds)
        return wording.run_time(job, job_table.clock.now())


def _show_live(states: Iterable[JobInfo]) -> JobInfo:
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class RunTimeColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            del task
            return Text(run_time.text())

    words = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    bar = BarColumn(bar_width=min(_BAR_CELLS, terminal_cells() // 4))
    job, news, run_time = JobInfo(), _News(), RunTime()
    with Progress(SpinnerColumn(), bar, RunTimeColumn(), words, transient=True) as display:
        line = display.add_task("", total=None)
        for job in states:
            run_time.take(job)
            for new_line in news.of(job):
                display.console.print(printable(new_line), markup=False, highlight=False)
            done, total = job.progress.done, job.progress.total or None
            display.update(line, description=printable(wording.describe(job)), completed=done, total=total)
    return job
