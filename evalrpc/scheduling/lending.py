"""Which recordings of an owner's other jobs an attempt may take answers from: of the same weights, and of jobs that share runs.

data_dir/engines/lending/DIGEST     of an owner and what the answers depend on: a recording in each line, the latest last
"""

import hashlib
import threading
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.engines.gateway.contract import Lender
from evalrpc.files.opening import read_note
from evalrpc.files.private import create_private_file, make_private_folder
from evalrpc.jobs.paths import ENGINES_DIR, job_dir

_FOLDER: Final = "lending"
_MAX_LENDERS: Final = 16
_MAX_KEPT: Final = 64
_MAX_NOTE_BYTES: Final = 64 * 1024
_MAX_KEYS: Final = 10_000


class Recorded(NamedTuple):
    """A recording of a job."""

    job_id: str
    name: str
    """Of the file, in the job's folder."""
    key_prefix: str
    """That of its routes to the gateway."""


class Lending:
    """The recordings by owner and key. May be used from several threads."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._folder = data_dir / ENGINES_DIR / _FOLDER
        self._lock = threading.Lock()

    def lenders(self, owner: str, key: str, job_id: str) -> tuple[Lender, ...]:
        """Return the recordings from which a job may take answers that depend on `key`, the latest first. Raises OSError."""
        others = [each for each in reversed(self._recorded(_name(owner, key))) if each.job_id != job_id]
        lenders = (Lender(str(job_dir(self._data_dir, each.job_id) / each.name), each.key_prefix) for each in others)
        return tuple(lender for lender in lenders if Path(lender.recording).is_file())[:_MAX_LENDERS]

    def add(self, owner: str, key: str, recorded: Recorded) -> None:
        """Let the owner's later jobs take answers from a recording. Raises OSError."""
        name = _name(owner, key)
        with self._lock:
            kept = [each for each in self._recorded(name) if each != recorded][1 - _MAX_KEPT :]
            make_private_folder(self._folder)
            with create_private_file(self._folder / f"{name}.new") as file:
                file.write("".join(f"{' '.join(each)}\n" for each in (*kept, recorded)).encode())
            (self._folder / f"{name}.new").replace(self._folder / name)
            self._forget_oldest()

    def _recorded(self, name: str) -> list[Recorded]:
        lines = (read_note(self._folder, name, _MAX_NOTE_BYTES) or b"").decode().splitlines() if self._folder.is_dir() else []
        return [Recorded(*parts) for line in lines if len(parts := line.split(" ")) == len(Recorded._fields)]

    def _forget_oldest(self) -> None:
        """Keep the number of files bounded: what is forgotten is asked again."""
        notes = sorted(self._folder.iterdir(), key=lambda note: note.stat().st_mtime_ns)
        for note in notes[:-_MAX_KEYS]:
            note.unlink(missing_ok=True)


def _name(owner: str, key: str) -> str:
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
