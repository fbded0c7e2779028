"""`evalrpc history`: metrics across jobs and their trends, as a table, as a plot in the terminal, or in a file."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import click

from evalrpc import extras
from evalrpc.cli import completion, plotting, tables, wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect, table_options
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.output import Form, is_terminal, print_drawing, print_items, print_line, print_table, terminal_cells
from evalrpc.cli.parameters import filter_options, trend_options
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client.arguments import metric_text
from evalrpc.v1.history_pb2 import HistoryPoint, MetricTrend, TrendOptions
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.results_pb2 import Metric

DEFAULT_STEP_LABEL: Final = "step"

_COLUMNS: Final = (
    Column("task"),
    Column("metric"),
    Column("step", Kind.NUMBER),
    Column("value", Kind.NUMBER),
    Column("stderr", Kind.NUMBER),
    Column("filter"),
    Column("better", Kind.WHOLE),
    Column("samples", Kind.NUMBER),
    Column("model"),
    Column("created", Kind.WHOLE),
    Column("job", Kind.WHOLE),
)
_TREND_COLUMNS: Final = (
    Column("task"),
    Column("metric"),
    Column("trend", Kind.WHOLE),
    Column("alarm", Kind.WHOLE),
    Column("change", Kind.NUMBER),
    Column("at_least", Kind.NUMBER),
    Column("at_most", Kind.NUMBER),
    Column("noise", Kind.NUMBER),
    Column("alarm_p", Kind.NUMBER),
    Column("filter"),
    Column("better", Kind.WHOLE),
    Column("points", Kind.NUMBER),
    Column("first", Kind.NUMBER),
    Column("last", Kind.NUMBER),
    Column("model"),
    Column("job", Kind.WHOLE),
)
_MAX_PLOTS: Final = 60
_MAX_LINES: Final = 20


class _Name(NamedTuple):
    """The key of a metric."""

    task: str
    metric: str
    filter: str


class _Row(NamedTuple):
    """A value, and the point that it belongs to."""

    point: HistoryPoint
    metric: Metric


class _History(NamedTuple):
    """What was asked for, and how to show it."""

    points: Sequence[HistoryPoint]
    step_label: str
    by: str
    """The label whose values are told apart; empty if none is."""


def _drawable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    del context, parameter
    if value is not None and value.suffix.lower() not in plotting.FILE_SUFFIXES:
        raise click.BadParameter(f"{value} must end with one of {', '.join(plotting.FILE_SUFFIXES)}")
    return value


@click.command(short_help="Show metrics across jobs, as a table or a plot.")
@filter_options
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show only this metric. May be repeated.")
@click.option(
    "--step-label", default=DEFAULT_STEP_LABEL, show_default=True, metavar="KEY", help="Take the step from this label."
)
@click.option(
    "--by",
    default="",
    shell_complete=completion.label_keys,
    metavar="KEY",
    help="Tell jobs with different values of this label apart, such as run.",
)
@click.option("--trend", is_flag=True, help="Show instead how each metric goes, with an alarm if it has fallen.")
@trend_options
@click.option("--plot", is_flag=True, help="Draw in the terminal instead of printing the table.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_drawable,
    help="Draw into a file as well: .png, .svg or .html.",
)
@table_options
def history_command(
    job_filter: JobFilter,
    metrics: tuple[str, ...],
    step_label: str,
    by: str,
    trend: bool,
    options: TrendOptions,
    plot: bool,
    output: Path | None,
    address: str | None,
    form: Form,
) -> None:
    """Print metrics across jobs, such as the checkpoints of a training run, ordered by step.

    A NAME is TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix.

    The table has a row for each value; with -o wide, it has a row for each step and a column for each metric. A plot has a line
    for each value of the label --by, and for each model.

    With --trend it has a row for each metric: its change from the first step to the last, the bounds of that with a confidence
    of 95 %, and the step at which an alarm was raised because it fell. The alarm stays valid however often one looks. A trend
    needs 5 points, and an alarm 6, and what is better, as the harness or --direction says.

    Without --status, only completed jobs count.
    """
    if trend and plot:
        raise click.UsageError("--trend prints a table: give either --trend or --plot, not both")
    if not trend and options != TrendOptions():
        raise click.UsageError("--tolerance and --direction are for --trend")
    options.run_label = by
    with connect(address, SLOW_CALL_SECONDS) as client:
        response = client.get_history(job_filter, metrics, step_label, trends=options if trend else None)
    history = _History(response.points, step_label, by)
    if trend:
        columns = [*_leading_columns(history), *_TREND_COLUMNS]
        print_items(form, columns, (_trend_row(history, each) for each in response.trends), response.trends, response)
    elif plot:
        _plot(history)
    elif form is Form.WIDE:
        _print_wide(history)
    else:
        print_items(form, _columns(history), _rows(history), response.points, response)
    if output is not None:
        _draw_file(output, history, _title(job_filter))


def _title(job_filter: JobFilter) -> str:
    return ", ".join(filter(None, [wording.labels_text(job_filter.labels), job_filter.label_selector])) or "evalrpc history"


def _by_metric(history: _History) -> dict[_Name, list[_Row]]:
    """Group the values by metric, each in the order of the response."""
    rows: defaultdict[_Name, list[_Row]] = defaultdict(list)
    for point in history.points:
        for value in point.metrics:
            rows[_Name(value.task, value.metric, value.filter)].append(_Row(point, value))
    return dict(sorted(rows.items()))


# Tables


def _columns(history: _History) -> list[Column]:
    return [*_leading_columns(history), *_COLUMNS]


def _leading_columns(history: _History) -> list[Column]:
    return [Column(history.by, is_key=True)] if history.by else []


def _rows(history: _History) -> Iterator[tuple[Cell, ...]]:
    """Yield a row for each value, metric by metric, and within a metric by the label that tells jobs apart."""
    for name, rows in _by_metric(history).items():
        for point, metric in sorted(rows, key=lambda row: _group(history, row.point)):
            created = wording.time_text(point.created_at)
            step = point.labels.get(history.step_label, "")
            cells = (name.task, name.metric, step, *wording.metric_cells(metric), point.model, created, point.job_id)
            yield (*_group(history, point), *cells)


def _print_wide(history: _History) -> None:
    """Print a row for each step, that is for each model of each job, and a column for each metric."""
    names = list(_by_metric(history))
    keys = (history.step_label, *map(metric_text, names))
    values = [Column(key, Kind.NUMBER, is_key=True) for key in keys]
    columns = [*_leading_columns(history), *values, Column("model"), Column("job", Kind.WHOLE)]
    points = sorted(history.points, key=lambda point: _group(history, point))
    print_table(Form.WIDE, columns, (_wide_row(history, point, names) for point in points))


def _wide_row(history: _History, point: HistoryPoint, names: Sequence[_Name]) -> tuple[Cell, ...]:
    values = {_Name(value.task, value.metric, value.filter): value.value for value in point.metrics}
    step = point.labels.get(history.step_label, "")
    return (*_group(history, point), step, *(values.get(name) for name in names), point.model, point.job_id)


def _trend_row(history: _History, trend: MetricTrend) -> tuple[Cell, ...]:
    distance = trend.last_step - trend.first_step
    slopes = [trend.slope, trend.slope_lower, trend.slope_upper] if trend.HasField("slope") else []
    return (
        *((trend.run,) if history.by else ()),
        trend.task,
        trend.metric,
        wording.trend(trend),
        wording.alarm_cell(trend),
        *(slope * distance for slope in slopes),
        *([None] * (3 - len(slopes))),
        trend.noise if slopes else None,
        trend.alarm_p_value if trend.HasField("alarm_p_value") else None,
        trend.filter,
        wording.better(trend),
        trend.point_count,
        f"{trend.first_step:.15g}",
        f"{trend.last_step:.15g}",
        trend.model,
        trend.alarm.job_id,
    )


def _group(history: _History, point: HistoryPoint) -> tuple[str, ...]:
    """Return the value of the label that tells jobs apart, if there is such a label."""
    return (point.labels.get(history.by, ""),) if history.by else ()


# Plots


def _plot(history: _History) -> None:
    try:
        for panel in _panels(history):
            print_drawing(plotting.draw_text(panel, terminal_cells(), colourless=not is_terminal()))
    except ModuleNotFoundError as error:
        _fail_without(error)


def _draw_file(path: Path, history: _History, title: str) -> None:
    columns = _columns(history)
    names = [column.name for column in columns]
    try:
        plotting.draw_file(path, title, _panels(history), names, (tables.texts(columns, row) for row in _rows(history)))
    except ModuleNotFoundError as error:
        _fail_without(error)
    except OSError as error:
        fail(ExitCode.WRONG_CALL, f"{path}: {error.strerror}")
    print_line(f"evalrpc: wrote {path}", err=True)


def _fail_without(error: ModuleNotFoundError) -> None:
    fail(ExitCode.WRONG_CALL, extras.missing(error))


def _panels(history: _History) -> list[plotting.Panel]:
    by_metric = _by_metric(history)
    if not by_metric:
        fail(
            ExitCode.WRONG_CALL,
            "there is nothing to draw: none of these jobs has such a metric; choose others, or another --metric",
        )
    if len(by_metric) > _MAX_PLOTS:
        fail(
            ExitCode.WRONG_CALL,
            f"{len(by_metric)} metrics are too many to draw, at most {_MAX_PLOTS} are not: choose with --metric",
        )
    by_step = all(point.HasField("step") for point in history.points)
    return [_panel(history, name, rows, by_step=by_step) for name, rows in by_metric.items()]


def _panel(history: _History, name: _Name, rows: Sequence[_Row], *, by_step: bool) -> plotting.Panel:
    """Place the values of a metric along their steps or, if some jobs have no step, job by job."""
    filter_words = f" ({name.filter})" if name.filter else ""
    better = wording.better(rows[-1].metric)
    lines = _by_line(history, rows)
    if len(lines) > _MAX_LINES:
        fail(
            ExitCode.WRONG_CALL, f"{len(lines)} lines are too many in one plot, at most {_MAX_LINES} are not: choose fewer jobs"
        )
    return plotting.Panel(
        title=f"{name.task}: {name.metric}{filter_words}",
        x_title=history.step_label if by_step else "job, in order of creation",
        y_title=f"{better} is better" if better else name.metric,
        lines=[_line(line, values, by_step=by_step) for line, values in lines.items()],
    )


def _by_line(history: _History, rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """Split the values of a metric into lines: by the label that tells jobs apart, and by model, unless each step has a model
    of its own, as the checkpoints of a run may have. A single line needs no name."""
    lines: defaultdict[tuple[str, ...], list[_Row]] = defaultdict(list)
    for group, members in groupby(
        sorted(rows, key=lambda row: _group(history, row.point)), lambda row: _group(history, row.point)
    ):
        values = list(members)
        are_apart = _are_models_apart([row.point for row in values])
        for row in values:
            lines[(*group, *([row.point.model] if are_apart else []))].append(row)
    if len(lines) == 1:
        return {"": next(iter(lines.values()))}
    return {", ".join(part or "(none)" for part in name): values for name, values in lines.items()}


def _are_models_apart(points: Sequence[HistoryPoint]) -> bool:
    """Return whether a model was evaluated at several steps, or a step with several models."""
    pairs = {(point.model, point.step if point.HasField("step") else point.job_id) for point in points}
    models, steps = {model for model, _ in pairs}, {step for _, step in pairs}
    return len(models) > 1 and (len(pairs) > len(models) or len(pairs) > len(steps))


def _line(name: str, rows: Sequence[_Row], *, by_step: bool) -> plotting.Line:
    return plotting.Line(
        name=name,
        x=[point.step if by_step else float(place) for place, (point, _) in enumerate(rows, start=1)],
        y=[metric.value for _, metric in rows],
        stderr=[metric.standard_error if metric.HasField("standard_error") else math.nan for _, metric in rows],
    )
