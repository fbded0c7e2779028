"""Checksums of the files that runs left."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.files.opening import FoundFile, open_file
from evalrpc.files.read_budget import ReadBudget

_HASH_BYTES: Final = 1024 * 1024
_MAX_CHECKSUMS: Final = 10_000


class _Identity(NamedTuple):
    """What changes with a file's bytes. A run can set the time of the last write, but not that of the last change."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class Checksums:
    """SHA-256 of files, cached until a file changes. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Identity, str] = OrderedDict()
        self._lock = threading.Lock()

    def sha256(self, folder: Path, file: FoundFile, budget: ReadBudget) -> str:
        """Return the checksum of a file that was listed, in lower-case hex; empty if it is another one by now.

        Blocks while it reads the file. Raises what `open_file` and `ReadBudget.spend` do, and OSError.
        """
        with open_file(folder, file.name) as descriptor:
            identity = _identity(descriptor)
            if (identity.size_bytes, identity.modified_ns) != (file.size_bytes, file.modified_ns):
                return ""
            with self._lock:
                known = self._known.get(identity)
            return known or self._compute(descriptor, identity, budget)

    def _compute(self, descriptor: int, identity: _Identity, budget: ReadBudget) -> str:
        digest = hashlib.sha256()
        while data := os.read(descriptor, _HASH_BYTES):
            budget.spend(len(data))
            digest.update(data)
        if _identity(descriptor) != identity:
            return ""
        with self._lock:
            self._known[identity] = digest.hexdigest()
            while len(self._known) > _MAX_CHECKSUMS:
                self._known.popitem(last=False)
        return digest.hexdigest()


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
