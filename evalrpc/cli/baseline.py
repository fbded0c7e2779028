"""`evalrpc baseline`: names for jobs that others are compared with. A baseline is a label on its job."""

from typing import Final

import click

from evalrpc.cli import completion, wording
from evalrpc.cli.changing import change_job
from evalrpc.cli.connection import client_options, connect, table_options
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.job_ids import baseline_filter, job_argument, resolve
from evalrpc.cli.output import Form, print_items, print_json, print_json_line, print_line
from evalrpc.cli.suggestions import SuggestingGroup
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.cli.wording import BASELINE_LABEL
from evalrpc.client import EvalClient
from evalrpc.jobs.served_models import model_of
from evalrpc.v1.jobs_pb2 import JobFilter, JobInfo, JobView

_COLUMNS: Final = (
    Column("baseline"),
    Column("job", Kind.WHOLE),
    Column("status", Kind.WHOLE),
    Column("model"),
    Column("tasks"),
    Column("created", Kind.WHOLE),
)


@click.group(cls=SuggestingGroup, short_help="Name jobs that others are compared with.")
def baseline_command() -> None:
    """Name jobs that others are compared with: `evalrpc compare @baseline:NAME JOB`.

    The name is the label `evalrpc.baseline` of the job, so all users of the server share it. A job has at most one.
    """


@baseline_command.command("set", short_help="Make a job the baseline of this name.")
@click.argument("name", shell_complete=completion.baselines)
@job_argument()
@client_options
def set_command(name: str, job_id: str, address: str | None, as_json: bool) -> None:
    """Make a job the baseline of this name, instead of the job that had it."""
    with connect(address) as client:
        job_id = resolve(client, job_id)
        other = client.get_job(job_id).labels.get(BASELINE_LABEL, name)
        if other != name:
            fail(ExitCode.WRONG_CALL, f"job {job_id} is the baseline {other} already: `evalrpc baseline remove {other}` first")
        job = change_job(client, job_id, {BASELINE_LABEL: name})
        _take_from(client, [former for former in _jobs(client, baseline_filter(name)) if former.job_id != job_id])
    if as_json:
        print_json(job)
    else:
        print_line(f"{name} is job {job_id}")


@baseline_command.command("list", short_help="List the baselines.")
@table_options
def list_command(address: str | None, form: Form) -> None:
    """List the baselines."""
    with connect(address) as client:
        newest: dict[str, JobInfo] = {}
        for job in _jobs(client, JobFilter(label_selector=BASELINE_LABEL)):
            newest.setdefault(job.labels[BASELINE_LABEL], job)
    jobs = [newest[name] for name in sorted(newest)]
    print_items(form, _COLUMNS, map(_row, jobs), jobs)


@baseline_command.command("remove", short_help="Remove the name of a baseline.")
@click.argument("name", shell_complete=completion.baselines)
@client_options
def remove_command(name: str, address: str | None, as_json: bool) -> None:
    """Remove the name of a baseline. Its job stays."""
    with connect(address) as client:
        jobs = _jobs(client, baseline_filter(name))
        if not jobs:
            fail(ExitCode.WRONG_CALL, f"there is no baseline {name}: `evalrpc baseline list` lists them")
        for job in _take_from(client, jobs):
            if as_json:
                print_json_line(job)
            else:
                print_line(f"{name} was job {job.job_id}")


def _jobs(client: EvalClient, job_filter: JobFilter) -> list[JobInfo]:
    return list(client.list_jobs(job_filter, view=JobView.JOB_VIEW_BASIC))


def _take_from(client: EvalClient, jobs: list[JobInfo]) -> list[JobInfo]:
    return [change_job(client, job.job_id, {}, [BASELINE_LABEL]) for job in jobs]


def _row(job: JobInfo) -> tuple[Cell, ...]:
    return (
        job.labels[BASELINE_LABEL],
        job.job_id,
        wording.status_name(job.status),
        model_of(job.request),
        ",".join(job.request.tasks),
        wording.time_text(job.created_at),
    )
