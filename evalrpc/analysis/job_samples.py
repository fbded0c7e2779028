"""The samples of jobs, task by task."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Final

from evalrpc.analysis.sample_fields import MAX_OFFERED, ClusterField
from evalrpc.analysis.sample_values import NO_SAMPLES, MetricKey, TaskSamples, read_samples
from evalrpc.errors import FieldViolation, InvalidRequestError, NotFoundError
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness, SampleRow
from evalrpc.printable import printable
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.sample_files import open_samples
from evalrpc.results.layout import samples_by_task
from evalrpc.v1.comparison_pb2 import MetricComparison
from evalrpc.v1.jobs_pb2 import JobInfo

_BLOCK_BYTES: Final = 512  # of `st_blocks`, on every file system


class JobSamples:
    """Reads the samples of jobs. Blocks on the disk, and with every row may raise what `ReadBudget.spend` does."""

    def __init__(self, harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget, clusters: ClusterField) -> None:
        self._harnesses = harnesses
        self._data_dir = data_dir
        self._results = JobResults(data_dir)
        self._budget = budget
        self._clusters = clusters
        self._files: dict[tuple[str, str], Mapping[str, str]] = {}
        self._offered: dict[str, None] = {}
        self._has_clusters = False

    def read(
        self, job: JobInfo, model: str, task: str, wanted: Collection[MetricKey], *, with_positions: bool = False
    ) -> TaskSamples:
        """Read the values of a task; none if its samples were not logged, are gone or can't be read to their end."""
        path = self.path(job, model, task)
        folder = output_dir(self._data_dir, job)
        if path is None or folder is None:
            return NO_SAMPLES
        with suppress(OSError):  # of which opening it says more
            status = os.lstat(path)
            self._budget.require_room_for(min(status.st_size, status.st_blocks * _BLOCK_BYTES))  # of a sparse file, too
        try:
            with open_samples(job, folder, path, self._harnesses, budget=self._budget) as rows:
                values = _RowValues(rows, self._budget)
                found = read_samples(values, wanted, self._clusters, values.begin if with_positions else None)
        except (NotFoundError, InvalidRequestError):  # gone, or cut off
            return NO_SAMPLES
        self._has_clusters = self._has_clusters or found.has_clusters
        self._offered |= dict.fromkeys(found.offered_fields)
        return found

    def path(self, job: JobInfo, model: str, task: str) -> str | None:
        """Return the path of a task's samples, if there are some. The files of a job are looked up once."""
        key = job.job_id, model
        if key not in self._files:
            heads = self._results.heads(job)
            self._files[key] = samples_by_task(heads[model]) if model in heads else {}
        return self._files[key].get(task)

    def require_clusters(self) -> None:
        """Raise InvalidRequestError if none of the samples read so far has the field that the caller named."""
        if self._clusters.is_asked_for and not self._has_clusters:
            fields = ", ".join(map(printable, list(self._offered)[:MAX_OFFERED]))
            have = f"they have: {fields}" if fields else "there are no samples that could be read"
            name = printable(self._clusters.name)
            raise InvalidRequestError(violations=[FieldViolation("cluster_by", f"no sample has a field {name!r}; {have}")])


class _RowValues:
    """The values of rows, once, and where the current one begins."""

    def __init__(self, rows: Iterable[SampleRow], budget: ReadBudget) -> None:
        self._rows = rows
        self._budget = budget
        self._begin = 0

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        for row in self._rows:
            self._budget.spend()
            yield row.values
            self._begin = row.end

    def begin(self) -> int:
        """Return an offset from which the current row is the first that is read."""
        return self._begin


def by_task(
    pairs: Iterable[tuple[JobInfo, MetricComparison]],
) -> Iterator[tuple[str, str, list[tuple[JobInfo, list[MetricComparison]]]]]:
    """Group metrics by the baseline's model and task, which have one samples file, and these by candidate."""
    for (model, task), of_file in groupby(sorted(pairs, key=_file), key=_file):
        of_jobs = groupby(of_file, key=lambda pair: pair[0].job_id)
        candidates = [list(of_job) for _, of_job in of_jobs]
        yield model, task, [(found[0][0], [metric for _, metric in found]) for found in candidates]


def key_of(metric: MetricComparison) -> MetricKey:
    """Return the key of a metric among the values of its task."""
    return MetricKey(metric.metric, metric.filter)


def keys_of(metrics: Iterable[MetricComparison]) -> set[MetricKey]:
    """Return the keys of metrics among the values of their task."""
    return set(map(key_of, metrics))


def _file(pair: tuple[JobInfo, MetricComparison]) -> tuple[str, str]:
    return pair[1].baseline_model, pair[1].task
