"""The log of a run that was given secrets.

The run writes it itself, so while it goes on the log is masked whenever it is read. Once nothing is left of the run, the values
are overwritten in the file, each by as many `*`. A mark beside the log then says that nobody needs the values any more, which
may have been exchanged since.
"""

import errno
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from evalrpc.files.opening import open_to_overwrite
from evalrpc.files.private import create_private_file
from evalrpc.jobs.paths import log_path
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.secrets.registry import Secrets
from evalrpc.v1.jobs_pb2 import JobInfo

MAX_OVERWRITTEN_BYTES: Final = 4 * 1024**3
"""The largest log, apart from its holes, in which values are overwritten. A larger one is masked whenever it is read."""

MAX_STRETCHES: Final = 10_000
"""The most stretches of data between holes that such a log may have."""

_MARK: Final = "log-masked"
_CHUNK_BYTES: Final = 1024 * 1024

_access = threading.Lock()  # so that nobody reads a value of which half is overwritten, and which no mask would find any more


def mask_of_log(secrets: Secrets, job: JobInfo, attempt_dir: Path) -> Mask:
    """Return with what the log of an attempt has to be masked. Blocks."""
    return NO_MASK if not job.request.secrets or (attempt_dir / _MARK).exists() else secrets.mask(job.request.secrets)


def read_masked(descriptor: int, offset: int, size_bytes: int, mask: Mask, *, is_growing: bool) -> bytes:
    """Read part of an open log, masked whatever its borders cut in two. Raises OSError.

    From a log that grows, the end is left out as long as it may be the beginning of a value.
    """
    if not mask.longest:
        return os.pread(descriptor, size_bytes, offset)
    margin = mask.longest - 1
    begin = max(0, offset - margin)
    with _access:
        data = os.pread(descriptor, offset - begin + size_bytes + margin, begin)
    held_back = mask.pending(data) if is_growing else 0
    return mask.data(data)[: len(data) - held_back][offset - begin : offset - begin + size_bytes]


def overwrite_values(attempt_dir: Path, mask: Mask) -> None:
    """Overwrite the values in the log of an attempt of which no process is left, and set the mark. Does nothing if a value is
    not known, or the log is too large. Raises OSError."""
    if mask.unreadable:
        return
    with open_to_overwrite(log_path(attempt_dir)) as descriptor:
        if descriptor is not None and mask.longest:
            stretches = list(islice(_stretches_of_data(descriptor), MAX_STRETCHES + 1))
            if len(stretches) > MAX_STRETCHES or sum(end - begin for begin, end in stretches) > MAX_OVERWRITTEN_BYTES:
                return
            for begin, end in stretches:
                _overwrite(descriptor, begin, end, mask)
            os.fsync(descriptor)
    create_private_file(attempt_dir / _MARK).close()


def _overwrite(descriptor: int, begin: int, end: int, mask: Mask) -> None:
    """Overwrite the values in a stretch. No byte is read again once one was written, since values may overlap."""
    window = b""
    for offset in range(begin, end, _CHUNK_BYTES):
        window += os.pread(descriptor, _CHUNK_BYTES + mask.longest - 1 - len(window), offset + len(window))
        for value_begin, value_end in mask.stretches(window):
            if value_begin < _CHUNK_BYTES:  # a later one is whole in the next window
                with _access:
                    os.pwrite(descriptor, b"*" * (value_end - value_begin), offset + value_begin)
        window = window[_CHUNK_BYTES:]


def _stretches_of_data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data: a hole of terabytes costs nothing to make, and hours to read."""
    end = 0
    try:
        while True:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
            yield begin, end
    except OSError as error:
        if error.errno != errno.ENXIO:  # there is no more
            raise
