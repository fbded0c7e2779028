"""Opens the files that a run left, without ever leaving its folder.

Names come from clients, and the folder's content from a harness. So a name is opened part by part, each relative to the one
before, and links are never followed. There is no gap between a check and its use (TOCTOU).

Only a missing file counts as nothing; see `evalrpc.files.errnos`.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evalrpc.errors import ArtifactNotFoundError, FieldViolation, InvalidRequestError
from evalrpc.files.errnos import unreadable
from evalrpc.protobuf.file_names import disk_name, wire_name

_NO_FILE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}
)  # no such name, a link, or a socket


@dataclass(frozen=True, order=True)
class FoundFile:
    """A regular file in a folder."""

    name: str
    """Its path within the folder, with `/`, as `evalrpc.protobuf.file_names` writes it."""
    size_bytes: int
    modified_ns: int


def list_files(folder: Path) -> list[FoundFile]:
    """Return the regular files in a folder and below, sorted by name, without links. Empty if the folder does not exist.

    Raises OSError if one of the folders can't be read.
    """
    return sorted(_walk(folder, ""))


@contextmanager
def open_regular_file(path: Path) -> Iterator[int | None]:
    """Open a file in the server's own folders for reading and yield its descriptor; None if there is no regular file.

    A link, a FIFO or a device that a run has put in its place counts as none, and never blocks. Raises OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        yield None
        return
    try:
        yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


@contextmanager
def open_file(folder: Path, name: str) -> Iterator[int]:
    """Open a regular file inside a folder for reading and yield its descriptor. `name` is as in FoundFile.

    Raises InvalidRequestError for a name that leaves the folder, ArtifactNotFoundError if there is no such file,
    FileUnavailableError and FileUnreadableError if it exists but can't be read.
    """
    descriptor = _open(folder, _parts(name), name)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_found(name)
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(folder: Path, prefix: str) -> Iterator[FoundFile]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        name = f"{prefix}{wire_name(entry.name)}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # removed meanwhile
                status = entry.stat(follow_symlinks=False)
                yield FoundFile(name, status.st_size, status.st_mtime_ns)


def _parts(name: str) -> list[str]:
    parts = disk_name(name).split("/")
    if not name or any("\0" in part for part in parts) or any(part in ("", ".", "..") for part in parts):
        problem = (
            "must be a name from ListArtifacts: a relative path without `.`, `..` or empty parts" if name else "is required"
        )
        raise InvalidRequestError(violations=[FieldViolation("name", problem)])
    return parts


def _open(folder: Path, parts: list[str], name: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(folder, flags | os.O_DIRECTORY)
        for index, part in enumerate(parts):
            kind = os.O_DIRECTORY if index < len(parts) - 1 else os.O_NONBLOCK  # a FIFO must not block the open
            parent = descriptor
            try:
                descriptor = os.open(part, flags | kind | os.O_NOFOLLOW, dir_fd=parent)
            finally:
                os.close(parent)
    except OSError as error:
        raise (_not_found(name) if error.errno in _NO_FILE else unreadable(error)) from error
    return descriptor


def _not_found(name: str) -> ArtifactNotFoundError:
    return ArtifactNotFoundError(
        f"the job has no file {name!r}", metadata={"resource_type": "evalrpc.v1.Artifact", "resource_name": name[:255]}
    )
