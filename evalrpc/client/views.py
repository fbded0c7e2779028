"""How the client's messages look at a prompt and in a notebook, and as rows of a table, also for pandas.

The schema is the model, so what a client returns are its messages, and what is here are functions of them. `attach` makes them
methods of the generated classes, since a message can't be subclassed: `repr(job)` is short, a notebook shows a table, and
`history.to_pandas()` is what `to_pandas(history)` is. `str(job)` stays protobuf's own text, with every field.
"""

import html
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc import extras
from evalrpc.client.arguments import metric_text
from evalrpc.client.core import plain_row
from evalrpc.jobs.served_models import model_of
from evalrpc.v1.comparison_pb2 import (
    CompareJobsResponse,
    Flip,
    JobComparison,
    MetricComparison,
    MetricPlan,
    PlanComparisonResponse,
)
from evalrpc.v1.history_pb2 import GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus
from evalrpc.v1.results_pb2 import ListMetricsResponse, Metric, ModelMetric, ModelResult
from evalrpc.v1.samples_pb2 import ListSamplesResponse
from evalrpc.v1.suites_pb2 import SuiteDecision, SuiteFinding, SuiteRun

if TYPE_CHECKING:
    import pandas as pd

MAX_SHOWN_ROWS: Final = 50
"""A longer table is cut where it is shown, with a line that says so; `to_pandas` has all rows."""

_MAX_CELL_CHARACTERS: Final = 80
_HIDDEN: Final = frozenset(
    {
        *("baseline_sample_count", "candidate_sample_count", "is_group", "tolerance", "baseline_repeats", "candidate_repeats"),
        *("answer_standard_error", "document_standard_error", "larger_noise", "baseline_answers", "candidate_answers"),
    }
)
"""Columns that only `to_pandas` has, so that a table fits."""

_OUTCOME: Final = SuiteDecision.DESCRIPTOR.fields_by_name["outcome"]

_ONE_LINE: Final = (Flip, HistoryPoint, JobInfo, Metric, MetricComparison, MetricPlan, ModelMetric, SuiteFinding)
"""What often stands in a list, at a prompt, so that each is one line there."""

Row = dict[str, Any]


# As rows


def rows_of(value: Any) -> Iterator[Row]:
    """Yield the rows of a message, of an object of JSON, or of any number of them: one per metric, or one per sample.

    A field that is absent is None, a time is a datetime in UTC, an enum its short name, such as "WORSE", and each label of a
    job in a history has a column, such as "labels.run". Raises TypeError for anything else.
    """
    for kind, rows in _ROWS.items():
        if isinstance(value, kind):
            yield from rows(value)
            return
    if isinstance(value, str | bytes | Message) or not isinstance(value, Iterable):
        raise TypeError(f"a {type(value).__name__} has no rows: give what a client returned, or a list of it")
    for item in value:
        yield from rows_of(item)


def to_pandas(value: Any) -> "pd.DataFrame":
    """Return the rows of `rows_of` as a DataFrame: of jobs, results, metrics, histories, comparisons, samples or lists of them.

    Raises ModuleNotFoundError that says what to install if pandas is missing.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(extras.missing(error), name=error.name) from None
    return pd.DataFrame(list(rows_of(value)))


def _row(message: Message, *without: str) -> Row:
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields if field.name not in without}


def _field(message: Message, field: Any) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name.removeprefix(_enum_prefix(field.enum_type.name)) if known else value
    return _moment(value)


def _enum_prefix(name: str) -> str:
    """Return the prefix of an enum's values, such as TEST_METHOD_ of TestMethod."""
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).removeprefix("_") + "_"


