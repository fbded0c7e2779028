"""Human-readable descriptions of jobs. Pure functions."""

from collections.abc import Iterator
from datetime import UTC
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus, Progress
from evalrpc.v1.results_pb2 import Metric, ModelMetric, ModelResult, TaskResult

METRIC_COLUMNS: Final = ("model", "task", "metric", "filter", "value", "stderr", "better", "samples", "version", "group")
LISTED_METRIC_COLUMNS: Final = ("model", "task", "metric", "filter", "value", "stderr", "better", "samples")
JOB_COLUMNS: Final = ("job", "status", "model", "tasks", "created", "progress")

TERMINAL: Final = (JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_FAILED, JobStatus.JOB_STATUS_CANCELLED)


def status_name(status: "JobStatus.ValueType") -> str:
    """Return the name of a status, such as RUNNING; the number for one of a newer server."""
    return JobStatus.Name(status).removeprefix("JOB_STATUS_") if status in JobStatus.values() else f"STATUS_{status:d}"


def describe(job: JobInfo) -> str:
    """Describe the state of the job in one line."""
    return ", ".join((status_name(job.status), *_particulars(job)))


def _particulars(job: JobInfo) -> Iterator[str]:
    if job.status == JobStatus.JOB_STATUS_QUEUED:
        if job.HasField("position_in_queue"):
            yield f"{job.position_in_queue} before it"
        if job.wait_reason:
            yield job.wait_reason
    elif job.status == JobStatus.JOB_STATUS_RUNNING:
        if job.HasField("cancel_requested_at"):
            yield "being cancelled"
        yield from progress_words(job.progress)
    elif job.HasField("error"):
        yield f"{job.error.reason}: {job.error.message}"


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


def metric_rows(job: JobInfo) -> Iterator[tuple[str, ...]]:
    """Yield a row of METRIC_COLUMNS for every metric: by model, then tasks before groups, then in the server's order."""
    for model, result in sorted(job.results.items()):
        tasks = {task.task: task for task in result.tasks}
        for metric in sorted(result.metrics, key=lambda metric: metric.is_group):
            task = tasks.get(metric.task, TaskResult())
            group = f"of {len(task.subtasks)}" if metric.is_group else ""
            yield (model, metric.task, metric.metric, metric.filter, *metric_numbers(metric), task.version, group)


def listed_metric_row(listed: ModelMetric) -> tuple[str, ...]:
    """Return a metric as a row of LISTED_METRIC_COLUMNS."""
    metric = listed.metric
    return (listed.model, metric.task, metric.metric, metric.filter, *metric_numbers(metric))


def metric_numbers(metric: Metric) -> tuple[str, str, str, str]:
    """Format value, standard error, direction and number of samples."""
    return (
        f"{metric.value:.4f}",
        f"{metric.standard_error:.4f}" if metric.HasField("standard_error") else "",
        better(metric),
        str(metric.sample_count) if metric.HasField("sample_count") else "",
    )


def better(metric: Metric) -> str:
    """Return which direction is better; empty if the harness does not say."""
    return ("higher" if metric.higher_is_better else "lower") if metric.HasField("higher_is_better") else ""


def metric_lines(job: JobInfo) -> Iterator[str]:
    """Yield a line per metric, such as `mme: score,none 0.7500 ± 0.0100`."""
    for _, result in sorted(job.results.items()):
        for metric in result.metrics:
            name = ",".join(filter(None, (metric.metric, metric.filter)))
            error = f" ± {metric.standard_error:.4f}" if metric.HasField("standard_error") else ""
            yield f"{metric.task}: {name} {metric.value:.4f}{error}"


def provenance(result: ModelResult) -> str:
    """Describe in one line which versions produced the results, and how long that took."""
    versions = [f"{package} {version}" for package, version in sorted(result.harness_versions.items())]
    took = [duration_text(result.total_evaluation_time)] if result.HasField("total_evaluation_time") else []
    return ", ".join(versions + took)


def job_row(job: JobInfo) -> tuple[str, ...]:
    """Return a job as a row of JOB_COLUMNS."""
    progress = ", ".join(_particulars(job))
    tasks = ",".join(job.request.tasks)
    return (job.job_id, status_name(job.status), job.request.model, tasks, time_text(job.created_at), progress)


def time_text(time: Timestamp) -> str:
    """Format a time in the local zone; an absent one is empty."""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time.seconds else ""


def duration_text(duration: Duration) -> str:
    """Format a duration with its two largest units, such as `1h05m`."""
    seconds = round(duration.ToTimedelta().total_seconds())
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"
