"""Per-sample predictions, a page at a time."""

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

from evalrpc.errors import SamplesNotFoundError
from evalrpc.harnesses.base import Harness
from evalrpc.reading import page_tokens
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.disk import read_on
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.sample_files import open_samples
from evalrpc.reading.sample_pages import SamplesPage, read_page, samples_file
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.samples_pb2 import ListSamplesRequest, ListSamplesResponse
from evalrpc.watching.feed import Feed


class SampleLister:
    """Lists samples for callers. Runs on the event loop."""

    def __init__(self, feed: Feed, data_dir: Path, harnesses: Mapping[str, Harness], readers: Executor) -> None:
        self._feed = feed
        self._data_dir = data_dir
        self._results = JobResults(data_dir)
        self._harnesses = harnesses
        self._readers = readers

    async def list_samples(self, job_id: str, call: ListSamplesRequest, page_size: int) -> ListSamplesResponse:
        """List a page of samples.

        Raises JobNotFoundError, SamplesNotFoundError, FileUnavailableError, FileUnreadableError, InvalidRequestError for a bad
        token.
        """
        job = await self._feed.read_job(job_id)
        listing = ListSamplesRequest(job_id=job_id, model=call.model, task=call.task)
        offset = page_tokens.decode(call.page_token, listing) or 0
        folder = output_dir(self._data_dir, job)
        if folder is None:
            raise SamplesNotFoundError(f"job {job_id} has not run yet, so it has no samples")
        page = await read_on(self._readers, lambda: self._samples_page(job, call, folder, offset, page_size))
        token = "" if page.next_offset is None else page_tokens.encode(page.next_offset, listing)
        return ListSamplesResponse(samples=page.rows, next_page_token=token, truncated_fields=page.truncated_fields)

    def _samples_page(self, job: JobInfo, call: ListSamplesRequest, folder: Path, offset: int, page_size: int) -> SamplesPage:
        path = samples_file(job, self._results.heads(job), call.model, call.task)
        with open_samples(job, folder, path, self._harnesses, offset) as rows:
            return read_page(rows, page_size)
