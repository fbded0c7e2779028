"""Human-readable descriptions of jobs. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client.arguments import metric_text
from evalrpc.v1.history_pb2 import MetricTrend
from evalrpc.v1.jobs_pb2 import JobError, JobInfo, JobStatus, Progress
from evalrpc.v1.results_pb2 import Metric, ModelMetric, ModelResult, TaskResult

BASELINE_LABEL: Final = "evalrpc.baseline"
"""The label whose value is the name of the baseline that a job is."""

_SHORT_REASON_CHARACTERS: Final = 20
"""A line with a shorter text may have it by chance."""

_MIN_TREND_POINTS: Final = 5
"""As `MetricTrend.slope` in the schema."""

METRIC_COLUMNS: Final = (
    Column("task"),
    Column("metric"),
    Column("value", Kind.NUMBER),
    Column("stderr", Kind.NUMBER),
    Column("filter"),
    Column("better", Kind.WHOLE),
    Column("samples", Kind.NUMBER),
    Column("model", optional=True),
    Column("version", Kind.WHOLE, optional=True),
    Column("group", Kind.WHOLE, optional=True),
)
LISTED_METRIC_COLUMNS: Final = METRIC_COLUMNS[:-2]
"""Those of a metric by itself, without the results that it is of."""

TERMINAL: Final = (JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_FAILED, JobStatus.JOB_STATUS_CANCELLED)


def status_name(status: "JobStatus.ValueType") -> str:
    """Return the name of a status, such as RUNNING; the number for one of a newer server."""
    return JobStatus.Name(status).removeprefix("JOB_STATUS_") if status in JobStatus.values() else f"STATUS_{status:d}"


def describe(job: JobInfo) -> str:
    """Describe the state of the job in one line."""
    status, particulars = status_name(job.status), detail(job)
    if not particulars:
        return status
    return f"{status}{':' if job.error.reason == status else ','} {particulars}"


def detail(job: JobInfo) -> str:
    """Describe in one line what the status does not say: why a job waits, how far it is, why it did not complete."""
    return ", ".join(_particulars(job))


def settings(job: JobInfo) -> str:
    """Describe what `evalrpc update` changes of a job."""
    return f"priority {job.priority}, labels {labels_text(job.labels) or 'none'}"


def _particulars(job: JobInfo) -> Iterator[str]:
    if job.status == JobStatus.JOB_STATUS_QUEUED:
        if job.HasField("position_in_queue"):
            yield f"{job.position_in_queue} before it"
        if job.wait_reason:
            yield job.wait_reason
        if job.attempts and job.attempts[-1].HasField("error"):
            yield f"after attempt {job.attempts[-1].number}: {_error_words(job.attempts[-1].error, job.status)}"
    elif job.status == JobStatus.JOB_STATUS_RUNNING:
        if job.HasField("cancel_requested_at"):
            yield "being cancelled"
        yield from progress_words(job.progress)
        if job.wait_reason:
            yield job.wait_reason
    elif job.HasField("error"):
        yield _error_words(job.error, job.status)
    elif job.cached_from:
        yield f"with the results of job {job.cached_from}"


def _error_words(error: JobError, status: JobStatus.ValueType) -> str:
    """Return why a job, or an attempt, did not complete, without what the status says already."""
    return ": ".join(filter(None, ("" if error.reason == status_name(status) else error.reason, error.message)))


def sharing(job: JobInfo) -> str:
    """Say in a sentence whether a job that may share the run of another does so."""
    if not job.cached_from:
        return "the job has a run of its own"
    if job.status == JobStatus.JOB_STATUS_QUEUED:
        return f"job {job.cached_from} is the same evaluation: the job completes with it, or runs itself if that one does not"
    return f"job {job.cached_from} was the same evaluation: the job has its results, and does not run"


def progress_words(progress: Progress) -> Iterator[str]:
    """Yield the known parts of the progress."""
    if progress.phase in Progress.Phase.values()[1:]:
        yield Progress.Phase.Name(progress.phase).removeprefix("PHASE_").lower()
    if progress.current_task:
        yield progress.current_task
    if progress.total or progress.done:
        yield f"{progress.done}/{progress.total or '?'} {progress.unit}".rstrip()
    if progress.HasField("rate_per_second"):
        yield f"{progress.rate_per_second:.3g}/s"
    if progress.HasField("time_left"):
        yield f"{duration_text(progress.time_left)} left"


def model_metrics(job: JobInfo) -> Iterator[ModelMetric]:
    """Yield every metric with its model: by model, then tasks before groups, then in the server's order."""
    for model, result in sorted(job.results.items()):
        for metric in sorted(result.metrics, key=lambda metric: metric.is_group):
            yield ModelMetric(model=model, metric=metric)


