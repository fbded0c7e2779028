"""Fingerprints of file metadata, which detect changes without reading the files."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
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
    try:
        for path, status in look_at_files(paths):
            digest.update(_description(path, status, with_inodes=with_inodes))
    except OSError:
        return None
    return digest.digest()


def look_at_files(paths: Iterable[Path]) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield each file and folder at and below the paths, with its status, following links: a folder before what is in it, and
    that in the order of the names. The status is None where there is nothing. Whatever is there, the walk has an end.

    Raises OSError if there are more than MAX_FILES, or if something can't be read.
    """
    pending = [os.fspath(path) for path in paths][::-1]
    left = MAX_FILES
    while pending:
        if len(pending) > left:
            raise OSError(errno.E2BIG, f"there are more than {MAX_FILES} files and folders")
        left -= 1
        path = pending.pop()
        try:
            status = os.stat(path)  # noqa: PTH116 - faster than Path, for thousands
        except (FileNotFoundError, NotADirectoryError):
            status = None
        yield path, status
        if status is not None and stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in islice(entries, left + 1) if entry.name != _DERIVED)
            pending.extend(os.path.join(path, name) for name in reversed(names))  # noqa: PTH118 - as above


def _description(path: str, status: os.stat_result | None, *, with_inodes: bool) -> bytes:
    if status is None:
        return repr((path, "absent")).encode()
    if stat.S_ISDIR(status.st_mode):
        return repr((path, "folder")).encode()
    inode = (status.st_ino,) if with_inodes else ()
    return repr((path, status.st_size, status.st_mtime_ns, *inode)).encode()
