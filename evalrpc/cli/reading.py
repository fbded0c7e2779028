"""The commands that read a job's log, results and files."""

import codecs
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect, table_options
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.following import show_outcome
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import (
    Form,
    is_terminal,
    print_items,
    print_json,
    print_json_line,
    print_line,
)
from evalrpc.client import DownloadError, EvalClient
from evalrpc.client.download import select
from evalrpc.printable import printable, without_colours
from evalrpc.v1.files_pb2 import Artifact, ListArtifactsResponse, ReadLogResponse
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus
from evalrpc.v1.results_pb2 import ListMetricsResponse

_MAX_LOG_LINE_CHARACTERS: Final = 64 * 1024


@click.command(short_help="Print the log of a job.")
@job_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("--offset", default=0, metavar="BYTE", help="Begin with this byte. Default: the first.")
@click.option("--attempt", default=0, metavar="N", help="Print the log of this attempt. Default: the latest.")
@click.option("--preparation", is_flag=True, help="Print the log of the run that prepared the model.")
@click.option("--engine", is_flag=True, help="Print the log of the engine that answered for the model.")
@client_options
def logs_command(
    job_id: str, follow: bool, offset: int, attempt: int, preparation: bool, engine: bool, address: str | None, as_json: bool
) -> None:
    """Print the log of a job: byte for byte into a file or a pipe, without colours and control characters on a terminal."""
    with connect(address) as client:
        place = {"offset": offset, "attempt": attempt}
        chunks = client.logs(resolve(client, job_id), follow=follow, preparation=preparation, engine=engine, **place)
        if as_json:
            for data in chunks:
                print_json_line(ReadLogResponse(data=data, offset=offset))
                offset += len(data)
        elif is_terminal():
            _print_log(chunks)
        else:
            for data in chunks:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()


def _print_log(chunks: Iterable[bytes]) -> None:
    """Print a log line by line, since a character or an escape sequence may be split between chunks. A carriage return ends
    a line, too, which the rest would otherwise be written over."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(errors="replace"), translate=True)
    rest = ""
    for data in chunks:
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        if len(rest) > _MAX_LOG_LINE_CHARACTERS:
            lines, rest = [*lines, rest], ""
        for line in lines:
            print_line(without_colours(line))
    if rest := rest + decoder.decode(b"", final=True):
        print_line(without_colours(rest))


@click.command(short_help="Print the metrics of a job.")
@job_argument()
@table_options
def results_command(job_id: str, address: str | None, form: Form) -> None:
    """Print the metrics of a job. Exits with 1 if it failed or was cancelled, with 2 if it has not ended."""
    with connect(address) as client:
        job = client.get_job(resolve(client, job_id))
    if job.status not in wording.TERMINAL and not job.results:
        fail(ExitCode.WRONG_CALL, f"job {job.job_id} has no results yet: {wording.describe(job)}")
    if form is Form.JSON:
        error = job.error if job.HasField("error") else None
        print_json(JobInfo(job_id=job.job_id, status=job.status, results=job.results, error=error))
    else:
        show_outcome(job, form)
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        raise click.exceptions.Exit(ExitCode.NOT_PASSED if job.status in wording.TERMINAL else ExitCode.WRONG_CALL)


@click.command(short_help="Print all metrics of a job, however many.")
@job_argument()
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Print only this metric. May be repeated.")
@click.option("--model", default="", metavar="NAME", help="Print those of this model of the results. Default: all.")
@table_options
def metrics_command(job_id: str, metrics: tuple[str, ...], model: str, address: str | None, form: Form) -> None:
    """Print all metrics of a job, however many. Those of a running job are the ones it has so far.

    A NAME is TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix.
    """
    with connect(address) as client:
        found = client.list_metrics(resolve(client, job_id), metrics, model)
        message = ListMetricsResponse(metrics=found) if form is Form.JSON else None
        print_items(form, wording.LISTED_METRIC_COLUMNS, map(wording.listed_metric_row, found), found, message)


@click.command(short_help="Download the files of a job.")
@job_argument()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", "names", multiple=True, metavar="FILE", help="Download only this file. May be repeated.")
@click.option("--attempt", default=0, metavar="N", help="Download the files of this attempt. Default: the latest.")
@client_options
def download_command(
    job_id: str, directory: Path, names: tuple[str, ...], attempt: int, address: str | None, as_json: bool
) -> None:
    """Download the files of a job into a folder and print their paths. Resumes where an earlier download broke off.

    A file that can't be downloaded does not stop the others: it is named on stderr, and the command exits with 1.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        job_id = resolve(client, job_id)
        chosen = list(names) or None
        errors: dict[str, Exception] = {}
        try:
            paths = _download(client, job_id, directory, chosen, attempt)
        except DownloadError as error:
            paths, errors = error.paths, error.errors
        if as_json:
            listed = select(client.list_artifacts(job_id, attempt, checksums=True), chosen)
            print_json(ListArtifactsResponse(artifacts=[artifact for artifact in listed if artifact.name not in errors]))
        else:
            for path in paths:
                print_line(str(path))
            if not paths and not errors:
                print_line(f"evalrpc: job {job_id} has left no files", err=True)
    if errors:
        fail(ExitCode.NOT_PASSED, *(f"{name!r} is missing: {error}" for name, error in errors.items()))


def _download(client: EvalClient, job_id: str, directory: Path, names: list[str] | None, attempt: int) -> list[Path]:
    if is_terminal():
        return _download_live(client, job_id, directory, names, attempt)
    return client.download(job_id, directory, names, attempt=attempt)


def _download_live(client: EvalClient, job_id: str, directory: Path, names: list[str] | None, attempt: int) -> list[Path]:
    from rich.progress import DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    words = TextColumn("{task.description}", markup=False)
    lines: dict[str, TaskID] = {}
    with Progress(words, DownloadColumn(), TransferSpeedColumn(), transient=True) as display:

        def show(artifact: Artifact, size_bytes: int) -> None:
            if artifact.name not in lines:
                lines[artifact.name] = display.add_task(printable(artifact.name), total=artifact.size_bytes)
            display.update(lines[artifact.name], completed=size_bytes)

        return client.download(job_id, directory, names, show, attempt)
