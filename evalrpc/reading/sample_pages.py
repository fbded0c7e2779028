"""Per-sample predictions, a page at a time. A page is identified by the byte where it begins, so the last costs as much as the
first, and no index is needed."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import SamplesNotFoundError
from evalrpc.harnesses.base import SampleRow
from evalrpc.protobuf.structs import sample_struct
from evalrpc.results.layout import samples_by_task
from evalrpc.v1.jobs_pb2 import JobInfo

MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
"""A page ends before its rows exceed this, but has at least one row."""


class SamplesPage(NamedTuple):
    """Some rows, and the offset of the next; None at the end."""

    rows: list[Struct]
    next_offset: int | None


def samples_file(job: JobInfo, model: str, task: str) -> str:
    """Return the path of the samples of one model and task. An empty name stands for the only one.

    Raises SamplesNotFoundError, which lists what there is.
    """
    by_task = samples_by_task(job.results[_chosen(job, "model", model, job.results)])
    return by_task[_chosen(job, "task", task, by_task)]


def read_page(rows: Iterable[SampleRow], page_size: int) -> SamplesPage:
    """Take a page from the front of the rows, reading at most one row past it."""
    page: list[Struct] = []
    size_bytes = end = 0
    for values, next_end in rows:
        row = sample_struct(values)
        size_bytes += row.ByteSize()
        if page and (len(page) == page_size or size_bytes > MAX_PAGE_BYTES):
            return SamplesPage(page, end)
        page.append(row)
        end = next_end
    return SamplesPage(page, None)


def _chosen(job: JobInfo, kind: str, name: str, there_are: Iterable[str]) -> str:
    """Return the name, or the only one if it is empty. Raises SamplesNotFoundError."""
    names = sorted(there_are)
    if name in names:
        return name
    if len(names) == 1 and not name:
        return names[0]
    if not names:
        problem = "has no samples"
    elif name:
        problem = f"has no samples of the {kind} {name!r}; it has: {', '.join(names)}"
    else:
        problem = f"has samples of several {kind}s, so name one: {', '.join(names)}"
    raise SamplesNotFoundError(
        f"job {job.job_id} {problem}", metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id}
    )
