"""The file with the audit, and those that it was rotated into: a line of JSON per entry.

The server and the commands that change its tokens write it at the same time, each holding a lock of the file for one append.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from evalrpc.config import Settings
from evalrpc.files.regular import open_named_file

DEFAULT_NAME: Final = "audit.jsonl"
"""The name of the file in the data folder, where the setting names none."""

REFUSALS: Final = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"))
"""The codes of the calls that are recorded whatever they would have done."""

_OPEN: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
_NEWLINE: Final = b"\n"


class AuditEntry(NamedTuple):
    """What is recorded of one call, or of one command. Texts are empty where they do not apply."""

    time: str
    """When it was answered, as ISO 8601 in UTC."""
    call: str
    """The method, or the command, such as `token create`."""
    code: str
    """The gRPC status; `CANCELLED` if the caller has left before the answer, so that the change may have been made or not."""
    reason: str = ""
    """The reason of the error."""
    owner: str = ""
    """Who calls; empty: nobody who has signed in."""
    role: str = ""
    sign_in_method: str = ""
    """`none`, `token`, `certificate`, `oidc`; `local` for a command on the server's machine."""
    token_id: str = ""
    """The token that the caller has signed in with. Never its secret."""
    peer: str = ""
    """The other end of the connection, such as `ipv4:10.0.0.7:50123`; the user of a command, such as `uid:1000`."""
    job_id: str = ""
    target: str = ""
    """What is concerned if it is no job, such as `token 0123456789ab`."""
    request_id: str = ""
    left_out: int = 0
    """How many entries before this one were not written, because the disk was full or because too many calls were refused."""

    def line(self) -> bytes:
        """Return it as a line of the file."""
        return json.dumps(self._asdict()).encode() + _NEWLINE


class AuditFile:
    """A file of at most `max_bytes`, or of one entry, and `max_files` in all with those that were rotated, which have the names
    `FILE.1` (the newest), `FILE.2` and so on. All are private to the server's account. Thread-safe, and safe with other
    processes."""

    def __init__(self, path: Path, max_bytes: int, max_files: int) -> None:
        self.path: Final = path
        """The file that is written now."""
        self._max_bytes = max_bytes
        self._max_files = max_files

    def append(self, entries: Iterable[AuditEntry]) -> None:
        """Write all of the entries, in order, or none of them. Raises OSError."""
        data = b"".join(entry.line() for entry in entries)
        while not self._try_append(data):
            pass

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield all entries as they were written, the oldest first. Lines that are damaged are left out. Raises OSError."""
        with ExitStack() as stack:
            for file in reversed([stack.enter_context(file) for file in self._open_all()]):
                yield from _entries(file)

    def _try_append(self, data: bytes) -> bool:
        """Append, or rotate, or find that another has rotated. Return whether the data is written."""
        with self._locked() as descriptor:
            if not self._is_current(descriptor):
                return False
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes and size_bytes + len(data) > self._max_bytes:
                self._rotate()
                return False
            _write(descriptor, size_bytes, data)
            return True

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        """Open the file, or make it for the account that its folder belongs to, also if root does it."""
        try:
            descriptor = os.open(self.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(self.path, _OPEN | os.O_CREAT, 0o600)
        if os.geteuid() == 0:
            folder = self.path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(self._max_files - 1, 0, -1):
            if self._numbered(number - 1).exists():
                self._numbered(number - 1).replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def _open_all(self) -> Iterator[BinaryIO]:
        """Yield the files, the newest first, and each once, even if they are rotated meanwhile."""
        seen: set[tuple[int, int]] = set()
        for number in range(self._max_files):
            try:
                file = open_named_file(self._numbered(number))
            except FileNotFoundError:
                continue
            status = os.fstat(file.fileno())
            if (identity := (status.st_dev, status.st_ino)) not in seen:
                seen.add(identity)
                yield file


def audit_file(settings: Settings) -> AuditFile:
    """Return the file that the settings name."""
    path = settings.audit_file or settings.data_dir / DEFAULT_NAME
    return AuditFile(path, settings.audit_max_bytes, settings.audit_max_files)


def _write(descriptor: int, size_bytes: int, data: bytes) -> None:
    """Append to a file of this size. If there is no room for all, nothing is left of it, so that no line is cut in two."""
    if size_bytes and os.pread(descriptor, 1, size_bytes - 1) != _NEWLINE:  # whoever wrote it was killed
        data = _NEWLINE + data
    try:
        written = os.write(descriptor, data)
        while written < len(data):  # a full disk takes a part first, and then says so
            written += os.write(descriptor, data[written:])
    except OSError:
        with suppress(OSError):  # the first error says more
            os.ftruncate(descriptor, size_bytes)
        raise


def _entries(file: BinaryIO) -> Iterator[dict[str, Any]]:
    for line in file:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
