"""How much the files of jobs occupy on the disk."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from evalrpc.errors import JobNotFoundError, StoreUnavailableError
from evalrpc.files.trees import disk_bytes
from evalrpc.jobs import lifecycle
from evalrpc.jobs.paths import JOBS_DIR, job_dir, output_folders
from evalrpc.server.problems import Problems
from evalrpc.store.base import Store
from evalrpc.v1.jobs_pb2 import JobInfo

_log = logging.getLogger(__name__)


class _Finished(NamedTuple):
    size_bytes: int
    owner: str | None
    """None: the job was deleted, and others share its files."""


class JobFiles:
    """Measures the files of each finished job once, and those of live ones whenever it is asked to. It starts anew with every
    server. Blocks: runs on one thread.

    Files that several jobs share count once, with the job that ran.
    """

    def __init__(self, store: Store, data_dir: Path, should_stop: Callable[[], bool]) -> None:
        self._store = store
        self._data_dir = data_dir
        self._should_stop = should_stop
        self._finished: dict[str, _Finished] = {}
        self._problems = Problems(_log, "measure the files of a finished job", "job_id")
        self.total_bytes = 0
        """How much the files of all finished jobs occupy, as far as they were measured."""

    def measure(self) -> None:
        """Measure those that have finished since the last call, and forget what is gone. What can't be measured is logged, and
        tried again by the next call. Raises OSError."""
        names = self._names()
        for gone in self._finished.keys() - names:
            self.forget(gone)
        for name in sorted(names - self._finished.keys()):
            if self._should_stop():
                return
            try:
                self._measure(name)
            except (StoreUnavailableError, OSError) as error:
                self._problems.report_error(name, error)
            else:
                self._problems.solve(name)

    def by_owner(self) -> Counter[str] | None:
        """Measure those that have finished, and all that are live; return what the jobs of each owner occupy, or None after a
        stop. Raises StoreUnavailableError, and OSError for what can't be measured."""
        self.measure()
        sums: Counter[str] = Counter()
        for job_id in self._names() - self._finished.keys():
            if self._should_stop():
                return None
            try:
                job = self._store.job(job_id).parse()
            except JobNotFoundError:
                continue  # it was deleted, and its files are about to be, unless other jobs share them
            sums[job.owner] += self._disk_bytes(self._folders(job))
        for size_bytes, owner in self._finished.values():
            if owner is not None:
                sums[owner] += size_bytes
        return None if self._should_stop() else sums

    def forget(self, job_id: str) -> None:
        """Count the files of a finished job no more."""
        if (finished := self._finished.pop(job_id, None)) is not None:
            self.total_bytes -= finished.size_bytes

    def _measure(self, job_id: str) -> None:
        """Measure the files of a job that has finished; not of one that has not, or that is deleted and shared by no job."""
        try:
            stored = self._store.job(job_id)
        except JobNotFoundError:
            if self._store.jobs_with_files([job_id]):
                self._count(job_id, _Finished(self._disk_bytes({job_dir(self._data_dir, job_id)}), None))
            return
        if stored.status in lifecycle.TERMINAL:
            job = stored.parse()
            self._count(job_id, _Finished(self._disk_bytes(self._folders(job)), job.owner))

    def _count(self, job_id: str, finished: _Finished) -> None:
        self._finished[job_id] = finished
        self.total_bytes += finished.size_bytes

    def _folders(self, job: JobInfo) -> set[Path]:
        return {job_dir(self._data_dir, job.job_id)} | output_folders(job)

    def _disk_bytes(self, folders: set[Path]) -> int:
        return sum(disk_bytes(folder, should_stop=self._should_stop) for folder in folders)

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self._data_dir / JOBS_DIR))  # noqa: PTH208 - names are all that is needed
        except FileNotFoundError:
            return set()
