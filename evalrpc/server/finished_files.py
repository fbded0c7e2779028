"""How much the files of finished jobs occupy on the disk."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from evalrpc.errors import JobNotFoundError, StoreUnavailableError
from evalrpc.files.trees import disk_bytes
from evalrpc.jobs import lifecycle
from evalrpc.jobs.paths import JOBS_DIR, job_dir, output_folders
from evalrpc.server.problems import Problems
from evalrpc.store.base import Store

_log = logging.getLogger(__name__)


class FinishedFiles:
    """Measures the files of each finished job once. Blocks: runs on one thread.

    Files that several jobs share count once, with the job that ran.
    """

    def __init__(self, store: Store, data_dir: Path, should_stop: Callable[[], bool]) -> None:
        self._store = store
        self._data_dir = data_dir
        self._should_stop = should_stop
        self._sizes: dict[str, int] = {}
        self._problems = Problems(_log, "measure the files of a finished job", "job_id")
        self.total_bytes = 0
        """How much the files of all finished jobs occupy, as far as they were measured."""

    def measure(self) -> None:
        """Measure those that have finished since the last call, and forget what is gone. What can't be measured is logged, and
        tried again by the next call. Raises OSError."""
        names = set(self._names())
        for gone in self._sizes.keys() - names:
            self.forget(gone)
        for name in sorted(names - self._sizes.keys()):
            if self._should_stop():
                return
            try:
                self._measure(name)
            except (StoreUnavailableError, OSError) as error:
                self._problems.report_error(name, error)
            else:
                self._problems.solve(name)

    def forget(self, job_id: str) -> None:
        """Count the files of a job no more."""
        self.total_bytes -= self._sizes.pop(job_id, 0)

    def _measure(self, job_id: str) -> None:
        if folders := self._folders(job_id):
            self._sizes[job_id] = sum(disk_bytes(folder, should_stop=self._should_stop) for folder in folders)
            self.total_bytes += self._sizes[job_id]

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._data_dir / JOBS_DIR)  # noqa: PTH208 - names are all that is needed
        except FileNotFoundError:
            return []

    def _folders(self, job_id: str) -> set[Path]:
        """Return the folders of a job that has finished; none of one that has not, or that is deleted and shared by no job."""
        folder = job_dir(self._data_dir, job_id)
        try:
            stored = self._store.job(job_id)
        except JobNotFoundError:
            return {folder} & {job_dir(self._data_dir, shared) for shared in self._store.jobs_with_files([job_id])}
        return {folder} | output_folders(stored.parse()) if stored.status in lifecycle.TERMINAL else set()
