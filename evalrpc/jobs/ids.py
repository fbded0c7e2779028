"""Ids of jobs: UUID4, from the system's own source of randomness."""

import os
import uuid
from collections.abc import Iterator
from typing import Final

_UUID_BYTES: Final = 16
_UUIDS_AT_ONCE: Final = 256


def job_ids() -> Iterator[str]:
    """Yield fresh ids without end, in their canonical form. Used by one thread.

    Randomness is read for many at once: every read lets another thread have the interpreter, and a busy one keeps it for
    milliseconds.
    """
    while True:
        randomness = os.urandom(_UUID_BYTES * _UUIDS_AT_ONCE)
        for start in range(0, len(randomness), _UUID_BYTES):
            yield str(uuid.UUID(bytes=randomness[start : start + _UUID_BYTES], version=4))
