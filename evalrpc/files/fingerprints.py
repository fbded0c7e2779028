"""Fingerprints of file metadata, which detect changes without reading the files."""

import hashlib
import os
import stat
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

MAX_FILES: Final = 10_000
"""The most files and folders that are examined."""

_DERIVED: Final = "__pycache__"  # Python writes it beside what it imports


def fingerprint_files(paths: Iterable[Path], *, with_inodes: bool = False) -> bytes | None:
    """Return a digest of the names, sizes and times of all files at and below the paths, following links; with their inodes, a
    file that was replaced is another one even where it has the size and the time of the first.

    None if there are more than MAX_FILES, or if something can't be read. A path that does not exist is fine.
    """
    digest = hashlib.sha256()
    pending = [os.fspath(path) for path in paths][::-1]
    left = MAX_FILES
    try:
        while pending:
            if len(pending) > left:
                return None
            left -= 1
            path = pending.pop()
            digest.update(_look_at(path, pending, left, with_inodes=with_inodes))
    except OSError:
        return None
    return digest.digest()


def _look_at(path: str, pending: list[str], limit: int, *, with_inodes: bool) -> bytes:
    """Describe a file or a folder, and push a folder's entries onto `pending`."""
    try:
        status = os.stat(path)  # noqa: PTH116 - faster than Path, for thousands
    except (FileNotFoundError, NotADirectoryError):
        return repr((path, "absent")).encode()
    if not stat.S_ISDIR(status.st_mode):
        inode = (status.st_ino,) if with_inodes else ()
        return repr((path, status.st_size, status.st_mtime_ns, *inode)).encode()
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in islice(entries, limit + 1) if entry.name != _DERIVED)
    pending.extend(os.path.join(path, name) for name in reversed(names))  # noqa: PTH118 - as above
    return repr((path, "folder")).encode()
