"""Downloaded job files: where they may go, and partial files that are resumed."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self

from evalrpc.errors import ArtifactNotFoundError, EvalrpcError, FieldViolation, InvalidRequestError
from evalrpc.v1.files_pb2 import Artifact

OnProgress = Callable[[Artifact, int], None]
"""Called after every chunk with the file and how many of its bytes have arrived."""

_READ_BYTES: Final = 1024 * 1024


class ChecksumMismatchError(EvalrpcError):
    """The bytes received do not match the listed checksum. They were removed; download again."""

    reason = "CHECKSUM_MISMATCH"
    code = "DATA_LOSS"


def select(artifacts: Iterable[Artifact], names: Sequence[str] | None) -> list[Artifact]:
    """Select the files with these names, in the server's order; None selects all. Raises ArtifactNotFoundError."""
    by_name = {artifact.name: artifact for artifact in artifacts}
    for name in names or ():
        if name not in by_name:
            raise ArtifactNotFoundError(f"the job has no file {name}", metadata={"resource_name": name})
    wanted = by_name.keys() if names is None else set(names)
    return [artifact for name, artifact in by_name.items() if name in wanted]


def target_path(directory: Path, name: str) -> Path:
    """Return the path of a file below the directory. Raises InvalidRequestError for a name that leaves it."""
    parts = PurePosixPath(name).parts
    path = directory.joinpath(*parts) if parts and ".." not in parts and not set(name) & {"\\", "\0"} else directory
    if path == directory or not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidRequestError(violations=[FieldViolation("name", f"{name!r} is no path within the folder")])
    return path


class PartialFile:
    """A file that is written under a temporary name next to its target, and renamed atomically once complete.

    The temporary name contains the checksum, so a later download resumes where this one broke off, but never with the bytes
    of another file. A context manager: leaving it keeps what was written on disk.
    """

    def __init__(self, directory: Path, artifact: Artifact) -> None:
        """Raises InvalidRequestError for a name that leaves the directory."""
        self.path = target_path(directory, artifact.name)
        """Where the complete file goes."""
        self._artifact = artifact
        self._part = self.path.with_name(f".{self.path.name[:200]}.{artifact.sha256[:16] or 'unverified'}.part")
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
