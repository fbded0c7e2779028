"""What the weights in folders are, by their content: the SHA-256 of each file, computed once, in the background.

    data_dir/engines/weights/FINGERPRINT        of files with these names, sizes, times and inodes: the key, and each SHA-256
    data_dir/engines/weights/content-SHA256     the key of all files with this content

A folder has a key at once: its fingerprint. That stays its key for good, also once its content is known; a folder whose content
was seen before, such as a copy, gets the key of the first one from then on. So a key never changes under a job that has it.
"""

import hashlib
import json
import logging
import os
import stat
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from evalrpc.files.fingerprints import fingerprint_files, look_at_files
from evalrpc.files.private import create_private_file, make_private_folder
from evalrpc.files.regular import open_named_file, read_named_file

_CHUNK_BYTES: Final = 4 * 1024 * 1024
_MAX_NOTES: Final = 10_000
_MAX_BYTES: Final = 4 << 40
"""Of a folder whose content is read: a sparse file may be larger than any disk."""
_NICENESS: Final = 10

_log = logging.getLogger(__name__)


class Weights:
    """The keys of folders with weights. May be used from several threads."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._lock = threading.Lock()
        self._pending: deque[Path] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def key(self, folder: Path) -> str:
        """Return what is equal for folders with the same weights, as far as that is known; empty, if the files can't be looked
        at. Blocks on the disk."""
        fingerprint = _fingerprint(folder)
        return self._noted_key(fingerprint) or fingerprint

    def begin(self, folder: Path) -> None:
        """Have the content of a folder read, unless it is known. Returns at once."""
        with self._lock:
            if self._stopping.is_set() or folder in self._pending:
                return
            self._pending.append(folder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="weights", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no thread can be started at present, and nothing waits for this one
                    self._thread = None

    def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._lock:
                if not self._pending or self._stopping.is_set():
                    self._thread = None
                    return
                folder = self._pending.popleft()
            try:
                self._read(folder)
            except OSError as error:  # it is read again when the next engine has loaded it
                _log.warning("the weights in %s can't be read: %s", folder, error)

    def _read(self, folder: Path) -> None:
        """Note the content of a folder. Raises OSError."""
        fingerprint = _fingerprint(folder)
        if not fingerprint or self._noted_key(fingerprint):
            return
        digests = {}
        found = [(Path(path), status) for path, status in look_at_files([folder]) if status and stat.S_ISREG(status.st_mode)]
        if sum(status.st_size for _, status in found) > _MAX_BYTES:
            _log.warning("the weights in %s are not read, since they have more than %d bytes", folder, _MAX_BYTES)
            return
        for path, _ in found:
            digest = self._digest_of(path)
            if digest is None:
                return
            digests[str(path.relative_to(folder))] = digest
        if _fingerprint(folder) != fingerprint:  # it was written to meanwhile
            return
        content = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        make_private_folder(self._notes)
        key = self._read_note(f"content-{content}").get("key") or fingerprint
        self._write_note(f"content-{content}", {"key": key})
        self._write_note(fingerprint, {"key": key, "folder": str(folder), "sha256": digests})
        self._forget_oldest()
        _log.info("the weights in %s have the key %s", folder, key)

    def _digest_of(self, path: Path) -> str | None:
        """Return the SHA-256 of a file; None, if the server stops. Raises OSError."""
        digest = hashlib.sha256()
        with open_named_file(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if self._stopping.is_set():
                    return None
        return digest.hexdigest()

    def _noted_key(self, fingerprint: str) -> str:
        return str(self._read_note(fingerprint).get("key", "")) if fingerprint else ""

    def _read_note(self, name: str) -> dict[str, object]:
        with suppress(OSError, ValueError):
            note = json.loads(read_named_file(self._notes / name))
            if isinstance(note, dict):
                return note
        return {}

    def _write_note(self, name: str, note: dict[str, object]) -> None:
        with create_private_file(self._notes / f"{name}.new") as file:
            file.write(json.dumps(note).encode())
        (self._notes / f"{name}.new").replace(self._notes / name)

    def _forget_oldest(self) -> None:
        """Keep the notes from growing for ever: what is forgotten is read again when it is loaded again."""
        notes = sorted(self._notes.iterdir(), key=lambda note: note.stat().st_mtime_ns)
        for note in notes[:-_MAX_NOTES]:
            note.unlink(missing_ok=True)


def _fingerprint(folder: Path) -> str:
    """Return a digest of the names, sizes, times and inodes of the files; empty, if they can't be looked at."""
    files = fingerprint_files([folder], with_inodes=True)
    return files.hex() if files is not None else ""
