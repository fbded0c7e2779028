"""Downloaded job files: where they may go, partial files that are resumed, and what became of each."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self

from evalrpc.errors import ArtifactNotFoundError, EvalrpcError, FieldViolation, InvalidRequestError
from evalrpc.protobuf.file_names import disk_name
from evalrpc.v1.files_pb2 import Artifact

OnProgress = Callable[[Artifact, int], None]
"""Called after every chunk with the file and how many of its bytes have arrived."""

_READ_BYTES: Final = 1024 * 1024
_NOT_IN_NAMES: Final = frozenset('\0<>:"|?*\\' if os.name == "nt" else "\0")
_MAX_NAMED: Final = 5


class ChecksumMismatchError(EvalrpcError):
    """The bytes received do not match the listed checksum. They were removed; download again."""

    reason = "CHECKSUM_MISMATCH"
    code = "DATA_LOSS"


class DownloadError(EvalrpcError):
    """Some files could not be downloaded; all others were. Repeating the download resumes it."""

    reason = "DOWNLOAD_INCOMPLETE"

    def __init__(self, paths: list[Path], errors: dict[str, Exception]) -> None:
        self.paths = paths
        """The files that are there now, sorted by name."""
        self.errors = errors
        """What is wrong with each of the others, by its name."""
        named = [f"{name!r}: {error}" for name, error in islice(errors.items(), _MAX_NAMED)]
        more = ["..."] if len(errors) > len(named) else []
        super().__init__(f"{len(errors)} of {len(errors) + len(paths)} files are missing: {'; '.join(named + more)}")


class Download:
    """What became of the files of one download, so that a bad one does not stop the others."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if it is missing. Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._paths: list[Path] = []
        self._errors: dict[str, Exception] = {}
        self._names: dict[tuple[int, int], str] = {}

    def require_own_place(self, artifact: Artifact) -> None:
        """Raise InvalidRequestError if the file would replace another one of this download, whose name the disk takes for the
        same: many disks ignore case. Also raises it for a name that leaves the directory."""
        path = target_path(self._directory, artifact.name)
        other = self._names.get(_identity(path)) if path.exists() else None
        if other is not None:
            raise _bad_name(f"{artifact.name!r} is the name of {other!r} on this disk, too")

    def add(self, artifact: Artifact, path: Path) -> None:
        """Record a file that is there."""
        self._paths.append(path)
        self._names[_identity(path)] = artifact.name

    def add_failure(self, artifact: Artifact, error: Exception) -> None:
        """Record a file that could not be downloaded."""
        self._errors[artifact.name] = error

    def finish(self) -> list[Path]:
        """Return the paths of all files. Raises DownloadError if any is missing."""
        if self._errors:
            raise DownloadError(self._paths, self._errors) from next(iter(self._errors.values()))
        return self._paths


def select(artifacts: Iterable[Artifact], names: Sequence[str] | None) -> list[Artifact]:
    """Select the files with these names, in the server's order; None selects all. Raises ArtifactNotFoundError."""
    by_name = {artifact.name: artifact for artifact in artifacts}
    for name in names or ():
        if name not in by_name:
            has = ", ".join([*by_name][:_MAX_NAMED]) + (", ..." if len(by_name) > _MAX_NAMED else "")
            raise ArtifactNotFoundError(
                f"the job has no file {name}; it has: {has or 'none'}", metadata={"resource_name": name}
            )
    wanted = by_name.keys() if names is None else set(names)
    return [artifact for name, artifact in by_name.items() if name in wanted]


def target_path(directory: Path, name: str) -> Path:
    """Return the path of a file below the directory. Raises InvalidRequestError for a name that leaves it, and for one that
    the operating system can't have."""
    on_disk = disk_name(name)
    if unusable := sorted(set(on_disk) & _NOT_IN_NAMES):
        raise _bad_name(f"{name!r} contains {unusable[0]!r}, which no file's name can have here")
    parts = PurePosixPath(on_disk).parts
    path = directory.joinpath(*parts) if parts and ".." not in parts else directory
    if path == directory or not path.resolve().is_relative_to(directory.resolve()):
        raise _bad_name(f"{name!r} is no path within the folder")
    return path


class PartialFile:
    """A file that is written under a temporary name next to its target, and renamed atomically once complete.

    The temporary name is derived from the name and the checksum, so a later download resumes where this one broke off, but
    never with the bytes of another file; and it is short, however long the name is. A context manager: leaving it keeps what
    was written on disk.
    """

    def __init__(self, directory: Path, artifact: Artifact) -> None:
        """Raises InvalidRequestError for a name that leaves the directory."""
        self.path = target_path(directory, artifact.name)
        """Where the complete file goes."""
        self._artifact = artifact
        identity = hashlib.sha256(f"{artifact.name}\0{artifact.sha256}".encode()).hexdigest()
        self._part = self.path.with_name(f".{identity[:32]}.part")
        self._hash = hashlib.sha256()
        self.offset = 0
        """How many bytes have arrived."""

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._may_go_on():
            self._part.unlink(missing_ok=True)
        self._file = self._part.open("ab+")
        self._hash, self.offset = _digest(self._part)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def _may_go_on(self) -> bool:
        """Return whether to resume: not without a checksum to identify the bytes, nor with too many (concurrent downloads)."""
        part = self._part
        return bool(self._artifact.sha256) and part.is_file() and part.stat().st_size <= self._artifact.size_bytes

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def finish(self) -> Path:
        """Verify the checksum and move the file to its target. Raises ChecksumMismatchError."""
        self._file.close()
        if self._artifact.sha256 and self._hash.hexdigest() != self._artifact.sha256:
            self._part.unlink()
            raise ChecksumMismatchError(f"{self._artifact.name}: the bytes that arrived have another checksum")
        self._part.replace(self.path)
        return self.path


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _bad_name(description: str) -> InvalidRequestError:
    return InvalidRequestError(violations=[FieldViolation("name", description)])


def is_complete(directory: Path, artifact: Artifact) -> bool:
    """Return whether this exact file is already in place. Raises InvalidRequestError for a name that leaves the directory."""
    path = target_path(directory, artifact.name)
    if not artifact.sha256 or not path.is_file() or path.stat().st_size != artifact.size_bytes:
        return False
    return _digest(path)[0].hexdigest() == artifact.sha256


def _digest(path: Path) -> "tuple[hashlib._Hash, int]":
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            size_bytes += len(data)
    return digest, size_bytes
