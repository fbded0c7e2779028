"""Writes jobs to files of Parquet: a row per metric, and one for a job without any.

A file is whole as soon as it has its name. The state counts the files, so those that were written after it are removed when an
export goes on, and no row is there twice.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.client import EvalClient
from evalrpc.errors import ConfigurationError
from evalrpc.exporting.job_fields import metrics_of
from evalrpc.exporting.state import ExportState, sync_folder
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus

_TIME: Final = pa.timestamp("us", tz="UTC")
SCHEMA: Final = pa.schema(
    [
        ("job_id", pa.string()),
        ("revision", pa.int64()),
        ("status", pa.string()),
        ("owner", pa.string()),
        ("harness", pa.string()),
        ("model", pa.string()),
        ("labels", pa.map_(pa.string(), pa.string())),
        ("suite_run_id", pa.string()),
        ("created_at", _TIME),
        ("started_at", _TIME),
        ("completed_at", _TIME),
        ("attempt_count", pa.int32()),
        ("error_reason", pa.string()),
        ("error_message", pa.string()),
        ("result_model", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("filter", pa.string()),
        ("value", pa.float64()),
        ("standard_error", pa.float64()),
        ("higher_is_better", pa.bool_()),
        ("sample_count", pa.int64()),
        ("is_group", pa.bool_()),
    ]
)
"""The columns. Those from `result_model` on are null for a job without metrics."""

_MAX_ROWS: Final = 50_000
_PREFIX: Final = "jobs-"
_SUFFIX: Final = ".parquet"
_OPTIONAL: Final = ("standard_error", "higher_is_better", "sample_count")


class ParquetTarget:
    """Writes `jobs-NUMBER.parquet` to a folder."""

    def __init__(self, client: EvalClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self.part_count = 0

    def resume(self, state: ExportState | None) -> None:
        """Remove the files that the state does not know. Raises ConfigurationError if there are files without a state."""
        parts = {path: int(path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)) for path in self._parts()}
        if parts and state is None:
            raise ConfigurationError(f"{self._folder} has files of an export whose state is lost; export to another folder")
        self.part_count = state.part_count if state is not None else 0
        for path, number in parts.items():
            if number >= self.part_count:
                path.unlink()

    def put(self, job: JobInfo, revision: int) -> bool:
        """Keep the rows of a job until there are enough for a file."""
        self._rows.extend(_rows(self._client, job, revision))
        return len(self._rows) >= _MAX_ROWS

    def flush(self) -> None:
        """Write a file with the rows. Raises OSError."""
        path = self._folder / f"{_PREFIX}{self.part_count:06d}{_SUFFIX}"
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(self._rows, SCHEMA), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(self._folder)
        self._rows.clear()
        self.part_count += 1

    def _parts(self) -> Iterator[Path]:
        for path in self._folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            if path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX).isdecimal():
                yield path


def _rows(client: EvalClient, job: JobInfo, revision: int) -> Iterator[dict[str, Any]]:
    of_job = {
        "job_id": job.job_id,
        "revision": revision,
        "status": JobStatus.Name(job.status).removeprefix("JOB_STATUS_"),
        "owner": job.owner,
        "harness": job.request.harness,
        "model": job.request.model or job.request.served_model.model,
        "labels": sorted(job.labels.items()),
        "suite_run_id": job.suite_run_id,
        "created_at": _microseconds(job.created_at),
        "started_at": _microseconds(job.started_at) if job.HasField("started_at") else None,
        "completed_at": _microseconds(job.completed_at),
        "attempt_count": job.attempt_count,
        "error_reason": job.error.reason or None,
        "error_message": job.error.message or None,
    }
    has_metrics = False
    for model, metric in metrics_of(client, job):
        has_metrics = True
        optional = {name: getattr(metric, name) if metric.HasField(name) else None for name in _OPTIONAL}
        names = {"task": metric.task, "metric": metric.metric, "filter": metric.filter, "is_group": metric.is_group}
        yield {**of_job, "result_model": model, **names, "value": metric.value, **optional}
    if not has_metrics:
        yield of_job


def _microseconds(time: Timestamp) -> int:
    return time.ToMicroseconds()
