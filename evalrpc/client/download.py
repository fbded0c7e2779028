"""Files of a job on the client's disk: where they may go, and how one grows until it is whole."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self

from evalrpc.errors import ArtifactNotFoundError, EvalrpcError, FieldViolation, InvalidRequestError
from evalrpc.v1.evaluation_service_pb2 import Artifact

OnProgress = Callable[[Artifact, int], None]
"""Told after every chunk: the file, and how many bytes of it are here."""

_READ_BYTES: Final = 1024 * 1024


class ChecksumMismatchError(EvalrpcError):
    """The bytes that arrived are not those that the server has listed. What arrived was removed; download again."""

    reason = "CHECKSUM_MISMATCH"
    code = "DATA_LOSS"


def select(artifacts: Iterable[Artifact], names: Sequence[str] | None) -> list[Artifact]:
    """Take the files of these names, in the server's order; None takes all. Raises ArtifactNotFoundError."""
    by_name = {artifact.name: artifact for artifact in artifacts}
    for name in names or ():
        if name not in by_name:
            raise ArtifactNotFoundError(f"the job has no file {name}", metadata={"resource_name": name})
    wanted = by_name.keys() if names is None else set(names)
    return [artifact for name, artifact in by_name.items() if name in wanted]


def target_path(directory: Path, name: str) -> Path:
    """Find the place of a file below the directory. Raises InvalidRequestError for a name that leaves it."""
    parts = PurePosixPath(name).parts
    path = directory.joinpath(*parts) if parts and ".." not in parts and not set(name) & {"\\", "\0"} else directory
    if path == directory or not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidRequestError(violations=[FieldViolation("name", f"{name!r} is no path within the folder")])
    return path


class PartialFile:
    """A file that grows under a name of its own beside its place, and moves there in one step when it is whole.

    The name has the checksum in it, so that a later download goes on where this one broke off, but never with the bytes
    of another file. A context manager: what was written stays on disk whatever happens.
    """

    def __init__(self, directory: Path, artifact: Artifact) -> None:
        """Raises InvalidRequestError for a name that leaves the directory."""
        self.path = target_path(directory, artifact.name)
        """Where the file is when it is whole."""
        self._artifact = artifact
        self._part = self.path.with_name(f".{self.path.name[:200]}.{artifact.sha256[:16] or 'unverified'}.part")
        self._hash = hashlib.sha256()
        self.offset = 0
        """How many bytes are here."""

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
        """Without a checksum nothing tells whose bytes lie there; too many are the trace of two downloads at once."""
        part = self._part
        return bool(self._artifact.sha256) and part.is_file() and part.stat().st_size <= self._artifact.size_bytes

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def finish(self) -> Path:
        """Check the bytes and move the file to its place. Raises ChecksumMismatchError."""
        self._file.close()
        if self._artifact.sha256 and self._hash.hexdigest() != self._artifact.sha256:
            self._part.unlink()
            raise ChecksumMismatchError(f"{self._artifact.name}: the bytes that arrived have another checksum")
        self._part.replace(self.path)
        return self.path


def is_complete(directory: Path, artifact: Artifact) -> bool:
    """Tell whether this very file is in its place already. Raises InvalidRequestError for a name that leaves the directory."""
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
