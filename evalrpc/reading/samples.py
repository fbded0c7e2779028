"""Per-sample predictions, a page at a time.

What is large is read in a process of its own: a single row may take a minute to parse and to cut, and hold the interpreter for
seconds of it.
"""

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.errors import ReadLimitError, SamplesNotFoundError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.harnesses.base import Harness
from evalrpc.reading import page_tokens
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.disk import read_on
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.processes import ReadingProcesses
from evalrpc.reading.sample_pages import samples_file
from evalrpc.reading.sample_rows import Page, SampleSource, read_rows, read_rows_in_process
from evalrpc.scheduling.limited_process import Limits
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo
from evalrpc.v1.samples_pb2 import ListSamplesRequest, ListSamplesResponse
from evalrpc.watching.feed import Feed

IN_PLACE_LIMITS: Final = ReadLimits(max_bytes=64 * 1024**2, max_seconds=2.0, max_row_bytes=512 * 1024)
"""For a page that is read in the server itself. The longest row of these holds the interpreter for about 40 ms."""

PROCESS_LIMITS: Final = ReadLimits(max_bytes=1024**3, max_seconds=10.0)
"""For a page that is read in a process."""

PROCESS_USE: Final = Limits(memory_bytes=1024**3, processor_seconds=20)


class SampleLister:
    """Lists samples for callers. Runs on the event loop. `listers` read small rows, `processes` the others."""

    def __init__(
        self,
        feed: Feed,
        data_dir: Path,
        harnesses: Mapping[str, Harness],
        harness_settings: Mapping[str, HarnessSettings],
        listers: Executor,
        processes: ReadingProcesses,
    ) -> None:
        self._feed = feed
        self._data_dir = data_dir
        self._results = JobResults(data_dir)
        self._harnesses = harnesses
        self._harness_settings = harness_settings
        self._listers = listers
        self._processes = processes

    async def list_samples(self, job_id: str, call: ListSamplesRequest, page_size: int, owner: str = "") -> bytes:
        """List a page of samples, as a serialised ListSamplesResponse. `owner`: who asks.

        Raises JobNotFoundError, SamplesNotFoundError, FileUnavailableError, FileUnreadableError, ReadLimitError,
        InvalidRequestError for a bad token.
        """
        job = await self._feed.read_job(job_id)
        listing = ListSamplesRequest(job_id=job_id, model=call.model, task=call.task, filter=call.filter)
        offset = page_tokens.decode(call.page_token, listing) or 0
        source = await source_of(job, call.model, call.task, offset, self._data_dir, self._results, self._listers)
        matching = call.filter.SerializeToString()
        page = None
        if not matching:  # else all rows are looked at, which would take the interpreter from others
            page = await self._read_in_place(source, page_size)
        if page is None:
            settings = self._harness_settings.get(source.job.request.harness)
            arguments = (source, page_size, matching, settings, PROCESS_LIMITS)
            page = await self._processes.call(PROCESS_USE, read_rows_in_process, *arguments, owner=owner)
        named = sample_place(job_id, call.model, call.task)
        answer = ListSamplesResponse(
            sample_tokens=[page_tokens.encode(offset, named) for offset in page.offsets],
            next_page_token="" if page.next_offset is None else page_tokens.encode(page.next_offset, listing),
        )
        return page.serialized + answer.SerializeToString()

    async def _read_in_place(self, source: SampleSource, page_size: int) -> Page | None:
        """Read a page in the server itself; None where the first row alone takes too long for that."""
        budget = ReadBudget(IN_PLACE_LIMITS)
        try:
            return await read_on(self._listers, lambda: read_rows(source, page_size, self._harnesses, budget), budget.stop)
        except ReadLimitError:
            return None


def sample_place(job_id: str, model: str, task: str) -> ListSamplesRequest:
    """Return what the token of a sample is of, for `page_tokens`."""
    return ListSamplesRequest(job_id=job_id, model=model, task=task, page_size=1)


async def source_of(
    job: JobInfo, model: str, task: str, offset: int, data_dir: Path, results: JobResults, listers: Executor
) -> SampleSource:
    """Return where the samples of one model and task are. Raises SamplesNotFoundError, InvalidRequestError."""
    folder = output_dir(data_dir, job)
    if folder is None:
        raise SamplesNotFoundError(f"job {job.job_id} has not run yet, so it has no samples")
    path = await read_on(listers, lambda: samples_file(job, results.heads(job), model, task))
    return SampleSource(JobInfo(job_id=job.job_id, request=EvaluateRequest(harness=job.request.harness)), folder, path, offset)