def _moment(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToDatetime(tzinfo=UTC)
    return value.ToTimedelta() if isinstance(value, Duration) else value


def _rows_of_job(job: JobInfo) -> Iterator[Row]:
    for row in _rows_of_results(job.results):
        yield {"job_id": job.job_id, **row}


def _rows_of_results(results: Mapping[str, ModelResult]) -> Iterator[Row]:
    for model, result in sorted(results.items()):
        for row in _rows_of_result(result):
            yield {"model": model, **row}


def _rows_of_result(result: ModelResult) -> Iterator[Row]:
    return map(_row, result.metrics)


def _rows_of_metrics(metrics: Iterable[ModelMetric]) -> Iterator[Row]:
    for entry in metrics:
        yield {"model": entry.model, **_row(entry.metric)}


def _rows_of_point(point: HistoryPoint) -> Iterator[Row]:
    labels = {f"labels.{key}": text for key, text in sorted(point.labels.items())}
    for metric in point.metrics:
        yield {**_row(point, "metrics", "labels"), **_row(metric), **labels}


def _rows_of_comparison(comparison: JobComparison) -> Iterator[Row]:
    for metric in comparison.metrics:
        row = _row_of_metric_comparison(metric)
        yield {"candidate_job_id": comparison.candidate_job_id, "verdict": row["verdict"], **row}


def _row_of_metric_comparison(metric: MetricComparison) -> Row:
    """Return its fields; the counts of answers, which are messages, as dicts."""
    counts = {
        name: _row(getattr(metric, name)) if metric.HasField(name) else None
        for name in ("baseline_answers", "candidate_answers")
    }
    return {**_row(metric, *counts), **counts}


def _row_of_flip(flip: Flip) -> Row:
    samples = {name: plain_row(getattr(flip, name)) for name in ("baseline_sample", "candidate_sample")}
    return {**_row(flip, *samples), **samples}


def _rows_of_run(run: SuiteRun) -> Iterator[Row]:
    """Yield the findings of the decision over a run; without one, the jobs."""
    rows = rows_of(run.decision) if run.HasField("decision") else map(_row, run.jobs)
    for row in rows:
        yield {"suite_run_id": run.suite_run_id, **row}


def _row_of_finding(finding: SuiteFinding) -> Row:
    """Return its fields, and those of its metric beside them."""
    metric = _row_of_metric_comparison(finding.metric) if finding.HasField("metric") else {}
    return {**_row(finding, "metric"), **metric}


_ROWS: Final[Mapping[type, Callable[[Any], Iterable[Row]]]] = {
    JobInfo: _rows_of_job,
    ModelResult: _rows_of_result,
    Metric: lambda metric: [_row(metric)],
    ListMetricsResponse: lambda response: _rows_of_metrics(response.metrics),
    ModelMetric: lambda entry: _rows_of_metrics([entry]),
    GetHistoryResponse: lambda history: rows_of(history.points),
    HistoryPoint: _rows_of_point,
    CompareJobsResponse: lambda response: rows_of(response.candidates),
    JobComparison: _rows_of_comparison,
    MetricComparison: lambda metric: [_row_of_metric_comparison(metric)],
    PlanComparisonResponse: lambda response: rows_of(response.metrics),
    MetricPlan: lambda plan: [_row(plan)],
    Flip: lambda flip: [_row_of_flip(flip)],
    SuiteRun: _rows_of_run,
    SuiteDecision: lambda decision: map(_row_of_finding, decision.findings),
    SuiteFinding: lambda finding: [_row_of_finding(finding)],
    ListSamplesResponse: lambda page: map(plain_row, page.samples),
    Struct: lambda sample: [plain_row(sample)],
    dict: lambda sample: [sample],
}


# At a prompt


def describe(message: Any) -> str:
    """Return what a message is, in one line such as `JobInfo 7b0b8d5e-… RUNNING, llava_hf on mme`."""
    match message:
        case JobInfo():
            words = _describe_job(message)
        case Metric():
            words = _describe_metric(message)
        case ModelMetric():
            words = f"{message.model} {_describe_metric(message.metric)}"
        case MetricComparison():
            words = _describe_comparison(message)
        case MetricPlan():
            needed = message.required_sample_count if message.HasField("required_sample_count") else "?"
            words = f"{metric_text(message)}: {needed} samples"
        case Flip():
            row = _row(message, "baseline_sample", "candidate_sample")
            words = f"{message.doc_id}: {_cell(row['baseline_value'])} -> {_cell(row['candidate_value'])}, {row['direction']}"
        case SuiteRun():
            decided = [str(_field(message.decision, _OUTCOME))] if message.HasField("decision") else []
            name = message.suite_run_id or "(not submitted)"
            words = ", ".join([f"{name} {_status(message.status)}", message.suite.name, *decided])
        case SuiteDecision():
            words = "; ".join([str(_field(message, _OUTCOME)), *message.reasons])
        case SuiteFinding():
            row = _row(message, "metric")
            metric = f" {metric_text(message.metric)}" if message.HasField("metric") else ""
            words = f"{message.entry}{metric}: {row['assessment']}, {message.reason}"
        case HistoryPoint():
            words = f"{message.job_id} {', '.join((*_labels(message), message.model, *map(_describe_metric, message.metrics)))}"
        case _:
            count = sum(1 for _ in rows_of(message))
            noun = "sample" if isinstance(message, ListSamplesResponse) else "metric"
            words = f"{count} {noun}{'' if count == 1 else 's'}"
    return _visible(f"{type(message).__name__} {words}")


def text_of(message: Any) -> str:
    """Return the line of `describe` in angle brackets, and of an answer of the server its rows below, as an aligned table."""
    line = f"<{describe(message)}>"
    if isinstance(message, _ONE_LINE):
        return line
    columns, cells, left_out = _table(message)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (columns, *cells)] if cells else []
    return "\n".join([line, *rows, *left_out])


