"""Rows of samples for a caller, read in the server itself or in a process of its own.

The process imports this module for its first read, and with it nothing that only a server needs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evalrpc.config import HarnessSettings
from evalrpc.errors import SamplesNotFoundError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.registry import build_harness
from evalrpc.reading.sample_files import open_samples
from evalrpc.reading.sample_filters import SampleMatcher, sample_id
from evalrpc.reading.sample_pages import read_page
from evalrpc.reading.sample_references import Reference, find_references
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.samples_pb2 import ListSamplesResponse, SampleFilter


class SampleSource(NamedTuple):
    """Where samples are read from. The job has what is needed of it only."""

    job: JobInfo
    folder: Path
    path: str
    offset: int


class Page(NamedTuple):
    """A page, the offset of the next, None at the end, and the offsets of its rows."""

    serialized: bytes
    """A ListSamplesResponse, without tokens."""
    next_offset: int | None
    offsets: Sequence[int]


class Sample(NamedTuple):
    """What the media of a sample are found by."""

    id: str
    media: Sequence[Reference]


def read_rows(
    source: SampleSource, page_size: int, harnesses: Mapping[str, Harness], budget: ReadBudget, matching: bytes = b""
) -> Page:
    """Read a page of the rows that a serialised SampleFilter takes. Raises what `open_samples` and `read_page` do."""
    matches = SampleMatcher(SampleFilter.FromString(matching)).matches
    with open_samples(source.job, source.folder, source.path, harnesses, source.offset, budget) as rows:
        page = read_page(rows, page_size, matches) if matching else read_page(rows, page_size)
    answer = ListSamplesResponse(samples=page.rows, truncated_fields=page.truncated_fields)
    return Page(answer.SerializeToString(), page.next_offset, page.offsets)


def read_rows_in_process(
    source: SampleSource, page_size: int, matching: bytes, settings: HarnessSettings | None, limits: ReadLimits
) -> Page:
    """Be called in a process that reads. Do what `read_rows` does."""
    return read_rows(source, page_size, _harnesses(settings), ReadBudget(limits), matching)


def find_sample(source: SampleSource, wanted_id: str, harnesses: Mapping[str, Harness], budget: ReadBudget) -> Sample:
    """Return the sample at the offset of a source or, with an id, the first from there on that has it.

    Raises SamplesNotFoundError, and what `open_samples` does.
    """
    with open_samples(source.job, source.folder, source.path, harnesses, source.offset, budget) as rows:
        for row in rows:
            found_id = sample_id(row.values)
            if not wanted_id or found_id == wanted_id:
                return Sample(found_id, find_references(row.values))
    what = f"no sample {wanted_id!r}" if wanted_id else "no sample at this place any more"
    raise SamplesNotFoundError(
        f"job {source.job.job_id} has {what} in {Path(source.path).name}",
        metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": source.job.job_id},
    )


def find_sample_in_process(
    source: SampleSource, wanted_id: str, settings: HarnessSettings | None, limits: ReadLimits
) -> Sample:
    """Be called in a process that reads. Do what `find_sample` does."""
    return find_sample(source, wanted_id, _harnesses(settings), ReadBudget(limits))


def _harnesses(settings: HarnessSettings | None) -> Mapping[str, Harness]:
    """Build the harness that reads a format of its own, in a process that has none yet."""
    return {settings.name: build_harness(settings)} if settings is not None else {}
