"""The commands that follow, show and change jobs."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice

import click

from evalrpc.cli import completion, job_table, wording
from evalrpc.cli.changing import change_job
from evalrpc.cli.connection import client_options, connect, table_options
from evalrpc.cli.following import follow, follow_all
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.job_table import job_columns, job_row, label_columns_option
from evalrpc.cli.output import Form, print_facts, print_items, print_json, print_line
from evalrpc.cli.parameters import filter_options, labels_option, limit_option, reconnect_timeout_option
from evalrpc.cli.request_facts import request_facts
from evalrpc.cli.tables import Cell
from evalrpc.jobs.served_models import model_of
from evalrpc.jobs.transitions import counted_attempts
from evalrpc.v1.jobs_pb2 import (
    GPU_MODE_DATA_PARALLEL,
    GPU_MODE_MODEL_PARALLEL,
    JobAttempt,
    JobFilter,
    JobInfo,
    ServedModel,
)
from evalrpc.v1.queue_pb2 import GetQueueResponse, Gpu, NodeState, OwnerShare

_LARGEST_PAGE = 1000
_MAX_QUEUED_SHOWN = 20
_PROCESSES = {GPU_MODE_DATA_PARALLEL: "one per GPU", GPU_MODE_MODEL_PARALLEL: "one that sees all GPUs"}


@click.command(short_help="Follow a job until it ends.")
@job_argument()
@reconnect_timeout_option
@table_options
def watch_command(job_id: str, reconnect_timeout: timedelta, address: str | None, form: Form) -> None:
    """Follow a job until it ends, then print its metrics.

    Exits with 1 if the job failed or was cancelled.
    """
    with connect(address) as client:
        job_id = resolve(client, job_id)
        client.get_job(job_id)  # fails at once where a watch would retry
        follow(client, job_id, reconnect_timeout, form)


@click.command(short_help="Show the current state of a job.")
@job_argument()
@table_options
def get_command(job_id: str, address: str | None, form: Form) -> None:
    """Show the current state of a job."""
    with connect(address) as client:
        job = client.get_job(resolve(client, job_id))
    print_facts(form, _job_facts(job), job)


@click.command(short_help="Follow all jobs, or those that match a filter.")
@filter_options
@label_columns_option
@table_options
def watch_all_command(job_filter: JobFilter, label_columns: list[str], address: str | None, form: Form) -> None:
    """Follow all jobs, or those that match a filter, until Ctrl-C: first the state of each job, then every change."""
    with connect(address) as client:
        client.get_server_info()  # fails at once where a watch would retry
        follow_all(client, job_filter, label_columns, form)


@click.command(short_help="List jobs, newest first.")
@filter_options
@label_columns_option
@limit_option("jobs")
@table_options
def list_command(job_filter: JobFilter, label_columns: list[str], limit: int, address: str | None, form: Form) -> None:
    """List jobs, newest first.

    A job is listed if it matches all conditions. Of a condition that is repeated, any value suffices; but a job must have all
    the labels.
    """
    with connect(address) as client:
        matching = client.list_jobs(job_filter, min(limit and limit + 1, _LARGEST_PAGE))
        jobs = islice(matching, limit or None)
        print_items(form, job_columns(label_columns), (job_row(job, label_columns) for job in jobs), jobs)
        if next(matching, None) is not None:
            print_line("evalrpc: more jobs match: --limit 0 shows all", err=True)


@click.command(short_help="Show the queue, and which job holds which GPU.")
@table_options
def queue_command(address: str | None, form: Form) -> None:
    """Show what is queued and running, and which job holds which GPU."""
    with connect(address) as client:
        queue = client.get_queue_status()
    print_facts(form, _queue_facts(queue, None if form in (Form.WIDE, Form.CSV) else _MAX_QUEUED_SHOWN), queue)


@click.command(short_help="Change the labels or the priority of a job.")
@job_argument()
@labels_option("Set this label.")
@click.option(
    "--remove-label",
    "removed",
    shell_complete=completion.label_keys,
    metavar="K",
    multiple=True,
    help="Remove this label. May be repeated.",
)
@click.option("--priority", type=int, metavar="N", help="Start before jobs of a lower priority.")
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
        job = change_job(client, resolve(client, job_id), dict(labels), removed, priority)
    if as_json:
        print_json(job)
    else:
        print_line(f"{wording.describe(job)}, {wording.settings(job)}")


def _job_facts(job: JobInfo) -> list[tuple[str, Cell]]:
    facts = [
        ("job", job.job_id),
        ("status", wording.describe(job)),
        ("owner", job.owner),
        ("harness", job.request.harness),
        ("model", model_of(job.request)),
        ("engine", _engine_text(job.request.served_model, _latest(job).engine_id)),
        ("judge", _engine_text(job.request.judge_model, _latest(job).judge_engine_id, job.request.judge_model.model)),
        ("tasks", ", ".join(job.request.tasks)),
        *request_facts(job),
        ("labels", wording.labels_text(job.labels)),
        ("priority", str(job.priority) if job.priority else ""),
        ("preemptible", "yes" if job.preemptible else ""),
        ("attempt", _attempt_text(job)),
        ("shares", f"attempt {job.cached_from_attempt} of job {job.cached_from}" if job.cached_from_attempt else ""),
        ("node", "" if _latest(job).node in ("", "local") else _latest(job).node),
        ("GPUs", ", ".join(job.gpus)),
        ("processes", _PROCESSES.get(_latest(job).gpu_mode, "")),
        ("created", wording.time_text(job.created_at)),
        ("started", wording.time_text(job.started_at)),
        ("completed", wording.time_text(job.completed_at)),
        ("duration", wording.run_time(job, job_table.clock.now())),
        *(("results", f"{model}: {result.results}") for model, result in sorted(job.results.items())),
        *(("warning", warning) for warning in job.warnings),
    ]
    return [(name, value) for name, value in facts if value]


def _engine_text(served: ServedModel, engine_id: str, model: str = "") -> str:
    return " ".join(filter(None, (served.engine, model, engine_id)))


def _latest(job: JobInfo) -> JobAttempt:
    return job.attempts[-1] if job.attempts else JobAttempt()


def _attempt_text(job: JobInfo) -> str:
    preempted_count = job.attempt - counted_attempts(job) if job.attempts else 0
    if preempted_count:
        return f"{job.attempt}, of which {preempted_count} gave way to other jobs; at most {job.max_attempts} without these"
    return f"{job.attempt} of {job.max_attempts}" if job.attempt else ""


def _queue_facts(queue: GetQueueResponse, max_queued: int | None) -> Iterator[tuple[str, Cell]]:
    following = f", {queue.following_count} of them follow another job" if queue.following_count else ""
    paused = "; the queue is paused" if queue.paused else ""
    yield "queued", f"{queue.queued_count} of at most {queue.max_queued}{following}{paused}"
    yield "running", f"{queue.running_count} of at most {queue.max_running}"
    for entry in queue.status_counts:
        if entry.status in wording.TERMINAL:
            yield wording.status_name(entry.status).lower(), entry.count
    for owner in queue.owners if len(queue.owners) > 1 or any(owner.owner for owner in queue.owners) else ():
        yield f"owner {owner.owner or 'anonymous'}", _share_text(owner)
    for node in queue.nodes if len(queue.nodes) > 1 else ():
        yield f"node {node.name}", _node_text(node)
    for gpu in queue.gpus:
        yield f"GPU {gpu.id}", _gpu_text(gpu)
    for job_id in queue.running_job_ids:
        yield "runs", job_id
    for place, job_id in enumerate(queue.queued_job_ids[:max_queued], start=1):
        yield f"place {place}", job_id
    left = len(queue.queued_job_ids) - len(queue.queued_job_ids[:max_queued])
    if left:
        yield "", f"and {left} more: -o wide shows them"


def _node_text(node: NodeState) -> str:
    if node.out_of_reach:
        return f"out of reach, with {node.running_count} running jobs"
    return f"{node.running_count} of at most {node.max_running} running"


def _gpu_text(gpu: Gpu) -> str:
    holder = gpu.job_id or gpu.engine_id or ("held by a job of others" if gpu.held else "")
    state = gpu.quarantine_reason or holder
    if gpu.cordoned:
        return f"cordoned; {state}" if state else "cordoned"
    return state or "free"


def _share_text(share: OwnerShare) -> str:
    counts = (
        ("queued", share.queued_count, share.max_queued if share.HasField("max_queued") else None),
        ("running", share.running_count, share.max_running if share.HasField("max_running") else None),
        ("GPUs", share.held_gpu_count, share.max_gpus if share.HasField("max_gpus") else None),
    )
    limited = (f"{count}{'' if limit is None else f' of at most {limit}'} {name}" for name, count, limit in counts)
    used = f"{share.used_gpu_seconds / 3600:.3g} GPU hours of recent use at weight {share.weight:g}"
    return ", ".join((*limited, used))
