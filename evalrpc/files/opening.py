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

MAX_NAME_BYTES: Final = 4096
"""The size of a name within a folder, which is that of a path."""

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


def list_files(folder: Path, after: str = "") -> Iterator[FoundFile]:
    """Yield the regular files in a folder and below, sorted by name, without links: those with a name greater than `after`.

    Only folders that have such files are looked into, and only files that are yielded, so a page costs little more than itself.
    Nothing if the folder does not exist. A name of more than MAX_NAME_BYTES is left out. Raises OSError if one of the folders
    can't be read.
    """
    pending = [iter(_names(os.fspath(folder), "", after))]  # no recursion: folders may be nested a thousand deep
    while pending:
        name = next(pending[-1], None)
        if name is None:
            pending.pop()
        elif name.endswith("/"):
            pending.append(iter(_names(f"{folder}/{disk_name(name)}", name, after)))
        else:
            with suppress(FileNotFoundError):  # removed meanwhile
                status = os.lstat(f"{folder}/{disk_name(name)}")
                yield FoundFile(name, status.st_size, status.st_mtime_ns)


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


def _names(folder: str, prefix: str, after: str) -> list[str]:
    """Return the names of the files and folders in a folder, with the prefix, in their order, which is also that of all files
    below them. The name of a folder ends with `/`. Left out are files up to `after`, and folders that have no later ones.

    There may be very many, of which a page takes a few: so what is left out costs next to nothing.
    """
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + wire_name(entry.name)
                as_folder = f"{name}/"
                if (as_folder > after or after.startswith(as_folder)) and len(name.encode()) <= MAX_NAME_BYTES:
                    if entry.is_dir(follow_symlinks=False):
                        names.append(as_folder)
                    elif name > after and entry.is_file(follow_symlinks=False):
                        names.append(name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
    return sorted(names)


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
