"""Removal of jobs that are too old or too many, and of folders that belong to no job."""

import logging
import os
import shutil
import threading
from itertools import islice
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.errors import JobNotFoundError
from evalrpc.jobs.paths import JOBS_DIR, job_dir
from evalrpc.jobs.removal import remove_files
from evalrpc.store.base import Store

_PAGE: Final = 500
_NO_LIMIT: Final = 2**62

_log = logging.getLogger(__name__)


class Retention:
    """Removes terminal jobs beyond a maximum age or number, with the files that no other job refers to; never live jobs.

    Blocks: runs on a thread.
    """

    def __init__(self, store: Store, clock: Clock, data_dir: Path, max_age_seconds: float, max_jobs: int) -> None:
        self._store = store
        self._clock = clock
        self._data_dir = data_dir
        self._max_age_seconds = max_age_seconds
        self._max_jobs = max_jobs
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Make `sweep` and `remove_orphans` return after the current folder. May be called from any thread."""
        self._stopping.set()

    def sweep(self) -> int:
        """Remove what is due now, and return the number of jobs removed. Raises StoreUnavailableError."""
        removed = 0
        while self._limited and (page := self._store.expired_jobs(self._cutoff(), self._max_jobs or _NO_LIMIT, _PAGE)):
            for job_id in page:
                if self._stopping.is_set():
                    return removed
                removed += self._remove(job_id)
        if removed:
            _log.info("removed %d jobs by the retention settings", removed)
        return removed

    def remove_orphans(self) -> int:
        """Remove the folders that no job refers to: a server died after deleting a job and before deleting its files."""
        folder, removed = self._data_dir / JOBS_DIR, 0
        if not folder.is_dir():
            return removed
        with os.scandir(folder) as entries:  # read in batches, since there may be very many
            while page := [entry.name for entry in islice(entries, _PAGE)]:
                for name in set(page) - self._store.jobs_with_files(page):
                    if self._stopping.is_set():
                        return removed
                    shutil.rmtree(job_dir(self._data_dir, name), ignore_errors=True)
                    removed += 1
        return removed

    @property
    def _limited(self) -> bool:
        return bool(self._max_age_seconds or self._max_jobs)

    def _cutoff(self) -> Timestamp:
        cutoff = Timestamp()
        if self._max_age_seconds:
            cutoff.FromNanoseconds(max(0, self._clock.now().ToNanoseconds() - int(self._max_age_seconds * 1e9)))
        return cutoff

    def _remove(self, job_id: str) -> int:
        try:
            deleted = self._store.delete(job_id).result()
        except JobNotFoundError:
            return 0  # a client deleted it first
        if deleted.files_of:
            remove_files(self._data_dir, deleted.files_of, deleted.job)
        return 1