def metric_rows(job: JobInfo) -> Iterator[tuple[Cell, ...]]:
    """Yield a row of METRIC_COLUMNS for every metric."""
    tasks = {(model, task.task): task for model, result in job.results.items() for task in result.tasks}
    for item in model_metrics(job):
        metric = item.metric
        task = tasks.get((item.model, metric.task), TaskResult())
        group = f"of {len(task.subtasks)}" if metric.is_group else ""
        yield (metric.task, metric.metric, *metric_cells(metric), item.model, task.version, group)


def listed_metric_row(listed: ModelMetric) -> tuple[Cell, ...]:
    """Return a metric as a row of LISTED_METRIC_COLUMNS."""
    metric = listed.metric
    return (metric.task, metric.metric, *metric_cells(metric), listed.model)


def metric_cells(metric: Metric) -> tuple[Cell, Cell, Cell, Cell, Cell]:
    """Return value, standard error, filter, direction and number of samples."""
    return (
        metric.value,
        metric.standard_error if metric.HasField("standard_error") else None,
        metric.filter,
        better(metric),
        metric.sample_count if metric.HasField("sample_count") else None,
    )


def labels_text(labels: Mapping[str, str]) -> str:
    """Write labels as `key=value, key=value`."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def number_text(value: float) -> str:
    """Write a number with four decimals, or a very large one with six digits."""
    return f"{value:.4f}" if abs(value) < 1e9 else f"{value:.6g}"


def better(metric: Metric | MetricTrend) -> str:
    """Return which direction is better; empty if the harness does not say."""
    return ("higher" if metric.higher_is_better else "lower") if metric.HasField("higher_is_better") else ""


def trend(metric: MetricTrend) -> str:
    """Say how a metric goes, or why that can't be said."""
    if not metric.HasField("slope"):
        if metric.point_count < _MIN_TREND_POINTS:
            return "too few"
        return "one step" if metric.first_step == metric.last_step else ""  # else its numbers are too large
    if metric.slope_lower <= 0 <= metric.slope_upper:
        return "unclear"
    if not metric.HasField("higher_is_better"):
        return "rising" if metric.slope > 0 else "falling"
    return "better" if (metric.slope > 0) == metric.higher_is_better else "worse"


def alarm_cell(metric: MetricTrend) -> str:
    """Say where a metric has fallen, or why that isn't watched; empty if it has not fallen."""
    if metric.HasField("alarm"):
        return f"at {metric.alarm.step:.15g}"
    if metric.HasField("alarm_p_value"):
        return ""
    return "too few" if metric.HasField("higher_is_better") else "needs --direction"


def alarm(metric: MetricTrend) -> str:
    """Say in one line that a metric has fallen, such as `gsm8k/acc is worse at step 900: 0.5200 after 0.6100`."""
    fall = metric.alarm
    return (
        f"{metric_text(metric)} is worse at step {fall.step:.15g}: {number_text(fall.after)} after {number_text(fall.before)}"
    )


def metric_lines(job: JobInfo) -> Iterator[str]:
    """Yield a line per metric, such as `mme: score,none 0.7500 ± 0.0100`."""
    for _, result in sorted(job.results.items()):
        for metric in result.metrics:
            name = ",".join(filter(None, (metric.metric, metric.filter)))
            error = f" ± {number_text(metric.standard_error)}" if metric.HasField("standard_error") else ""
            yield f"{metric.task}: {name} {number_text(metric.value)}{error}"


def provenance(result: ModelResult) -> str:
    """Describe in one line which versions produced the results, and how long that took."""
    versions = [f"{package} {version}" for package, version in sorted(result.harness_versions.items())]
    took = [duration_text(result.total_evaluation_time)] if result.HasField("total_evaluation_time") else []
    return ", ".join(versions + took)


def new_lines(log_tail: Sequence[str], message: str) -> list[str]:
    """Return the last lines of a log without those that say the same as the message, which is printed below them."""
    exception, _, reason = message.partition("Error: ")
    said = reason if exception.isidentifier() and len(reason) > _SHORT_REASON_CHARACTERS else message
    return [line for line in log_tail if not said or (said not in line and line.strip() not in message)]


def run_time(job: JobInfo, now: Timestamp) -> str:
    """Return how long the job has been running, or ran in all; empty if it never did."""
    if not job.HasField("started_at") or job.status == JobStatus.JOB_STATUS_QUEUED:
        return ""
    if job.status == JobStatus.JOB_STATUS_RUNNING and job.progress.HasField("elapsed"):
        return duration_text(job.progress.elapsed)
    end = job.completed_at if job.HasField("completed_at") else now
    return seconds_text(max(0.0, (end.ToNanoseconds() - job.started_at.ToNanoseconds()) / 1e9))


def time_text(time: Timestamp) -> str:
    """Format a time in the local zone; an absent one is empty."""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time.seconds else ""


def duration_text(duration: Duration) -> str:
    """Format a duration with its two largest units, such as `1h05m`."""
    return seconds_text(duration.ToTimedelta() / timedelta(seconds=1))


def seconds_text(seconds: float) -> str:
    """Format seconds with their two largest units, such as `1h05m`."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"
