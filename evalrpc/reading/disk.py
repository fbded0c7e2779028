"""Reads of the disk for callers: on a thread, and never an empty answer where something went wrong."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from evalrpc.errors import OffsetOutOfRangeError
from evalrpc.files.errnos import unreadable

_T = TypeVar("_T")


async def read_on(threads: Executor, read: Callable[[], _T]) -> _T:
    """Read on a thread. What the disk or the operating system refuses is an error with its errno, never an empty answer."""
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, read)
    except OSError as error:
        raise unreadable(error) from error


def require_inside(offset: int, size_bytes: int) -> None:
    """Raise OffsetOutOfRangeError for an offset past the end."""
    if offset > size_bytes:
        raise OffsetOutOfRangeError(
            f"offset {offset} lies past the end, which is at {size_bytes}", metadata={"size_bytes": str(size_bytes)}
        )
