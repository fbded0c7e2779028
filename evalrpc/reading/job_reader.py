"""What remote clients read of a job: its log, its files, its samples.

Runs on the event loop; what has to wait for the disk goes to a thread. The kernel reads files ahead, so most chunks are in the
page cache when their turn comes, and need no thread. Memory stays at one chunk however large a file is.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from evalrpc.errors import AttemptNotFoundError, OffsetOutOfRangeError, SamplesNotFoundError
from evalrpc.files.checksums import Checksums
from evalrpc.files.errnos import unreadable
from evalrpc.files.opening import FoundFile, list_files, open_file, open_regular_file
from evalrpc.harnesses.base import Harness
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.jobs.paths import attempt_dir, log_path
from evalrpc.jobs.removal import remove_files
from evalrpc.protobuf import wire_format
from evalrpc.protobuf.bounds import timestamp_of_ns
from evalrpc.reading import page_tokens
from evalrpc.reading.sample_files import open_samples
from evalrpc.reading.samples import SamplesPage, read_page, samples_file
from evalrpc.v1 import evaluation_service_pb2 as calls
from evalrpc.v1.job_pb2 import JOB_STATUS_QUEUED, JOB_STATUS_RUNNING, JobInfo
from evalrpc.watching.feed import Feed

LOG_CHUNK_BYTES: Final = 256 * 1024
FILE_CHUNK_BYTES: Final = 1024 * 1024

_FOLLOW_SECONDS: Final = 0.25

_T = TypeVar("_T")
_Send = Callable[[bytes], Awaitable[object]]


class JobReader:
    """Reads what jobs left on disk. Short reads go to `readers`, long ones to `hashers`."""

    def __init__(
        self, feed: Feed, data_dir: Path, harnesses: Mapping[str, Harness], readers: Executor, hashers: Executor
    ) -> None:
        self._feed = feed
        self._data_dir = data_dir
        self._harnesses = harnesses
        self._readers = readers
        self._hashers = hashers
        self._checksums = Checksums()

    async def read_log(self, job_id: str, call: calls.ReadLogRequest, send: _Send) -> None:
        """Send the bytes of a log, and with `follow` what is appended until the attempt has ended.

        Raises JobNotFoundError, AttemptNotFoundError, OffsetOutOfRangeError, ServerStoppingError, FileUnavailableError,
        FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        while call.follow and not call.attempt and not job.attempt and job.status == JOB_STATUS_QUEUED:
            await self._feed.wait_for_change(job_id, _FOLLOW_SECONDS)
            job = await self._feed.read_job(job_id)
        attempt = _attempt_number(job, call.attempt)
        path = log_path(attempt_dir(self._data_dir, job_id, attempt))
        offset = call.offset
        _require_inside(offset, await self._read(lambda: _size(path)))
        while True:
            # Read the status before the file, so that the file has everything written before the end of the attempt.
            job = await self._feed.read_job(job_id)
            while data := await self._read(lambda at=offset: _read_at(path, at, LOG_CHUNK_BYTES)):  # type: ignore[misc]
                await send(calls.ReadLogResponse(data=data, offset=offset, attempt=attempt).SerializeToString())
                offset += len(data)
            if not call.follow or job.status != JOB_STATUS_RUNNING or job.attempt != attempt:
                return
            await self._feed.wait_for_change(job_id, _FOLLOW_SECONDS)

    async def list_artifacts(self, job_id: str, attempt: int) -> calls.ListArtifactsResponse:
        """List the files of an attempt; 0 is the latest. Their checksums are set once the job has ended.

        Raises JobNotFoundError, AttemptNotFoundError, FileUnavailableError, FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        folder = _output_dir(job, attempt)
        if folder is None:
            return calls.ListArtifactsResponse()
        files = await self._read(lambda: list_files(folder))
        if job.status not in TERMINAL:
            return calls.ListArtifactsResponse(artifacts=[_artifact(file, "") for file in files])
        checksums = await asyncio.gather(
            *(self._run(self._hashers, lambda file=file: self._checksums.sha256(folder, file)) for file in files)  # type: ignore[misc]
        )
        return calls.ListArtifactsResponse(artifacts=list(map(_artifact, files, checksums)))

    async def read_artifact(self, job_id: str, call: calls.ReadArtifactRequest, send: _Send) -> None:
        """Send the bytes of a file as serialised ReadArtifactResponses.

        Raises JobNotFoundError, AttemptNotFoundError, InvalidRequestError, ArtifactNotFoundError, OffsetOutOfRangeError,
        FileUnavailableError, FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        folder = _output_dir(job, call.attempt) or Path(os.devnull)
        with ExitStack() as stack:
            descriptor = await self._read(lambda: stack.enter_context(open_file(folder, call.name)))
            size_bytes = os.fstat(descriptor).st_size
            _require_inside(call.offset, size_bytes)
            end = min(size_bytes, call.offset + call.limit) if call.limit else size_bytes
            if call.offset == end:
                await send(calls.ReadArtifactResponse(offset=end, size_bytes=size_bytes).SerializeToString())
            file = _FileRange(descriptor, call.offset, end, size_bytes)
            while message := await self._next_message(file):
                await send(message)

    async def _next_message(self, file: "_FileRange") -> bytes:
        """Return the next message of a file: at once if its bytes are in the page cache, otherwise through a thread."""
        try:
            return file.next_message(os.RWF_NOWAIT)
        except OSError:  # not cached, or on a file system that can't tell
            pending = asyncio.ensure_future(self._read(file.next_message))
        try:
            return await asyncio.shield(pending)
        finally:
            await asyncio.wait([pending])  # the descriptor must not be closed while a thread reads from it

    async def list_samples(self, job_id: str, call: calls.ListSamplesRequest, page_size: int) -> calls.ListSamplesResponse:
        """List a page of samples.

        Raises JobNotFoundError, SamplesNotFoundError, FileUnavailableError, FileUnreadableError, InvalidRequestError for a bad
        token.
        """
        job = await self._feed.read_job(job_id)
        listing = calls.ListSamplesRequest(job_id=job_id, model=call.model, task=call.task)
        offset = page_tokens.decode(call.page_token, listing) or 0
        if not job.attempts:
            raise SamplesNotFoundError(f"job {job_id} has not run yet, so it has no samples")
        path = samples_file(job, call.model, call.task)
        page = await self._read(lambda: self._samples_page(job, path, offset, page_size))
        token = "" if page.next_offset is None else page_tokens.encode(page.next_offset, listing)
        return calls.ListSamplesResponse(samples=page.rows, next_page_token=token)

    def _samples_page(self, job: JobInfo, path: str, offset: int, page_size: int) -> SamplesPage:
        with open_samples(job, path, self._harnesses, offset) as rows:
            return read_page(rows, page_size)

    async def remove_files(self, job: JobInfo) -> None:
        """Remove everything that the server itself created on disk for a deleted job."""
        await self._read(lambda: remove_files(self._data_dir, job))

    async def _read(self, read: Callable[[], _T]) -> _T:
        return await self._run(self._readers, read)

    async def _run(self, executor: Executor, read: Callable[[], _T]) -> _T:
        """Read on a thread. What the disk or the operating system refuses is an error with its errno, never an empty answer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, read)
        except OSError as error:
            raise unreadable(error) from error


@dataclass
class _FileRange:
    """The part of an open file that is still to be sent. Used by one thread at a time."""

    descriptor: int
    offset: int
    end: int
    size_bytes: int

    def next_message(self, flags: int = 0) -> bytes:
        """Return the next chunk as a serialised ReadArtifactResponse, empty at the end. `flags` are those of preadv.

        Blocks on the disk, unless `flags` say otherwise: then it raises BlockingIOError instead.
        """
        size = min(FILE_CHUNK_BYTES, self.end - self.offset)
        if not size:
            return b""
        rest = calls.ReadArtifactResponse(offset=self.offset, size_bytes=self.size_bytes).SerializeToString()
        message, read_bytes = wire_format.file_chunk(
            calls.ReadArtifactResponse.DATA_FIELD_NUMBER, rest, self.descriptor, self.offset, size, flags
        )
        if not read_bytes and flags:
            raise BlockingIOError  # or the file was truncated: a read without flags will tell
        self.offset += read_bytes
        return message if read_bytes else b""


def _attempt_number(job: JobInfo, wanted: int) -> int:
    number = wanted or job.attempt
    if not 1 <= number <= job.attempt:
        there_are = f"it has {job.attempt}" if job.attempt else "none has begun"
        raise AttemptNotFoundError(f"job {job.job_id} has no attempt {number or 1}: {there_are}")
    return number


def _output_dir(job: JobInfo, attempt: int = 0) -> Path | None:
    """Return the output folder of an attempt; None if the latest is meant and none has begun. Raises AttemptNotFoundError."""
    if not attempt and not job.attempts:
        return None
    return Path(job.attempts[_attempt_number(job, attempt) - 1].output_dir)


def _artifact(file: FoundFile, sha256: str) -> calls.Artifact:
    modified_at = timestamp_of_ns(file.modified_ns)  # a run may set any time
    return calls.Artifact(name=file.name, size_bytes=file.size_bytes, sha256=sha256, modified_at=modified_at)


def _require_inside(offset: int, size_bytes: int) -> None:
    if offset > size_bytes:
        raise OffsetOutOfRangeError(
            f"offset {offset} lies past the end, which is at {size_bytes}", metadata={"size_bytes": str(size_bytes)}
        )


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none. Raises OSError."""
    with open_regular_file(path) as descriptor:
        return 0 if descriptor is None else os.fstat(descriptor).st_size


def _read_at(path: Path, offset: int, size_bytes: int) -> bytes:
    """Read part of a file; nothing if there is none. Raises OSError."""
    with open_regular_file(path) as descriptor:
        return b"" if descriptor is None else os.pread(descriptor, size_bytes, offset)
