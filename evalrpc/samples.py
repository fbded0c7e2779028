"""Per-sample predictions, a page at a time. A page is named by the byte where it begins, so the last costs as much as the
first, and no index is needed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import InvalidRequestError, SamplesNotFoundError
from evalrpc.files import open_file
from evalrpc.results import samples_task
from evalrpc.v1.job_pb2 import JobInfo

MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
"""A page ends before its rows have more than this, but it has at least one row."""

_READ_BYTES: Final = 256 * 1024


class SamplesPage(NamedTuple):
    """Some rows, and where the next begin; None at the end."""

    rows: list[Struct]
    next_offset: int | None


def samples_file(job: JobInfo, model: str, task: str) -> str:
    """Return the path of the samples of one model and task. Empty names stand for the only one.

    Raises SamplesNotFoundError, saying what there is.
    """
    models = job.results
    if model not in models and (model or len(models) != 1):
        raise _not_found(job, f"model {model!r}" if model else "a model that need not be named", sorted(models))
    result = models[model] if model else next(iter(models.values()))
    by_task = {samples_task(path) or "": path for path in result.samples}
    if task not in by_task and (task or len(by_task) != 1):
        raise _not_found(job, f"task {task!r}" if task else "a task that need not be named", sorted(by_task))
    return by_task[task] if task else next(iter(by_task.values()))


def read_page(folder: Path, path: str, offset: int, page_size: int) -> SamplesPage:
    """Read a page of rows from a byte offset. Blocks on the disk. Lines that are no JSON objects are passed over.

    Raises ArtifactNotFoundError if the file is gone, InvalidRequestError for an offset past the end.
    """
    rows: list[Struct] = []
    size_bytes = 0
    with open_file(folder, os.path.relpath(path, folder)) as descriptor:
        end = os.fstat(descriptor).st_size
        if offset > end:
            raise InvalidRequestError("page_token: lies past the end of the samples")
        for line in _lines(descriptor, offset):
            if rows and (len(rows) == page_size or size_bytes + len(line) > MAX_PAGE_BYTES):
                return SamplesPage(rows, offset)
            offset += len(line)
            size_bytes += len(line)
            if (row := _row(line)) is not None:
                rows.append(row)
    return SamplesPage(rows, None)


def _lines(descriptor: int, offset: int) -> Iterator[bytes]:
    """Yield whole lines with their ends, from an offset on."""
    parts: list[bytes] = []  # of a line that is longer than one read
    while data := os.pread(descriptor, _READ_BYTES, offset):
        offset += len(data)
        *lines, rest = data.split(b"\n")
        for line in lines:
            yield b"".join((*parts, line, b"\n"))
            parts.clear()
        parts.append(rest)
    if any(parts):
        yield b"".join(parts)


def _row(line: bytes) -> Struct | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _to_struct(value) if isinstance(value, dict) else None


def _to_struct(value: dict[str, Any]) -> Struct:
    """Return a JSON object as a Struct. Numbers become doubles; NaN and infinity survive."""
    struct = Struct()
    try:
        struct.update(value)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write and protobuf can't
        readable = json.dumps(value, ensure_ascii=False).encode(errors="replace")
        struct.update(json.loads(readable))
    return struct


def _not_found(job: JobInfo, what: str, there_is: list[str]) -> SamplesNotFoundError:
    known = ", ".join(there_is) or "none"
    return SamplesNotFoundError(
        f"job {job.job_id} has no samples of {what}; it has: {known}",
        metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id},
    )
