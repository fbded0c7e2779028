"""Memory that the server needs no more goes back to the machine."""

import ctypes
import gc
from contextlib import suppress
from typing import Any, Final

_ARENA_MAX: Final = -8  # M_ARENA_MAX of glibc's mallopt
_ARENAS: Final = 2


def limit_arenas() -> None:
    """Have glibc share two heaps among all threads, instead of one for each, which would all keep their largest size. Called
    before there are threads."""
    if (mallopt := _from_c("mallopt")) is not None:
        mallopt(_ARENA_MAX, _ARENAS)


def give_memory_back() -> None:
    """Give back what was freed, and what only garbage refers to. glibc keeps much of it: after large pages, and streams that
    were not read, several times as much as an idle server has."""
    gc.collect()
    if (trim := _from_c("malloc_trim")) is not None:
        trim(0)


def _from_c(name: str) -> Any:
    """Return a function of the C library; None where it has none of this name, as others than glibc."""
    with suppress(AttributeError, OSError):
        return getattr(ctypes.CDLL(None), name)
    return None
