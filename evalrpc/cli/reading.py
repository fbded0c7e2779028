"""The commands that read a job's log, results and files."""

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect
from evalrpc.cli.exit_codes import JOB_NOT_COMPLETED, WRONG_CALL, fail
from evalrpc.cli.following import show_outcome
from evalrpc.cli.output import is_terminal, print_json, print_json_line, print_table
from evalrpc.client import EvalClient
from evalrpc.client.download import select
from evalrpc.v1.files_pb2 import Artifact, ListArtifactsResponse, ReadLogResponse
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus
from evalrpc.v1.results_pb2 import ListMetricsResponse


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
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only TASK/METRIC or METRIC. May be repeated.")
@click.option("--model", default="", help="Only this model of the results. Default: all.")
@client_options
def metrics_command(job_id: str, metrics: tuple[str, ...], model: str, address: str | None, as_json: bool) -> None:
    """Print all metrics of a job, however many. Those of a running job are the ones it has so far.

    A NAME is TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix.
    """
    with connect(address) as client:
        found = client.list_metrics(job_id, metrics, model)
        if as_json:
            print_json(ListMetricsResponse(metrics=found))
        else:
            print_table(wording.LISTED_METRIC_COLUMNS, map(wording.listed_metric_row, found))


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
        samples = client.samples(job_id, model, task, min(limit, 1000), on_truncated=_warn_of_cut)
        for row in islice(samples, limit or None):
            click.echo(json.dumps(row, ensure_ascii=False))


def _warn_of_cut(paths: Sequence[str]) -> None:
    click.echo(f"evalrpc: rows over 2 MiB are cut, `evalrpc download` has them whole: {', '.join(paths)}", err=True)


@click.command()
@click.argument("job_id", metavar="JOB")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", "names", multiple=True, help="Only this file. May be repeated.")
@click.option("--attempt", default=0, help="Which attempt. Default: the latest.")
@client_options
def download_command(
    job_id: str, directory: Path, names: tuple[str, ...], attempt: int, address: str | None, as_json: bool
) -> None:
    """Download a job's files into a folder and print their paths. Resumes where an earlier download broke off."""
    with connect(address, SLOW_CALL_SECONDS) as client:
        chosen = list(names) or None
        paths = _download(client, job_id, directory, chosen, attempt)
        if as_json:
            print_json(ListArtifactsResponse(artifacts=select(client.list_artifacts(job_id, attempt), chosen)))
            return
    for path in paths:
        click.echo(path)


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
