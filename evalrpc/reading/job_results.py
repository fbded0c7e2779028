"""The complete results of jobs: those in a job's message or, where it lacks some, those in its results file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from evalrpc.errors import FileUnreadableError
from evalrpc.files.errnos import unreadable
from evalrpc.files.read_budget import ReadBudget
from evalrpc.jobs.paths import results_path
from evalrpc.reading.attempts import run_dir
from evalrpc.results.bounding import lacks_some
from evalrpc.results.results_file import MetricRow, read_heads, read_metrics
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import Metric, ModelMetric, ModelResult


class JobResults:
    """Reads the results of jobs. Blocks on the disk, but only for jobs whose message lacks some.

    Every method, and every step of an iteration, raises FileUnavailableError and FileUnreadableError.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def heads(self, job: JobInfo) -> Mapping[str, ModelResult]:
        """Return the results with all tasks and samples, whether or not with their metrics."""
        if not lacks_some(job.results):
            return job.results
        with _understood(job):
            return read_heads(self._path(job))

    def metrics(self, job: JobInfo, budget: ReadBudget | None = None) -> Iterator[ModelMetric]:
        """Yield all metrics, sorted by model, task, metric and filter."""
        return (row.metric for row in self.metric_rows(job, budget=budget))

    def metric_rows(self, job: JobInfo, position: int = 0, budget: ReadBudget | None = None) -> Iterator[MetricRow]:
        """Yield the metrics from a position on: 0, or the `end` of a row. Also raises what `ReadBudget.spend` does."""
        if not lacks_some(job.results):
            yield from _rows_of_message(job, position)
            return
        with _understood(job):
            for row in read_metrics(self._path(job), position):
                if budget is not None:
                    budget.spend()
                yield row

    def _path(self, job: JobInfo) -> Path:
        """Return the file of the run that the results are of, which may be that of another job."""
        return results_path(run_dir(self._data_dir, job, job.attempt))


def metric_key(metric: Metric) -> tuple[str, str, str]:
    """Return what a metric is sorted by, within its model."""
    return metric.task, metric.metric, metric.filter


def _rows_of_message(job: JobInfo, position: int) -> Iterator[MetricRow]:
    metrics = (
        (model, metric) for model in sorted(job.results) for metric in sorted(job.results[model].metrics, key=metric_key)
    )
    for end, (model, metric) in enumerate(islice(metrics, position, None), start=position + 1):
        yield MetricRow(ModelMetric(model=model, metric=metric), end)


@contextmanager
def _understood(job: JobInfo) -> Iterator[None]:
    """Turn what goes wrong with a results file into an error for a client, which names the job: a history is of many."""
    try:
        yield
    except OSError as error:
        failure = unreadable(error)
        failure.metadata["job_id"] = job.job_id
        raise failure from error
    except ValueError as error:
        raise FileUnreadableError(
            f"the file with all results of job {job.job_id} is damaged: {error}; the files of its harness are still there",
            metadata={"errno": "EBADMSG", "job_id": job.job_id},
        ) from error
