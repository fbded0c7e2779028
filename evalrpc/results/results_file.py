"""The complete results of an attempt, in a file of ours, where the job's message can't hold them all.

    a JobInfo with only `results`, complete but for the metrics
    every metric as a ModelMetric, sorted by model, task, metric and filter

Each message comes after its length as a varint. A program of the run could write here, so what is read is not trusted: whatever
is in the place of such a file, the outcome is messages or a ValueError.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from google.protobuf.message import DecodeError

from evalrpc.files.opening import open_regular_file
from evalrpc.files.private import create_private_file
from evalrpc.protobuf.wire_format import delimited, read_delimited
from evalrpc.results.merging import Results
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import ModelMetric, ModelResult

_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_MAX_FILE_BYTES: Final = 1024 * 1024 * 1024
"""Far more than is ever written: 32 MiB of results, and the model's name with each metric."""


class MetricRow(NamedTuple):
    """A metric of a file."""

    metric: ModelMetric
    end: int
    """The offset of the next one."""


def write_results(path: Path, results: Results) -> None:
    """Write a file, or replace it: whoever reads gets the old or the new one, also after a power cut. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    with create_private_file(temporary) as file:
        file.writelines(map(delimited, _messages(results)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def read_heads(path: Path) -> dict[str, ModelResult]:
    """Return the results without their metrics. Raises OSError, also if there is no such file, and ValueError."""
    with _opened(path) as file:
        return dict(_read_heads(file).results)


def read_metrics(path: Path, offset: int = 0) -> Iterator[MetricRow]:
    """Yield the metrics, from an offset on: 0, or the `end` of a row. Raises as `read_heads` does."""
    with _opened(path) as file:
        if offset:
            file.seek(offset)
        else:
            _read_heads(file)
        while (serialized := read_delimited(file, _MAX_MESSAGE_BYTES)) is not None:
            offset = file.tell()
            yield MetricRow(_parse_metric(serialized), offset)


def _messages(results: Results) -> Iterator[bytes]:
    heads = JobInfo()
    for model, result in results.items():
        heads.results[model].MergeFrom(_without_metrics(result))
    yield heads.SerializeToString()
    for model in sorted(results):
        for metric in results[model].metrics:
            yield ModelMetric(model=model, metric=metric).SerializeToString()


def _without_metrics(result: ModelResult) -> ModelResult:
    """Return a copy without the metrics, of which there may be very many."""
    return ModelResult(**{field.name: value for field, value in result.ListFields() if field.name != "metrics"})


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open_regular_file(path) as descriptor:
        if descriptor is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if os.fstat(descriptor).st_size > _MAX_FILE_BYTES:
            raise ValueError("it is larger than any that was written")
        with open(descriptor, "rb", closefd=False) as file:
            yield file


def _read_heads(file: BinaryIO) -> JobInfo:
    serialized = read_delimited(file, _MAX_MESSAGE_BYTES)
    try:
        return JobInfo.FromString(serialized or b"")
    except DecodeError as error:
        raise ValueError("its first message can't be read") from error


def _parse_metric(serialized: bytes) -> ModelMetric:
    if not serialized:
        raise ValueError("one of its messages is empty")
    try:
        return ModelMetric.FromString(serialized)
    except DecodeError as error:
        raise ValueError("one of its messages can't be read") from error
