"""The files that an attempt left, listed and read from afar.

Runs on the event loop; what has to wait for the disk goes to a thread. The kernel reads files ahead, so most chunks are in the
page cache when their turn comes, and need no thread. Memory stays at one chunk however large a file is.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.files.checksums import Checksums
from evalrpc.files.opening import FoundFile, list_files, open_file
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.protobuf import wire_format
from evalrpc.protobuf.bounds import timestamp_of_ns
from evalrpc.reading import page_tokens
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.disk import read_on, require_inside
from evalrpc.reading.page_bound import PageBound
from evalrpc.v1.files_pb2 import (
    Artifact,
    ListArtifactsRequest,
    ListArtifactsResponse,
    ReadArtifactRequest,
    ReadArtifactResponse,
)
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.watching.feed import Feed, Reserve, Send, no_reserve

CHUNK_BYTES: Final = 1024 * 1024

_ANY_CHECKSUM: Final = "0" * 64
_MAX_ATTEMPT_DIGITS: Final = 10


class ArtifactReader:
    """Lists and reads files for callers. Checksums, which take long, are made by `hashers`, all else by `readers`."""

    def __init__(self, feed: Feed, data_dir: Path, readers: Executor, hashers: Executor) -> None:
        self._feed = feed
        self._data_dir = data_dir
        self._readers = readers
        self._hashers = hashers
        self._checksums = Checksums()

    async def list_artifacts(self, job_id: str, call: ListArtifactsRequest, page_size: int) -> ListArtifactsResponse:
        """List a page of the files of an attempt; 0 is the latest. Their checksums are set once the job has ended.

        Raises JobNotFoundError, AttemptNotFoundError, FileUnavailableError, FileUnreadableError, InvalidRequestError for a bad
        token.
        """
        job = await self._feed.read_job(job_id)
        listing = ListArtifactsRequest(job_id=job_id, attempt=call.attempt)
        attempt, after = _position(call, job, listing)
        folder = output_dir(self._data_dir, job, attempt)
        if folder is None:
            return ListArtifactsResponse()
        page = await read_on(self._readers, lambda: _artifacts_page(folder, after, page_size))
        token = page_tokens.encode_text(f"{attempt}/{page.files[-1].name}", listing) if page.has_more else ""
        checksums = await self._checksums_of(folder, page.files) if job.status in TERMINAL else repeat("")
        return ListArtifactsResponse(artifacts=map(_artifact, page.files, checksums), next_page_token=token)

    async def _checksums_of(self, folder: Path, files: Sequence[FoundFile]) -> Sequence[str]:
        return await asyncio.gather(
            *(read_on(self._hashers, lambda file=file: self._checksums.sha256(folder, file)) for file in files)  # type: ignore[misc]
        )

    async def read_artifact(self, job_id: str, call: ReadArtifactRequest, send: Send, reserve: Reserve = no_reserve) -> None:
        """Send the bytes of a file as serialised ReadArtifactResponses.

        Raises JobNotFoundError, AttemptNotFoundError, InvalidRequestError, ArtifactNotFoundError, OffsetOutOfRangeError,
        FileUnavailableError, FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        folder = output_dir(self._data_dir, job, call.attempt)
        with ExitStack() as stack:
            descriptor = await read_on(self._readers, lambda: stack.enter_context(open_file(folder, call.name)))
            size_bytes = os.fstat(descriptor).st_size
            require_inside(call.offset, size_bytes)
            end = min(size_bytes, call.offset + call.limit) if call.limit else size_bytes
            if call.offset == end:
                await send(ReadArtifactResponse(offset=end, size_bytes=size_bytes).SerializeToString())
            file = _FileRange(descriptor, call.offset, end, size_bytes)
            if (room := reserve(CHUNK_BYTES)) is not None:
                await room
            while message := await self._next_message(file):
                await send(message)
                if (room := reserve(CHUNK_BYTES)) is not None:
                    del message  # it would be kept for as long as the wait; else, keeping it spares the allocator page faults
                    await room

    async def _next_message(self, file: "_FileRange") -> bytes:
        """Return the next message of a file: at once if its bytes are in the page cache, otherwise through a thread."""
        try:
            return file.next_message(os.RWF_NOWAIT)
        except OSError:  # not cached, or on a file system that can't tell
            pending = asyncio.ensure_future(read_on(self._readers, file.next_message))
        try:
            return await asyncio.shield(pending)
        finally:
            await asyncio.wait([pending])  # the descriptor must not be closed while a thread reads from it


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
        size = min(CHUNK_BYTES, self.end - self.offset)
        if not size:
            return b""
        rest = ReadArtifactResponse(offset=self.offset, size_bytes=self.size_bytes).SerializeToString()
        message, read_bytes = wire_format.file_chunk(
            ReadArtifactResponse.DATA_FIELD_NUMBER, rest, self.descriptor, self.offset, size, flags
        )
        if not read_bytes and flags:
            raise BlockingIOError  # or the file was truncated: a read without flags will tell
        self.offset += read_bytes
        return message if read_bytes else b""


class _Page(NamedTuple):
    """Some files, and whether there are more after them."""

    files: list[FoundFile]
    has_more: bool


def _position(call: ListArtifactsRequest, job: JobInfo, listing: ListArtifactsRequest) -> tuple[int, str]:
    """Return the attempt whose files are listed, and the name after which the page begins.

    A listing of the latest attempt stays with that attempt, even if another one has begun since.
    """
    position = page_tokens.decode_text(call.page_token, listing)
    if position is None:
        return call.attempt or job.attempt, ""
    attempt, slash, after = position.partition("/")
    if not (slash and attempt.isascii() and attempt.isdecimal() and len(attempt) < _MAX_ATTEMPT_DIGITS):
        raise page_tokens.invalid_token()
    return int(attempt), after


def _artifacts_page(folder: Path, after: str, page_size: int) -> _Page:
    files: list[FoundFile] = []
    bound = PageBound(page_size)
    for file in list_files(folder, after):
        if not bound.takes(_artifact(file, _ANY_CHECKSUM)):
            return _Page(files, has_more=True)
        files.append(file)
    return _Page(files, has_more=False)


def _artifact(file: FoundFile, sha256: str) -> Artifact:
    modified_at = timestamp_of_ns(file.modified_ns)  # a run may set any time
    return Artifact(name=file.name, size_bytes=file.size_bytes, sha256=sha256, modified_at=modified_at)
