"""Ids for submissions: UUIDs of version 7 (RFC 9562), which are ordered by time.

A server keeps an index of all the ids it has seen. Ids in order all go to its end; random ones would each change a page of it.
"""

import os
import time
import uuid
from collections.abc import Callable
from typing import Final

_FIXED_BITS: Final = 0xF << 76 | 0b11 << 62
_VERSION_AND_VARIANT: Final = 7 << 76 | 0b10 << 62


def new_request_id(clock: Callable[[], int] = time.time_ns) -> str:
    """Return a fresh UUID: 48 bits of Unix time in milliseconds, then 74 random bits. `clock` returns it in nanoseconds.

    Ids of different milliseconds sort by time, those of the same one randomly. Thread-safe.
    """
    milliseconds = clock() // 1_000_000
    bits = milliseconds << 80 | int.from_bytes(os.urandom(10))
    return str(uuid.UUID(int=bits & ~_FIXED_BITS | _VERSION_AND_VARIANT))
