"""Metrics over many jobs. The store is read page by page, and only what was requested is kept, up to a maximum size."""

import math
import re
from collections.abc import Iterator
from typing import Final

from evalrpc.jobs.metric_selectors import Selection
from evalrpc.store.base import Store
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobFilter, JobInfo

DEFAULT_STEP_LABEL: Final = "step"
MAX_HISTORY_BYTES: Final = 3 * 1024 * 1024

_PAGE: Final = 100
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class History:
    """Builds the answer to one GetHistory: read all pages, then get the answer. For one thread at a time; blocks."""

    def __init__(self, store: Store, call: GetHistoryRequest) -> None:
        self._store = store
        self._filter = JobFilter()
        self._filter.CopyFrom(call.filter)
        if not call.filter.statuses:
            self._filter.statuses.append(JOB_STATUS_COMPLETED)
        self._selection = Selection(call.metrics)
        self._step_label = call.step_label or DEFAULT_STEP_LABEL
        self._before: int | None = None
        self._points_by_job: list[list[HistoryPoint]] = []
        self._size_bytes = 0
        self._truncated = False

    def read_page(self) -> bool:
        """Read the next page of jobs, newest first; return whether there may be more."""
        page = self._store.list_jobs(self._filter, self._before, _PAGE)
        for self._before, job in page:
            points = list(self._points(job))
            self._size_bytes += sum(point.ByteSize() for point in points)
            if self._points_by_job and self._size_bytes > MAX_HISTORY_BYTES:
                self._truncated = True
                return False
            if points:
                self._points_by_job.append(points)
        return len(page) == _PAGE

    def answer(self) -> GetHistoryResponse:
        """Return the points by step if all have one, else oldest first."""
        points = [point for job in reversed(self._points_by_job) for point in job]
        if all(point.HasField("step") for point in points):
            points.sort(key=lambda point: point.step)
        return GetHistoryResponse(points=points)

    def _points(self, job: JobInfo) -> Iterator[HistoryPoint]:
        for model, result in sorted(job.results.items()):
            metrics = [metric for metric in result.metrics if self._selection.takes(metric)]
            if metrics:
                yield HistoryPoint(
                    job_id=job.job_id,
                    created_at=job.created_at,
                    completed_at=job.completed_at,
                    labels=job.labels,
                    step=_number(job.labels.get(self._step_label, "")),
                    model=model,
                    metrics=metrics,
                )


def _number(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None
