"""The commands that read a job's log, results and files."""

import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Final

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect
from evalrpc.cli.exit_codes import JOB_NOT_COMPLETED, WRONG_CALL, fail
from evalrpc.cli.following import show_outcome
from evalrpc.cli.output import is_terminal, print_json, print_json_line
from evalrpc.client import DownloadError, EvalClient
from evalrpc.client.download import select
from evalrpc.v1.files_pb2 import Artifact, ListArtifactsResponse, ReadLogResponse
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus

SOME_FILES_ARE_MISSING: Final = 1


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("--offset", default=0, help="The first byte to print.")
@click.option("--attempt", default=0, help="Which attempt's log. Default: the latest.")
@client_options
def logs_command(job_id: str, follow: bool, offset: int, attempt: int, address: str | None, as_json: bool) -> None:
    """Print a job's log, byte for byte."""
    with connect(address) as client:
        for data in client.logs(job_id, follow=follow, offset=offset, attempt=attempt):
            if as_json:
                print_json_line(ReadLogResponse(data=data, offset=offset))
            else:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            offset += len(data)


@click.command()
@click.argument("job_id", metavar="JOB")
@client_options
def results_command(job_id: str, address: str | None, as_json: bool) -> None:
    """Print the metrics of a job. Exits with 1 if it failed or was cancelled, with 2 if it has not ended."""
    with connect(address) as client:
        job = client.get_job(job_id)
    if job.status not in wording.TERMINAL and not job.results:
        fail(WRONG_CALL, f"job {job_id} has no results yet: {wording.describe(job)}")
    if as_json:
        error = job.error if job.HasField("error") else None
        print_json(JobInfo(job_id=job.job_id, status=job.status, results=job.results, error=error))
    else:
        show_outcome(job)
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        raise click.exceptions.Exit(JOB_NOT_COMPLETED if job.status in wording.TERMINAL else WRONG_CALL)


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--model", default="", help="A model of the results. Default: the job's only one.")
@click.option("--task", default="", help="A task of the job. Default: its only one.")
@click.option("--limit", default=0, help="At most so many rows. Default: all.")
@client_options
def samples_command(job_id: str, model: str, task: str, limit: int, address: str | None, as_json: bool) -> None:
    """Print per-sample predictions, one JSON object per line with or without --json."""
    del as_json
    with connect(address) as client:
        for row in islice(client.samples(job_id, model, task, min(limit, 1000)), limit or None):
            click.echo(json.dumps(row, ensure_ascii=False))


@click.command()
@click.argument("job_id", metavar="JOB")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", "names", multiple=True, help="Only this file. May be repeated.")
@click.option("--attempt", default=0, help="Which attempt. Default: the latest.")
@client_options
def download_command(
    job_id: str, directory: Path, names: tuple[str, ...], attempt: int, address: str | None, as_json: bool
) -> None:
    """Download a job's files into a folder and print their paths. Resumes where an earlier download broke off.

    A file that can't be downloaded does not stop the others: it is named on stderr, and the command exits with 1.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        chosen = list(names) or None
        errors: dict[str, Exception] = {}
        try:
            paths = _download(client, job_id, directory, chosen, attempt)
        except DownloadError as error:
            paths, errors = error.paths, error.errors
        if as_json:
            listed = select(client.list_artifacts(job_id, attempt), chosen)
            print_json(ListArtifactsResponse(artifacts=[artifact for artifact in listed if artifact.name not in errors]))
        else:
            for path in paths:
                click.echo(os.fsencode(path))
    if errors:
        fail(SOME_FILES_ARE_MISSING, *(f"{name!r} is missing: {error}" for name, error in errors.items()))


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
                lines[artifact.name] = display.add_task(artifact.name, total=artifact.size_bytes)
            display.update(lines[artifact.name], completed=size_bytes)

        return client.download(job_id, directory, names, show, attempt)
