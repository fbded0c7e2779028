"""Memory that the server needs no more goes back to the machine."""

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from evalrpc.executors.local.processes import resident_bytes

_ARENA_MAX: Final = -8  # M_ARENA_MAX of glibc's mallopt
_ARENAS: Final = 2
_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD
_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD
_MAPPED_BYTES: Final = 1024 * 1024
_GROWTH: Final = 1.1
_YOUNG, _ALL = 1, 2  # generations of the collector


def limit_arenas() -> None:
    """Have glibc share two heaps among all threads, instead of one for each, which would all keep their largest size, and map
    what takes a megabyte or more apart from them. By itself it raises that bound to 32 MiB as it meets such blocks: then heaps
    grow by them, and what is allocated meanwhile lies scattered, and holds all of their pages. Called before there are threads.
    """
    if (mallopt := _from_c("mallopt")) is not None:
        mallopt(_ARENA_MAX, _ARENAS)
        mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _MAPPED_BYTES)  # as glibc has it by itself; setting the other fixes it at 128 KiB


class Memory:
    """Gives back what was freed, and what only garbage refers to. glibc keeps much of it: after large pages, and streams that
    were not read, several times as much as an idle server has."""

    def __init__(self, forget_unused: Callable[[], None] = lambda: None) -> None:
        """`forget_unused` lets go of what is kept for later calls that may never come."""
        self._kept_bytes = 0
        self._forget_unused = forget_unused

    def give_back(self) -> None:
        """Give back what was freed, and what is kept for later calls that may never come. Collect garbage, too. A full
        collection holds up everything else, so unless the server has grown by a tenth since it was smallest, only what is
        young, such as what gRPC leaves of each call."""
        self._forget_unused()
        has_grown = resident_bytes(os.getpid()) > _GROWTH * self._kept_bytes
        gc.collect(_ALL if has_grown else _YOUNG)
        if (trim := _from_c("malloc_trim")) is not None:
            trim(0)  # also where it has not grown: what was in use at the last time may be free by now
        kept_bytes = resident_bytes(os.getpid())
        self._kept_bytes = kept_bytes if has_grown else min(kept_bytes, self._kept_bytes)


def _from_c(name: str) -> Any:
    """Return a function of the C library; None where it has none of this name, as others than glibc."""
    with suppress(AttributeError, OSError):
        return getattr(ctypes.CDLL(None), name)
    return None
