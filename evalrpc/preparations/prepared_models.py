"""The prepared models: who makes which, who uses which, and which are removed.

data_dir/preparations/FINGERPRINT/      a prepared model, whole
data_dir/preparations/*.removed         one that is being removed

Which job makes or uses what is in memory: a server that takes over the runs of an earlier one says it again.
"""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.errors import RunFailedError
from evalrpc.files.private import make_private_folder
from evalrpc.files.trees import Remains, disk_bytes, remove_tree

_REMOVED: Final = ".removed"


@dataclass(frozen=True)
class Making:
    """A model that is being prepared."""

    job_id: str
    """By the run of this job."""
    done: "Future[None]" = field(default_factory=Future)

    def wait(self, seconds: float) -> None:
        """Wait until it is there, was given up, or time is up. Raises RunFailedError if it can't be made."""
        with suppress(TimeoutError, CancelledError):
            try:
                self.done.result(seconds)
            except RunFailedError as error:
                copy = RunFailedError(error.job_error.reason, error.message)
                copy.job_error.CopyFrom(error.job_error)
                raise copy from error


class _Entry(NamedTuple):
    used_ns: int
    fingerprint: str
    size_bytes: int


class PreparedModels:
    """The prepared models of a server. May be used from several threads."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder: Final = folder
        """Where they are."""
        self._clock = clock
        self._lock = threading.Lock()
        self._users: dict[str, str] = {}  # fingerprints by job
        self._making: dict[str, Making] = {}  # by fingerprint

    def use(self, job_id: str, fingerprint: str, *, is_making: bool = False) -> None:
        """Note that a job uses a model: it is not removed until `release`. `is_making`: the job has begun to prepare it."""
        with self._lock:
            self._users[job_id] = fingerprint
            if is_making:
                self._making.setdefault(fingerprint, Making(job_id))

    def next_step(self, job_id: str) -> Making | None:
        """Return by which job the model that a job uses is being prepared, which may be the job itself: from now on, if nobody
        else does. None: it is there."""
        with self._lock:
            fingerprint = self._users[job_id]
            if fingerprint not in self._making:
                if self._touch(fingerprint):
                    return None
                self._making[fingerprint] = Making(job_id)
            return self._making[fingerprint]

    def keep(self, job_id: str, made: Path) -> None:
        """Take over what a job has prepared, all at once, unless a server of another machine has done so. `made` is in the same
        file system. Raises OSError."""
        os.sync()  # what is there after a power cut is whole
        make_private_folder(self.folder)
        with self._lock:
            is_taken = _moved(made, self.folder / self._users[job_id])
            making = self._making.pop(self._users[job_id])
        making.done.set_result(None)
        if not is_taken:
            remove_tree(made)

    def fail(self, job_id: str, error: RunFailedError) -> None:
        """Let those who wait for what a job prepares fail, too."""
        if (making := self._withdraw(job_id)) is not None:
            making.done.set_exception(error)

    def release(self, job_id: str) -> None:
        """Note that a job uses its model no more. If it was preparing it, the next one that waits for it does so anew."""
        if (making := self._withdraw(job_id)) is not None:
            making.done.cancel()
        with self._lock:
            if (fingerprint := self._users.pop(job_id, None)) is not None:
                self._touch(fingerprint)

    def evict(self, max_age_seconds: float, max_bytes: int, should_stop: Callable[[], bool]) -> list[Remains]:
        """Remove those that nobody uses and that were last used too long ago, and more of them, the longest unused first, until
        the others are small enough. 0: no limit. Return what could not be removed. Raises OSError."""
        entries = self._entries(lambda path: disk_bytes(path, should_stop=should_stop) if max_bytes else 0)
        total_bytes = sum(entry.size_bytes for entry in entries)
        oldest_ns = self._clock.now().ToNanoseconds() - int(max_age_seconds * 1e9)
        for entry in entries:
            is_old = bool(max_age_seconds) and entry.used_ns < oldest_ns
            if (is_old or 0 < max_bytes < total_bytes) and self._set_aside(entry.fingerprint):
                total_bytes -= entry.size_bytes
        removed = [path for path in self._paths() if path.name.endswith(_REMOVED)]
        return [remains for path in removed if (remains := remove_tree(path, should_stop)) is not None]

    def _withdraw(self, job_id: str) -> Making | None:
        """Return what a job was preparing, and is no more."""
        with self._lock:
            fingerprint = self._users.get(job_id, "")
            making = self._making.get(fingerprint)
            return self._making.pop(fingerprint) if making is not None and making.job_id == job_id else None

    def _touch(self, fingerprint: str) -> bool:
        """Note that a model is used now. Return whether it is there. Called with the lock held."""
        now_ns = self._clock.now().ToNanoseconds()
        try:
            os.utime(self.folder / fingerprint, ns=(now_ns, now_ns), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _entries(self, measure: Callable[[Path], int]) -> list[_Entry]:
        """Return the models that are there, the longest unused first."""
        return sorted(
            _Entry(path.stat().st_mtime_ns, path.name, measure(path))
            for path in self._paths()
            if not path.name.endswith(_REMOVED)
        )

    def _paths(self) -> list[Path]:
        try:
            with os.scandir(self.folder) as entries:
                return [Path(entry.path) for entry in entries]
        except FileNotFoundError:
            return []

    def _set_aside(self, fingerprint: str) -> bool:
        """Take a model away that nobody uses. Return whether that is so."""
        with self._lock:
            if fingerprint in self._users.values():
                return False
            aside = f"{fingerprint}.{self._clock.now().ToNanoseconds()}{_REMOVED}"  # an earlier one may still be there
            (self.folder / fingerprint).rename(self.folder / aside)
            return True


def _moved(folder: Path, place: Path) -> bool:
    """Move a folder to its place, unless there is one. Return whether it was moved. Raises OSError."""
    try:
        folder.rename(place)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True
