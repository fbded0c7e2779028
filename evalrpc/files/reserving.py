"""Room on a disk that a file has beyond its end, so that it can grow into that when the disk is full."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Final

_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE of Linux


def reserve_room(path: Path, size_bytes: int) -> None:
    """Have the disk set aside the first so many bytes of a file, which stays as long as it is. Raises OSError: where the disk
    has no room for that, and where the file system can't do it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _c_library().fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size_bytes)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


@cache  # each time it is opened leaves garbage that only a full collection finds
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
