"""The files that an attempt left, listed and read from afar.

Runs on the event loop; what has to wait for the disk goes to a thread. The kernel reads files ahead, so most chunks are in the
page cache when their turn comes, and need no thread. Memory stays at one chunk however large a file is.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.errors import EvalrpcError, ReadLimitError
from evalrpc.files.checksums import Checksums
from evalrpc.files.errnos import is_shortage_behind
from evalrpc.files.opening import FoundFile, list_files, open_file
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.protobuf import wire_format
from evalrpc.protobuf.bounds import timestamp_of_ns
from evalrpc.reading import page_tokens
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.disk import read_on, require_inside
from evalrpc.reading.page_bound import PageBound
from evalrpc.reading.remembered import Remembered
from evalrpc.uninterruptible import uninterruptible
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

LISTING_LIMITS: Final = ReadLimits(max_bytes=0, max_seconds=20.0)
"""For a page of a listing. Only names are read."""

CHECKSUM_LIMITS: Final = ReadLimits(max_bytes=64 * 1024**3, max_seconds=20.0)
"""For the checksums of a page. A file that takes more has none."""

_ANY_CHECKSUM: Final = "0" * 64
_MAX_ATTEMPT_DIGITS: Final = 10
_MAX_LISTINGS: Final = 4


class ArtifactReader:
    """Lists and reads files for callers. Chunks are read by `readers`, folders by `listers`, checksums made by `hashers`."""

    def __init__(self, feed: Feed, data_dir: Path, readers: Executor, listers: Executor, hashers: Executor) -> None:
        self._feed = feed
        self._data_dir = data_dir
        self._readers = readers
        self._listers = listers
        self._hashers = hashers
        self._checksums = Checksums()
        self._listings = Remembered[_Listing](_MAX_LISTINGS, lambda _: 1)
        """Recent ones that have more, so that the next page need not look through a large folder again."""

    def forget_unused(self) -> None:
        """Forget the listings whose next page nobody reads any more."""
        self._listings.forget_unused()

    async def list_artifacts(self, job_id: str, call: ListArtifactsRequest, page_size: int) -> ListArtifactsResponse:
        """List a page of the files of an attempt; 0 is the latest. Their checksums, if asked for, are set once the job has
        ended.

        Raises JobNotFoundError, AttemptNotFoundError, FileUnavailableError, FileUnreadableError, ReadLimitError,
        InvalidRequestError for a bad token.
        """
        job = await self._feed.read_job(job_id)
        listing = ListArtifactsRequest(job_id=job_id, attempt=call.attempt)
        attempt, after = _position(call, job, listing)
        folder = output_dir(self._data_dir, job, attempt)
        if folder is None:
            return ListArtifactsResponse()
        budget, has_ended = ReadBudget(LISTING_LIMITS), job.status in TERMINAL
        page = await read_on(self._listers, lambda: self._page(folder, after, page_size, budget, has_ended), budget.stop)
        checksums: Sequence[str] = [""] * len(page.files)
        if call.checksums and has_ended:
            hashing = ReadBudget(CHECKSUM_LIMITS)
            checksums = await read_on(self._hashers, lambda: self._checksums_of(folder, page.files, hashing), hashing.stop)
        listed = page.files[: len(checksums)]
        has_more = page.has_more or len(listed) < len(page.files)
        token = page_tokens.encode_text(f"{attempt}/{listed[-1].name}", listing) if has_more else ""
        return ListArtifactsResponse(artifacts=map(_artifact, listed, checksums), next_page_token=token)

    def _page(self, folder: Path, after: str, page_size: int, budget: ReadBudget, has_ended: bool) -> "_Page":
        listing = self._listings.take((folder, after)) or _Listing(folder, after)
        page = listing.page(page_size, budget)
        if page.has_more and has_ended:  # else the next page may have files that are not there yet
            self._listings.put((folder, page.files[-1].name), listing)
        return page

    def _checksums_of(self, folder: Path, files: Sequence[FoundFile], budget: ReadBudget) -> Sequence[str]:
        """Return the checksums of the first files: of as many as the budget allows, but at least one. Empty for a file that has
        none. The next page begins with the next file."""
        checksums: list[str] = []
        for file in files:
            checksum = self._checksum_of(folder, file, budget)
            if checksum is None and checksums:
                break
            checksums.append(checksum or "")
        return checksums

    def _checksum_of(self, folder: Path, file: FoundFile, budget: ReadBudget) -> str | None:
        """Return the checksum of a file; empty if it is another one by now or can't be read, None if the budget does not
        suffice. Raises what says nothing about the file: FileUnavailableError and OSError for a shortage, CancelledError."""
        if not budget.has_room_for(file.size_bytes):
            return None
        try:
            return self._checksums.sha256(folder, file, budget)
        except ReadLimitError:
            return None
        except (EvalrpcError, OSError) as error:
            if is_shortage_behind(error):
                raise
            return ""

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
            # The descriptor must not be closed while a thread reads from it.
            return await uninterruptible(read_on(self._readers, file.next_message))


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


class _Listing:
    """The files of a folder after a name, page by page."""

    def __init__(self, folder: Path, after: str) -> None:
        self._budget: ReadBudget | None = None
        self._files: Iterator[FoundFile] = list_files(folder, after, self._check)

    def page(self, page_size: int, budget: ReadBudget) -> _Page:
        """Return the next page. Raises OSError, and what `ReadBudget.spend` does."""
        self._budget = budget
        files: list[FoundFile] = []
        bound = PageBound(page_size)
        for file in self._files:
            if not bound.takes(_artifact(file, _ANY_CHECKSUM)):
                self._files = chain((file,), self._files)
                return _Page(files, has_more=True)
            files.append(file)
        return _Page(files, has_more=False)

    def _check(self) -> None:
        if self._budget is not None:
            self._budget.spend()


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


def _artifact(file: FoundFile, sha256: str) -> Artifact:
    modified_at = timestamp_of_ns(file.modified_ns)  # a run may set any time
    return Artifact(name=file.name, size_bytes=file.size_bytes, sha256=sha256, modified_at=modified_at)
