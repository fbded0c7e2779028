"""Per-sample predictions, a page at a time. A page is identified by the byte where it begins, so the last costs as much as the
first, and no index is needed."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import SamplesNotFoundError
from evalrpc.harnesses.base import SampleRow
from evalrpc.protobuf.structs import sample_struct
from evalrpc.reading.page_bound import PageBound
from evalrpc.reading.row_cutting import cut_row
from evalrpc.results.layout import samples_by_task
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import ModelResult

MAX_ROW_BYTES: Final = 2 * 1024 * 1024
"""A larger row is cut."""


class SamplesPage(NamedTuple):
    """Some rows, the offset of the next, None at the end, and the paths of what was cut."""

    rows: list[Struct]
    next_offset: int | None
    truncated_fields: list[str]


def samples_file(job: JobInfo, models: Mapping[str, ModelResult], model: str, task: str) -> str:
    """Return the path of the samples of one model and task, of all that a job has. An empty name stands for the only one.

    Raises SamplesNotFoundError, which lists what there is.
    """
    if model not in models and (model or len(models) != 1):
        raise _not_found(job, f"model {model!r}" if model else "a model that need not be named", sorted(models))
    result = models[model] if model else next(iter(models.values()))
    by_task = samples_by_task(result)
    if task not in by_task and (task or len(by_task) != 1):
        raise _not_found(job, f"task {task!r}" if task else "a task that need not be named", sorted(by_task))
    return by_task[task] if task else next(iter(by_task.values()))


def read_page(rows: Iterable[SampleRow], page_size: int) -> SamplesPage:
    """Take a page from the front of the rows, reading at most one row past it. Rows that are too large for any page are cut."""
    page: list[Struct] = []
    truncated: list[str] = []
    bound = PageBound(page_size)
    end = 0
    for values, next_end in rows:
        row = sample_struct(values)
        cut_fields = cut_row(row, MAX_ROW_BYTES)
        if not bound.takes(row):
            return SamplesPage(page, end, truncated)
        truncated += (f"samples[{len(page)}]{field}" for field in cut_fields)
        page.append(row)
        end = next_end
    return SamplesPage(page, None, truncated)


def _not_found(job: JobInfo, what: str, there_is: list[str]) -> SamplesNotFoundError:
    known = ", ".join(there_is) or "none"
    return SamplesNotFoundError(
        f"job {job.job_id} has no samples of {what}; it has: {known}",
        metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id},
    )
