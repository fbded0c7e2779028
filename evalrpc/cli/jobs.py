"""The commands that follow and manage jobs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice

import click

from evalrpc.cli import wording
from evalrpc.cli.connection import client_options, connect
from evalrpc.cli.following import follow, follow_all
from evalrpc.cli.output import print_json, print_json_line, print_table
from evalrpc.cli.parameters import duration, filter_options, label
from evalrpc.client import EvalClient
from evalrpc.errors import ConflictError
from evalrpc.v1.jobs_pb2 import DeleteJobResponse, JobFilter, JobInfo
from evalrpc.v1.queue_pb2 import GetQueueResponse

_LARGEST_PAGE = 1000


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--reconnect-timeout", type=duration, default="10m", show_default=True, help="0 is for ever.")
@client_options
def watch_command(job_id: str, reconnect_timeout: timedelta, address: str | None, as_json: bool) -> None:
    """Follow a job until it ends; exit with 1 if it does not complete."""
    with connect(address) as client:
        client.get_job(job_id)  # fails at once where a watch would retry
        follow(client, job_id, reconnect_timeout, as_json=as_json)


@click.command()
@click.argument("job_id", metavar="JOB")
@client_options
def get_command(job_id: str, address: str | None, as_json: bool) -> None:
    """Show a job's current state."""
    with connect(address) as client:
        job = client.get_job(job_id)
    if as_json:
        print_json(job)
    else:
        print_table(("field", "value"), _job_facts(job))


@click.command()
@filter_options
@client_options
def watch_all_command(job_filter: JobFilter, address: str | None, as_json: bool) -> None:
    """Follow all jobs, or those that match a filter, until Ctrl-C: each job's state, then every change."""
    with connect(address) as client:
        client.get_server_info()  # fails at once where a watch would retry
        follow_all(client, job_filter, as_json=as_json)


@click.command()
@filter_options
@click.option("--limit", default=50, show_default=True, help="At most so many; 0 is all.")
@client_options
def list_command(job_filter: JobFilter, limit: int, address: str | None, as_json: bool) -> None:
    """List jobs, newest first. All conditions must hold; any value of a repeated one suffices, but all labels must match."""
    with connect(address) as client:
        jobs = islice(client.list_jobs(job_filter, min(limit, _LARGEST_PAGE)), limit or None)
        if as_json:
            for job in jobs:
                print_json_line(job)
        else:
            print_table(wording.JOB_COLUMNS, map(wording.job_row, jobs))


@click.command()
@client_options
def queue_command(address: str | None, as_json: bool) -> None:
    """Show what is queued and running, and who holds which GPU."""
    with connect(address) as client:
        queue = client.get_queue_status()
    if as_json:
        print_json(queue)
    else:
        print_table(("queue", ""), _queue_facts(queue))


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--reason", default="", help="Why, for those who look later.")
@click.option("--queued-only", is_flag=True, help="Let it run if it has begun: exit with 2 then.")
@client_options
def cancel_command(job_id: str, reason: str, queued_only: bool, address: str | None, as_json: bool) -> None:
    """Cancel a job. A running one is ended with all its processes, which takes a moment."""
    with connect(address) as client:
        job = client.cancel_job(job_id, reason, queued_only=queued_only)
    if as_json:
        print_json(job)
    else:
        click.echo(wording.describe(job))


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--label", "labels", type=label, metavar="K=V", multiple=True, help="Set this label. May be repeated.")
@click.option("--remove-label", "removed", metavar="K", multiple=True, help="Remove this label. May be repeated.")
@click.option("--priority", type=int, help="Higher starts first.")
@client_options
def update_command(
    job_id: str,
    labels: tuple[tuple[str, str], ...],
    removed: tuple[str, ...],
    priority: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Change the labels of a job, or its priority. Labels that are not named stay."""
    if not labels and not removed and priority is None:
        raise click.UsageError("nothing to change: give --label, --remove-label or --priority")
    with connect(address) as client:
        job = _update(client, job_id, dict(labels), removed, priority)
    if as_json:
        print_json(job)
    else:
        click.echo(f"{wording.describe(job)}, {wording.settings(job)}")


@click.command()
@click.argument("job_id", metavar="JOB")
@client_options
def delete_command(job_id: str, address: str | None, as_json: bool) -> None:
    """Delete a finished job and everything that the server created for it."""
    with connect(address) as client:
        client.delete_job(job_id)
    if as_json:
        print_json(DeleteJobResponse())
    else:
        click.echo(f"deleted {job_id}")


def _update(
    client: EvalClient, job_id: str, labels: Mapping[str, str], removed: Sequence[str], priority: int | None
) -> JobInfo:
    """Change labels one by one, though a call replaces all of them: whoever was overtaken looks at the job again."""
    if not labels and not removed:
        return client.update_job(job_id, priority=priority)
    while True:
        job = client.get_job(job_id)
        changed = {key: value for key, value in job.labels.items() if key not in removed} | dict(labels)
        with suppress(ConflictError):
            return client.update_job(job_id, labels=changed, priority=priority, expected_revision=job.revision)


def _job_facts(job: JobInfo) -> list[tuple[str, str]]:
    facts = [
        ("job", job.job_id),
        ("status", wording.describe(job)),
        ("harness", job.request.harness),
        ("model", job.request.model),
        ("tasks", ", ".join(job.request.tasks)),
        ("labels", wording.labels_text(job)),
        ("priority", str(job.priority) if job.priority else ""),
        ("attempt", f"{job.attempt} of {job.max_attempts}" if job.attempt else ""),
        ("GPUs", ", ".join(job.gpus)),
        ("created", wording.time_text(job.created_at)),
        ("started", wording.time_text(job.started_at)),
        ("completed", wording.time_text(job.completed_at)),
        *((f"results of {model}", result.results) for model, result in sorted(job.results.items())),
        *(("warning", warning) for warning in job.warnings),
    ]
    return [(name, value) for name, value in facts if value]


def _queue_facts(queue: GetQueueResponse) -> list[tuple[str, str]]:
    ended = [entry for entry in queue.status_counts if entry.status in wording.TERMINAL]
    return [
        ("queued", f"{queue.queued_count} of {queue.max_queued}"),
        ("running", f"{queue.running_count} of {queue.max_running}"),
        *((wording.status_name(entry.status).lower(), str(entry.count)) for entry in ended),
        *((f"GPU {gpu.id}", gpu.quarantine_reason or gpu.job_id or "free") for gpu in queue.gpus),
        *(("runs", job_id) for job_id in queue.running_job_ids),
        *((f"next {place}", job_id) for place, job_id in enumerate(queue.queued_job_ids)),
    ]
