"""The log of a run, read while it is written."""

import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final

from evalrpc.errors import FileUnreadableError
from evalrpc.files.opening import open_regular_file
from evalrpc.jobs.paths import log_path, preparation_dir
from evalrpc.reading.attempts import attempt_number, run_dir
from evalrpc.reading.disk import read_on, require_inside
from evalrpc.secrets.logs import mask_of_log, read_masked
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.secrets.registry import Secrets
from evalrpc.v1.files_pb2 import ReadLogRequest, ReadLogResponse
from evalrpc.v1.jobs_pb2 import JOB_STATUS_QUEUED, JOB_STATUS_RUNNING, JobInfo
from evalrpc.watching.feed import Feed, Send
from evalrpc.watching.wakeups import Heartbeat, Intervals

CHUNK_BYTES: Final = 256 * 1024

_FOLLOW_SECONDS: Final = 0.25


class LogReader:
    """Reads logs for callers. Runs on the event loop; memory stays at one chunk however large a log is."""

    def __init__(self, feed: Feed, data_dir: Path, readers: Executor, secrets: Secrets) -> None:
        self._feed = feed
        self._data_dir = data_dir
        self._readers = readers
        self._secrets = secrets

    async def read_log(self, job_id: str, call: ReadLogRequest, heartbeats: Intervals | None, send: Send) -> None:
        """Send the bytes of a log, and with `follow` what is appended until the attempt has ended, and heartbeats.

        Raises JobNotFoundError, AttemptNotFoundError, OffsetOutOfRangeError, ServerStoppingError, FileUnavailableError,
        FileUnreadableError.
        """
        heartbeat = Heartbeat(heartbeats)
        job = await self._feed.read_job(job_id)
        while call.follow and not call.attempt and not job.attempt and job.status == JOB_STATUS_QUEUED:
            await self._wait(job_id, heartbeat, call.offset, 0, send)
            job = await self._feed.read_job(job_id)
        attempt = attempt_number(job, call.attempt)
        folder = run_dir(self._data_dir, job, attempt)
        path = log_path(preparation_dir(folder) if call.preparation else folder)
        mask = await read_on(self._readers, lambda: _mask(self._secrets, job, folder)) if job.request.secrets else NO_MASK
        offset = call.offset
        require_inside(offset, await read_on(self._readers, lambda: _size(path)))
        while True:
            # Read the status before the file, so that the file has everything written before the end of the attempt.
            job = await self._feed.read_job(job_id)
            is_growing = job.status == JOB_STATUS_RUNNING and job.attempt == attempt
            read = partial(_read_at, path, mask=mask, is_growing=is_growing)
            offset = await self._send_rest(read, offset, attempt, send, heartbeat)
            if not (call.follow and is_growing):
                return
            await self._wait(job_id, heartbeat, offset, attempt, send)

    async def read_engine_log(
        self,
        job_id: str,
        call: ReadLogRequest,
        path_of: Callable[[str], Path | None],
        mask_of: Callable[[str], Mask],
        send: Send,
    ) -> None:
        """Send the bytes of the log of the engine that answered for an attempt, from the engine's start to now. `path_of` says
        where the log of an engine is, `mask_of` what of it is secret; the latter blocks.

        Raises JobNotFoundError, AttemptNotFoundError, OffsetOutOfRangeError, FileUnavailableError, FileUnreadableError.
        """
        job = await self._feed.read_job(job_id)
        attempt = attempt_number(job, call.attempt)
        engine_id = next((each.engine_id for each in job.attempts if each.number == attempt), "")
        path = path_of(engine_id) if engine_id else None
        mask = await read_on(self._readers, lambda: _whole(mask_of(engine_id))) if path else NO_MASK
        require_inside(call.offset, await read_on(self._readers, lambda: _size(path)) if path else 0)
        if path is not None:
            read = partial(_read_at, path, mask=mask, is_growing=True)
            await self._send_rest(read, call.offset, attempt, send, Heartbeat(None))

    async def _send_rest(
        self, read: Callable[[int], bytes], offset: int, attempt: int, send: Send, heartbeat: Heartbeat
    ) -> int:
        """Send what `read` has from an offset on, and return the offset after it."""
        while data := await read_on(self._readers, partial(read, offset)):
            message = ReadLogResponse(data=data, offset=offset, attempt=attempt).SerializeToString()
            offset += len(data)
            del data  # a client that does not read makes the message stay long enough
            await send(message)
            heartbeat.sent()
        return offset

    async def _wait(self, job_id: str, heartbeat: Heartbeat, offset: int, attempt: int, send: Send) -> None:
        """Wait a moment for more of the log, then send a heartbeat if one is due. Raises ServerStoppingError."""
        await self._feed.wait_for_change(job_id, min(_FOLLOW_SECONDS, heartbeat.seconds_left()))
        if heartbeat.is_due():
            await send(ReadLogResponse(offset=offset, attempt=attempt).SerializeToString())
            heartbeat.sent()


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none. Raises OSError."""
    with open_regular_file(path) as descriptor:
        return 0 if descriptor is None else os.fstat(descriptor).st_size


def _read_at(path: Path, offset: int, *, mask: Mask, is_growing: bool) -> bytes:
    """Read part of a log; nothing if there is none. Raises OSError."""
    with open_regular_file(path) as descriptor:
        return b"" if descriptor is None else read_masked(descriptor, offset, CHUNK_BYTES, mask, is_growing=is_growing)


def _mask(secrets: Secrets, job: JobInfo, folder: Path) -> Mask:
    """Return with what the log of an attempt is masked. Raises FileUnreadableError if a value is not known."""
    return _whole(mask_of_log(secrets, job, folder))


def _whole(mask: Mask) -> Mask:
    """Return a mask of which every value is known. Raises FileUnreadableError."""
    if mask.unreadable:
        raise FileUnreadableError(f"the log is withheld: {mask.problem}")
    return mask
