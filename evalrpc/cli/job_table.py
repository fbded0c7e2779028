"""Jobs as rows of a table."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from evalrpc.cli import completion, wording
from evalrpc.cli.parameters import split_commas
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.clock import Clock, SystemClock
from evalrpc.jobs.served_models import model_of
from evalrpc.v1.jobs_pb2 import JobInfo

clock: Clock = SystemClock()
"""Tells how long a job has been running. Tests put theirs in its place."""

label_columns_option: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.option(
    "-L",
    "--label-columns",
    "label_columns",
    multiple=True,
    shell_complete=completion.label_keys,
    metavar="KEY,...",
    callback=lambda context, parameter, value: split_commas(value),  # noqa: ARG005
    help="Show these labels, each in a column of its own. May be repeated.",
)
"""Adds the flag that chooses columns. The command gets them as `label_columns`."""


def job_columns(label_columns: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns of a table of jobs, with one for each of these labels."""
    return (
        Column("job", Kind.WHOLE),
        Column("status", Kind.WHOLE),
        Column("duration", Kind.NUMBER),
        *(Column(label, is_key=True) for label in label_columns),
        Column("model"),
        Column("tasks"),
        Column("detail"),
        Column("created", Kind.WHOLE),
        Column("owner", only_wide=True),
        Column("harness", only_wide=True),
        Column("labels", only_wide=True),
    )


def typical_row(label_columns: Sequence[str]) -> tuple[str, ...]:
    """Return a row that is as wide as those of most jobs, for a table whose rows are not known yet."""
    return (
        "x" * 36,
        "COMPLETED",
        "",
        *("x" * 8 for _ in label_columns),
        "x" * 12,
        "x" * 16,
        "x" * 40,
        "x" * 19,
        "x" * 8,
        "x" * 9,
        "x" * 20,
    )


def job_row(job: JobInfo, label_columns: Sequence[str]) -> tuple[Cell, ...]:
    """Return a job as a row of these columns."""
    return (
        job.job_id,
        wording.status_name(job.status),
        wording.run_time(job, clock.now()),
        *(job.labels.get(label, "") for label in label_columns),
        model_of(job.request),
        ",".join(job.request.tasks),
        wording.detail(job),
        wording.time_text(job.created_at),
        job.owner,
        job.request.harness,
        wording.labels_text(job.labels),
    )
