"""The files that a run left, read without ever leaving its folder.

Names come from clients, and what lies in the folder comes from a harness: so a name is walked part by part, each opened
relative to the one before, and a link is never followed. There is no moment between a check and its use.
"""

import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evalrpc.errors import ArtifactNotFoundError, FieldViolation, InvalidRequestError

_HASH_BYTES: Final = 1024 * 1024
_MAX_CHECKSUMS: Final = 10_000


@dataclass(frozen=True, order=True)
class FoundFile:
    """A regular file in a folder."""

    name: str
    """Its path within the folder, with `/`."""
    size_bytes: int
    modified_ns: int


def list_files(folder: Path) -> list[FoundFile]:
    """Return the regular files in a folder and below, sorted by name, without links. Empty where there is no folder."""
    return sorted(_walk(folder, ""))


@contextmanager
def open_file(folder: Path, name: str) -> Iterator[int]:
    """Open a regular file inside a folder for reading, and give its descriptor.

    Raises InvalidRequestError for a name that leaves the folder, ArtifactNotFoundError where there is no such file.
    """
    descriptor = _open(folder, _parts(name), name)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_found(name)
        yield descriptor
    finally:
        os.close(descriptor)


class Checksums:
    """SHA-256 of files, computed once for as long as a file is not written to. May be used from several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Path, FoundFile], str] = OrderedDict()
        self._lock = threading.Lock()

    def sha256(self, folder: Path, file: FoundFile) -> str:
        """Return the checksum in lower-case hex. Blocks while it reads the file. Raises ArtifactNotFoundError."""
        with self._lock:
            known = self._known.get((folder, file))
        return known or self._compute(folder, file)

    def _compute(self, folder: Path, file: FoundFile) -> str:
        digest = hashlib.sha256()
        with open_file(folder, file.name) as descriptor:
            while data := os.read(descriptor, _HASH_BYTES):
                digest.update(data)
        with self._lock:
            self._known[folder, file] = digest.hexdigest()
            while len(self._known) > _MAX_CHECKSUMS:
                self._known.popitem(last=False)
        return digest.hexdigest()


def _walk(folder: Path, prefix: str) -> Iterator[FoundFile]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if not _is_text(entry.name):
            continue  # a name that no message can carry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            yield FoundFile(prefix + entry.name, status.st_size, status.st_mtime_ns)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
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
        raise _not_found(name) from error
    return descriptor


def _not_found(name: str) -> ArtifactNotFoundError:
    return ArtifactNotFoundError(
        f"the job has no file {name!r}", metadata={"resource_type": "evalrpc.v1.Artifact", "resource_name": name[:255]}
    )
