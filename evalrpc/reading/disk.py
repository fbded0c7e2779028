"""Reads of the disk for callers: on a thread, and never an empty answer where something went wrong."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from evalrpc.errors import OffsetOutOfRangeError, UnavailableError
from evalrpc.files.errnos import unreadable
from evalrpc.files.read_budget import too_much
from evalrpc.scheduling.limited_process import LimitedProcess, ProcessLimitError

_RETRY_DELAY_SECONDS: Final = 1.0

_T = TypeVar("_T")


async def read_on(threads: Executor, read: Callable[[], _T], stop: Callable[[], None] | None = None) -> _T:
    """Read on a thread. What the disk or the operating system refuses is an error with its errno, never an empty answer. `stop`
    is called once nobody waits for the reading any more.

    Raises FileUnavailableError, FileUnreadableError, UnavailableError if no thread can be started.
    """
    try:
        reading = asyncio.get_running_loop().run_in_executor(threads, read)
    except RuntimeError as error:
        raise UnavailableError(
            f"the server can't read at present: {error}", retry_delay_seconds=_RETRY_DELAY_SECONDS
        ) from error
    try:
        return await reading
    except OSError as error:
        raise unreadable(error) from error
    finally:
        if stop is not None:
            stop()


def read_in(process: LimitedProcess, read: Callable[..., _T], *arguments: object) -> _T:
    """Read in a process of its own. Raises what `LimitedProcess.call` does, but ReadLimitError where its limits are reached."""
    try:
        return process.call(read, *arguments)
    except ProcessLimitError as error:
        use = process.limits
        raise too_much(str(error), limit_memory_bytes=use.memory_bytes, limit_seconds=use.processor_seconds) from error


def require_inside(offset: int, size_bytes: int) -> None:
    """Raise OffsetOutOfRangeError for an offset past the end."""
    if offset > size_bytes:
        raise OffsetOutOfRangeError(
            f"offset {offset} lies past the end, which is at {size_bytes}", metadata={"size_bytes": str(size_bytes)}
        )
