"""Per-sample predictions, a page at a time. A page is identified by the byte where it begins, so the last costs as much as the
first, and no index is needed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import FieldViolation, InvalidRequestError, ReadLimitError, SamplesNotFoundError
from evalrpc.reading.page_bound import PageBound
from evalrpc.reading.row_cutting import bounded_row
from evalrpc.reading.sample_files import SampleRows
from evalrpc.results.layout import samples_by_task
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import ModelResult

MAX_ROW_BYTES: Final = 2 * 1024 * 1024
"""A larger row is cut."""

MAX_ROW_VALUES: Final = 256 * 1024
"""A row with more values is cut. Few rows within MAX_ROW_BYTES have so many."""

TOKEN_BYTES: Final = 48
"""What the token of a sample may take in the answer."""


class SamplesPage(NamedTuple):
    """Some rows, the offset of the next, None at the end, the paths of what was cut, and where each row can be read from."""

    rows: list[Struct]
    next_offset: int | None
    truncated_fields: list[str]
    offsets: list[int]


def samples_file(job: JobInfo, models: Mapping[str, ModelResult], model: str, task: str) -> str:
    """Return the path of the samples of one model and task, of all that a job has. An empty name stands for the only one.

    Raises SamplesNotFoundError, and InvalidRequestError for an empty name where there are several. Both list what there is.
    """
    model = _chosen(job, "model", model, models)
    by_task = samples_by_task(models[model])
    return by_task[_chosen(job, "task", task, by_task)]


def read_page(
    rows: SampleRows, page_size: int, is_wanted: Callable[[Mapping[str, object]], bool] = lambda _: True
) -> SamplesPage:
    """Take a page of the wanted ones from the front of the rows, reading at most one past it. Rows that are too large for any
    page are cut; one that is too large to be read counts as wanted.

    The page ends early where the budget of the rows does. Raises ReadLimitError if that is before it has got any further.
    """
    page = SamplesPage([], None, [], [])
    bound = PageBound(page_size, bytes_beside=TOKEN_BYTES)
    begin = end = rows.position
    try:
        for values, next_end, is_too_large in rows:
            if is_too_large or is_wanted(values):
                row, cut_fields = bounded_row(values, MAX_ROW_BYTES, MAX_ROW_VALUES)
                cut_paths = [f"samples[{len(page.rows)}]{field}" for field in ([""] if is_too_large else cut_fields)]
                if not bound.takes(row, cut_paths):
                    return page._replace(next_offset=end)
                page.truncated_fields.extend(cut_paths)
                page.rows.append(row)
                page.offsets.append(end)
            end = next_end
    except ReadLimitError:
        if rows.position == begin:
            raise
        return page._replace(next_offset=rows.position)
    return page


def _chosen(job: JobInfo, kind: str, name: str, there_are: Iterable[str]) -> str:
    """Return the name, or the only one if it is empty. Raises SamplesNotFoundError, and InvalidRequestError
    for the field `kind`, where it is empty and there are several."""
    names = sorted(there_are)
    if name in names:
        return name
    if len(names) == 1 and not name:
        return names[0]
    if names and not name:
        problem = f"is required, since job {job.job_id} has samples of several {kind}s: {', '.join(names)}"
        raise InvalidRequestError(violations=[FieldViolation(kind, problem)])
    problem = f"has no samples of the {kind} {name!r}; it has: {', '.join(names)}" if names else "has no samples"
    raise SamplesNotFoundError(
        f"job {job.job_id} {problem}", metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id}
    )
