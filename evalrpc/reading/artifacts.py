"""The files that an attempt left, listed and read from afar.

Runs on the event loop; what has to wait for the disk goes to a thread. The kernel reads files ahead, so most chunks are in the
page cache when their turn comes, and need no thread. Memory stays at one chunk however large a file is.
"""

import asyncio
import os
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from evalrpc.files.checksums import Checksums
from evalrpc.files.opening import FoundFile, list_files, open_file
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.protobuf import wire_format
from evalrpc.protobuf.bounds import timestamp_of_ns
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.disk import read_on, require_inside
from evalrpc.v1.files_pb2 import Artifact, ListArtifactsResponse, ReadArtifactRequest, ReadArtifactResponse
from evalrpc.watching.feed import Feed, Send

CHUNK_BYTES: Final = 1024 * 1024


class ArtifactReader:
    """Lists and reads files for callers. Checksums, which take long, are made by `hashers`, all else by `readers`."""

    def __init__(self, feed: Feed, readers: Executor, hashers: Executor) -> None:
        self._feed = feed
        self._readers = readers
        self._hashers = hashers
        self._checksums = Checksums()

    async def list_artifacts(self, job_id: str, attempt: int) -> ListArtifactsResponse:
        """List the files of an attempt; 0 is the latest. Their checksums are set once the job has ended.

        Raises JobNotFoundError, AttemptNotFoundError, FileUnavailableError, FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        folder = output_dir(job, attempt)
        if folder is None:
            return ListArtifactsResponse()
        files = await read_on(self._readers, lambda: list(list_files(folder)))
        if job.status not in TERMINAL:
            return ListArtifactsResponse(artifacts=[_artifact(file, "") for file in files])
        checksums = await asyncio.gather(
            *(read_on(self._hashers, lambda file=file: self._checksums.sha256(folder, file)) for file in files)  # type: ignore[misc]
        )
        return ListArtifactsResponse(artifacts=list(map(_artifact, files, checksums)))

    async def read_artifact(self, job_id: str, call: ReadArtifactRequest, send: Send) -> None:
        """Send the bytes of a file as serialised ReadArtifactResponses.

        Raises JobNotFoundError, AttemptNotFoundError, InvalidRequestError, ArtifactNotFoundError, OffsetOutOfRangeError,
        FileUnavailableError, FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        folder = output_dir(job, call.attempt)
        with ExitStack() as stack:
            descriptor = await read_on(self._readers, lambda: stack.enter_context(open_file(folder, call.name)))
            size_bytes = os.fstat(descriptor).st_size
            require_inside(call.offset, size_bytes)
            end = min(size_bytes, call.offset + call.limit) if call.limit else size_bytes
            if call.offset == end:
                await send(ReadArtifactResponse(offset=end, size_bytes=size_bytes).SerializeToString())
            file = _FileRange(descriptor, call.offset, end, size_bytes)
            while message := await self._next_message(file):
                await send(message)

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


def _artifact(file: FoundFile, sha256: str) -> Artifact:
    modified_at = timestamp_of_ns(file.modified_ns)  # a run may set any time
    return Artifact(name=file.name, size_bytes=file.size_bytes, sha256=sha256, modified_at=modified_at)
