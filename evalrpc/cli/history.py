"""`evalrpc history`: metrics across jobs, as a table, as a plot in the terminal, or in a file."""

import math
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

from evalrpc import extras
from evalrpc.cli import plotting, wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect
from evalrpc.cli.exit_codes import WRONG_CALL, fail
from evalrpc.cli.output import is_terminal, print_json, print_table
from evalrpc.cli.parameters import filter_options
from evalrpc.v1.history_pb2 import GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.results_pb2 import Metric

DEFAULT_STEP_LABEL: Final = "step"

_COLUMNS: Final = ("task", "metric", "filter", "step", "value", "stderr", "better", "samples", "model", "created", "job")
_MAX_PLOTS: Final = 60

_Row = tuple[HistoryPoint, Metric]


class _Name(NamedTuple):
    """The key of a series."""

    task: str
    metric: str
    filter: str


def _drawable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    del context, parameter
    if value is not None and value.suffix.lower() not in plotting.FILE_SUFFIXES:
        raise click.BadParameter(f"{value} must end with one of {', '.join(plotting.FILE_SUFFIXES)}")
    return value


@click.command()
@filter_options
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only TASK/METRIC or METRIC. May be repeated.")
@click.option("--step-label", default=DEFAULT_STEP_LABEL, show_default=True, help="The label that gives the step.")
@click.option("--plot", is_flag=True, help="Draw in the terminal instead of the table.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_drawable,
    help="Draw into a file as well: .png, .svg or .html.",
)
@client_options
def history_command(
    job_filter: JobFilter,
    metrics: tuple[str, ...],
    step_label: str,
    plot: bool,
    output: Path | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Print metrics across jobs, such as the checkpoints of a training run, ordered by step.

    Without --status, only completed jobs count.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        history = client.get_history(job_filter, metrics, step_label)
        rows = _by_series(history)
        if as_json:
            print_json(history)
        elif plot:
            _plot(rows, step_label)
        else:
            print_table(_COLUMNS, _table(rows, step_label))
        if output is not None:
            _draw_file(output, rows, step_label, _title(job_filter))


def _title(job_filter: JobFilter) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(job_filter.labels.items())) or "evalrpc history"


def _by_series(history: GetHistoryResponse) -> dict[_Name, list[_Row]]:
    """Group the values by series, each in the order of the response."""
    rows: defaultdict[_Name, list[_Row]] = defaultdict(list)
    for point in history.points:
        for value in point.metrics:
            rows[_Name(value.task, value.metric, value.filter)].append((point, value))
    return dict(sorted(rows.items()))


def _table(rows: Mapping[_Name, Sequence[_Row]], step_label: str) -> Iterator[tuple[str, ...]]:
    for name, series in rows.items():
        for point, value in series:
            step = point.labels.get(step_label, "")
            created = wording.time_text(point.created_at)
            yield (*name, step, *wording.metric_numbers(value), point.model, created, point.job_id)


def _plot(rows: Mapping[_Name, Sequence[_Row]], step_label: str) -> None:
    width = shutil.get_terminal_size().columns
    try:
        for series in _drawable_series(rows, step_label):
            click.echo(plotting.draw_text(series, width, colourless=not is_terminal()))
    except ModuleNotFoundError as error:
        _fail_without(error)


def _draw_file(path: Path, rows: Mapping[_Name, Sequence[_Row]], step_label: str, title: str) -> None:
    try:
        plotting.draw_file(path, title, _drawable_series(rows, step_label), _COLUMNS, _table(rows, step_label))
    except ModuleNotFoundError as error:
        _fail_without(error)
    click.echo(f"evalrpc: wrote {path}", err=True)


def _fail_without(error: ModuleNotFoundError) -> None:
    fail(WRONG_CALL, extras.missing(error))


def _drawable_series(rows: Mapping[_Name, Sequence[_Row]], step_label: str) -> list[plotting.Series]:
    if not rows:
        fail(WRONG_CALL, "there is nothing to draw: none of these jobs has such a metric")
    if len(rows) > _MAX_PLOTS:
        fail(WRONG_CALL, f"{len(rows)} metrics are too many to draw, at most {_MAX_PLOTS} are not: choose with --metric")
    by_step = all(point.HasField("step") for series in rows.values() for point, _ in series)
    return [_series(name, series, step_label if by_step else "") for name, series in rows.items()]


def _series(name: _Name, rows: Sequence[_Row], step_label: str) -> plotting.Series:
    """Place a series along its steps or, without a step label, job by job."""
    filter_words = f" ({name.filter})" if name.filter else ""
    better = wording.better(rows[-1][1])
    return plotting.Series(
        title=f"{name.task}: {name.metric}{filter_words}",
        x_title=step_label or "job, in order of creation",
        y_title=f"{better} is better" if better else name.metric,
        x=[point.step if step_label else float(place) for place, (point, _) in enumerate(rows, start=1)],
        y=[value.value for _, value in rows],
        stderr=[value.standard_error if value.HasField("standard_error") else math.nan for _, value in rows],
    )