def _describe_job(job: JobInfo) -> str:
    parts = [f"{model_of(job.request)} on {', '.join(job.request.tasks)}", *_labels(job)]
    if job.progress.HasField("done"):
        total = job.progress.total if job.progress.HasField("total") else "?"
        parts.append(f"{job.progress.done}/{total} {job.progress.unit}".rstrip())
    if job.HasField("error"):
        parts.append(f"{job.error.reason}: {job.error.message}")
    return f"{job.job_id or '(not submitted)'} {_status(job.status)}, {', '.join(parts)}"


def _describe_metric(metric: Metric) -> str:
    error = f" ± {_cell(metric.standard_error)}" if metric.HasField("standard_error") else ""
    return f"{metric_text(metric)} = {_cell(metric.value)}{error}"


def _describe_comparison(metric: MetricComparison) -> str:
    row = _row(metric)
    values = " -> ".join(_cell(row[name]) or "none" for name in ("baseline_value", "candidate_value"))
    return f"{metric_text(metric)}: {values}, {row['verdict']}"


def _labels(message: JobInfo | HistoryPoint) -> list[str]:
    return [f"{key}={text}" for key, text in sorted(message.labels.items())]


def _status(status: "JobStatus.ValueType") -> str:
    return JobStatus.Name(status).removeprefix("JOB_STATUS_") if status in JobStatus.values() else str(status)


# In a notebook


def html_of(message: Any) -> str:
    """Return a message as HTML: of a job its state and its metrics, of anything else its rows. Everything in it is escaped."""
    columns, cells, left_out = _table(message)
    parts = [f"<b>{_escaped(describe(message))}</b>"]
    if cells:
        head = "".join(f"<th>{_escaped(column)}</th>" for column in columns)
        body = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in cells)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return "\n".join([*parts, *map(_escaped, left_out)])


def _escaped(text: str) -> str:
    """Escape a text for HTML. The one place for it: nothing else here makes HTML of what a job or a client says."""
    return html.escape(_visible(text))


def _visible(text: str) -> str:
    """Write characters that can't be seen, or that change how others look, as escapes such as `\\x1b` and `\\u202e`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


# Cells


def _table(message: Any) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the columns that have something in any row, the cells, and a line for rows that are left out, all visible."""
    rows = list(rows_of(message))
    shown = rows[:MAX_SHOWN_ROWS]
    names = dict.fromkeys(name for row in shown for name in row)
    columns = [name for name in names if name not in _HIDDEN and any(row.get(name) not in (None, "", []) for row in shown)]
    cells = [[_shortened(_visible(_cell(row.get(name), name))) for name in columns] for row in shown]
    left_out = [f"… {len(rows) - len(shown)} more rows: to_pandas() has them all"] if len(rows) > len(shown) else []
    return [_shortened(_visible(name)) for name in columns], cells, left_out


def _cell(value: Any, column: str = "value") -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case float() if column == "step":
            return f"{value:.15g}"
        case float():
            plain = value == 0 or 1e-3 <= abs(value) < 1e6 or not math.isfinite(value)
            return f"{value:.4f}" if plain else f"{value:.4g}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case bool() | int() | timedelta():
            return str(value)
    return json.dumps(value, ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_CELL_CHARACTERS else text[: _MAX_CELL_CHARACTERS - 1] + "…"


# As methods


def attach() -> None:
    """Make the functions above methods of the messages' classes. May be called again."""
    for cls in _ROWS:
        if issubclass(cls, Message) and cls is not Struct:
            cls.__repr__ = text_of  # type: ignore[method-assign]
            cls._repr_html_ = html_of  # type: ignore[attr-defined]
            cls.to_pandas = to_pandas  # type: ignore[attr-defined]
