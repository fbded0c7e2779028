"""Ids of jobs: UUID4, from the system's own source of randomness."""

import os
import re
import uuid
from collections.abc import Iterator
from typing import Final

_JOB_ID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
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


def is_job_id(value: str) -> bool:
    """Return whether this can be the id of a job."""
    return _JOB_ID.fullmatch(value) is not None
