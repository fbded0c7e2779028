"""Checksums of the files that runs left."""

import hashlib
import os
import threading
from pathlib import Path
from typing import Final

from evalrpc.files.opening import FoundFile, open_file
from evalrpc.files.read_budget import ReadBudget

_HASH_BYTES: Final = 1024 * 1024
_MAX_CHECKSUMS: Final = 4096


class Checksums:
    """SHA-256 of files, cached until a file changes. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}  # by identity; bytes take a third of what tuples and text do
        self._lock = threading.Lock()

    def sha256(self, folder: Path, file: FoundFile, budget: ReadBudget) -> str:
        """Return the checksum of a file that was listed, in lower-case hex; empty if it is another one by now.

        Blocks while it reads the file. Raises what `open_file` and `ReadBudget.spend` do, and OSError.
        """
        with open_file(folder, file.name) as descriptor:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.modified_ns):
                return ""
            identity = _identity(status)
            with self._lock:
                known = self._known.get(identity)
            return known.hex() if known else self._compute(descriptor, identity, budget)

    def _compute(self, descriptor: int, identity: bytes, budget: ReadBudget) -> str:
        digest = hashlib.sha256()
        while data := os.read(descriptor, _HASH_BYTES):
            budget.spend(len(data))
            digest.update(data)
        if _identity(os.fstat(descriptor)) != identity:
            return ""
        with self._lock:
            self._known[identity] = digest.digest()
            while len(self._known) > _MAX_CHECKSUMS:
                del self._known[next(iter(self._known))]  # the oldest
        return digest.hexdigest()


def _identity(status: os.stat_result) -> bytes:
    """Return what changes with a file's bytes. A run can set the time of the last write, but not that of the last change."""
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return b"%d %d %d %d %d" % identity  # not packed: a time may take more than 64 bits
