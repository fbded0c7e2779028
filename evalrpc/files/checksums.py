"""Checksums of the files that runs left."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from evalrpc.files.opening import FoundFile, open_file

_HASH_BYTES: Final = 1024 * 1024
_MAX_CHECKSUMS: Final = 10_000


class Checksums:
    """SHA-256 of files, cached until a file is modified. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Path, FoundFile], str] = OrderedDict()
        self._lock = threading.Lock()

    def sha256(self, folder: Path, file: FoundFile) -> str:
        """Return the checksum in lower-case hex. Blocks while it reads the file. Raises what `open_file` does, and OSError."""
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
