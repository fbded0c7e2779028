"""Sample files, row by row: a JSON object per line, or a harness's own format, which that harness reads."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.errors import InvalidRequestError, SamplesNotFoundError
from evalrpc.files.errnos import unreadable
from evalrpc.files.opening import open_file
from evalrpc.harnesses.base import Harness, SampleReader, SampleRow
from evalrpc.protobuf.bounds import json_integer
from evalrpc.results.layout import samples_task
from evalrpc.v1.jobs_pb2 import JobInfo

_MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_DECODER: Final = json.JSONDecoder(parse_int=json_integer)


@contextmanager
def open_samples(
    job: JobInfo, folder: Path, path: str, harnesses: Mapping[str, Harness], offset: int = 0
) -> Iterator[Iterator[SampleRow]]:
    """Open a sample file in the job's output folder, and yield its rows from an offset on: 0, or the `end` of a row. Blocks on
    the disk. One row is in memory at a time.

    Raises ArtifactNotFoundError if the file is gone, FileUnavailableError and FileUnreadableError if it can't be read,
    InvalidRequestError for an offset past its end. The rows raise SamplesNotFoundError where the file can't be parsed any
    further; lines that should be JSON objects and are not are skipped.
    """
    read = _reader(job, path, harnesses)
    with open_file(folder, os.path.relpath(path, folder)) as descriptor, open(descriptor, "rb", closefd=False) as file:
        if offset > os.fstat(descriptor).st_size:
            raise InvalidRequestError("page_token: lies past the end of the samples")
        yield _understood(job, path, read(file, offset))


def read_lines(file: BinaryIO, offset: int) -> Iterator[SampleRow]:
    """Yield the JSON objects of a file that has one per line, from an offset on. Other lines are skipped."""
    file.seek(offset)
    while line := file.readline(_MAX_LINE_BYTES):
        offset += len(line)
        values = _decode(line)
        if isinstance(values, dict):
            yield SampleRow(values, offset)


def _decode(line: bytes) -> object:
    try:
        return _DECODER.decode(line.decode("utf-8-sig", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


def _reader(job: JobInfo, path: str, harnesses: Mapping[str, Harness]) -> Callable[[BinaryIO, int], Iterator[SampleRow]]:
    """Return the reader of a file, by its name: only the name of a file with an object per line gives its task."""
    if samples_task(path) is not None:
        return read_lines
    harness = harnesses.get(job.request.harness)
    if harness is None or not isinstance(harness, SampleReader):
        problem = f"are in the format of the harness {job.request.harness}, which this server does not have (any more)"
        raise _not_found(job, path, problem)
    return harness.read_samples


def _understood(job: JobInfo, path: str, rows: Iterator[SampleRow]) -> Iterator[SampleRow]:
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
