"""Sample files, row by row: a JSON object per line, or a harness's own format, which that harness reads."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.errors import InvalidRequestError, SamplesNotFoundError
from evalrpc.files.errnos import unreadable
from evalrpc.files.opening import open_file
from evalrpc.files.read_budget import ReadBudget, open_within
from evalrpc.harnesses.base import Harness, SampleReader, SampleRow
from evalrpc.protobuf.bounds import json_integer
from evalrpc.results.layout import samples_task
from evalrpc.v1.jobs_pb2 import JobInfo

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The length of a line that is read as a row."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_BEFORE_OBJECT: Final = _BYTE_ORDER_MARK + b" \t\r\n"
_WHITE_SPACE: Final = " \t\r\n"  # of JSON
_DECODER: Final = json.JSONDecoder(parse_int=json_integer)

_Read = Callable[[BinaryIO, int], Iterator[SampleRow | int]]
"""Yields rows from an offset on and, in between, how far it has got without one."""


class SampleRows:
    """The rows of an open file, once. One row is in memory at a time."""

    def __init__(self, rows: Iterator[SampleRow | int], offset: int = 0, budget: ReadBudget | None = None) -> None:
        self._rows = rows
        self._budget = budget
        self.position = offset
        """Where reading can go on after what was read so far."""

    def __iter__(self) -> Iterator[SampleRow]:
        for row in self._rows:
            if self._budget is not None:
                self._budget.begin_row()
            if isinstance(row, SampleRow):
                self.position = row.end
                yield row
            else:
                self.position = row


@contextmanager
def open_samples(
    job: JobInfo, folder: Path, path: str, harnesses: Mapping[str, Harness], offset: int = 0, budget: ReadBudget | None = None
) -> Iterator[SampleRows]:
    """Open a sample file in the job's output folder, and yield its rows from an offset on: 0, the `end` of a row, or a
    `position`. Blocks on the disk.

    Raises ArtifactNotFoundError if the file is gone, FileUnavailableError and FileUnreadableError if it can't be read,
    InvalidRequestError for an offset past its end. The rows raise SamplesNotFoundError where the file can't be parsed any
    further, and what `ReadBudget.spend` does; lines that should be JSON objects and are not are skipped.
    """
    read = _reader(job, path, harnesses)
    with open_file(folder, os.path.relpath(path, folder)) as descriptor, _opened(descriptor, budget) as file:
        if offset > os.fstat(descriptor).st_size:
            raise InvalidRequestError("page_token: lies past the end of the samples")
        yield SampleRows(_understood(job, path, read(file, offset)), offset, budget)


def read_lines(file: BinaryIO, offset: int) -> Iterator[SampleRow | int]:
    """Yield the JSON objects of a file that has one per line, from an offset on, and, in between, how far it has got without
    one. Other lines are skipped, and so is the rest of a line if the offset lies within one."""
    file.seek(max(0, offset - 1))
    is_whole = not offset or file.read(1) == b"\n"
    while line := file.readline(MAX_LINE_BYTES):
        offset += len(line)
        ends = line.endswith(b"\n")
        may_be_row = is_whole and line.lstrip(_BEFORE_OBJECT).startswith(b"{")
        if may_be_row and len(line) == MAX_LINE_BYTES and not ends:
            yield SampleRow({}, offset, is_too_large=True)
        elif may_be_row and isinstance(values := _decode(line), dict):
            yield SampleRow(values, offset)
        else:
            yield offset
        is_whole = ends


def _opened(descriptor: int, budget: ReadBudget | None) -> AbstractContextManager[BinaryIO]:
    return open(descriptor, "rb", closefd=False) if budget is None else open_within(budget, descriptor)


def _decode(line: bytes) -> object:
    """Return the value of a line that may be an object; None if it is no JSON."""
    try:
        text = line.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogatepass").strip(_WHITE_SPACE)
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) else None


def _reader(job: JobInfo, path: str, harnesses: Mapping[str, Harness]) -> _Read:
    """Return the reader of a file, by its name: only the name of a file with an object per line gives its task."""
    if samples_task(path) is not None:
        return read_lines
    harness = harnesses.get(job.request.harness)
    if harness is None or not isinstance(harness, SampleReader):
        problem = f"are in the format of the harness {job.request.harness}, which this server does not have (any more)"
        raise _not_found(job, path, problem)
    return harness.read_samples


def _understood(job: JobInfo, path: str, rows: Iterator[SampleRow | int]) -> Iterator[SampleRow | int]:
    try:
        yield from rows
    except OSError as error:
        raise unreadable(error) from error
    except (ValueError, RecursionError) as error:
        raise _not_found(job, path, f"can't be read to their end: {error}") from error


def _not_found(job: JobInfo, path: str, problem: str) -> SamplesNotFoundError:
    return SamplesNotFoundError(
        f"job {job.job_id}: the samples in {Path(path).name} {problem}; ReadArtifact gives the file as it is",
        metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id},
    )
