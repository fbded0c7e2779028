"""Deletion of finished jobs that are too old, too many, or too large together."""

import logging
from collections.abc import Callable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.errors import JobNotFoundError, StoreUnavailableError
from evalrpc.server.job_files import JobFiles
from evalrpc.server.problems import Problems
from evalrpc.server.removals import Removals
from evalrpc.store.base import UNBOUNDED, Store

_PAGE: Final = 500
_MAX_FAILURES: Final = 20

_log = logging.getLogger(__name__)


class Retention:
    """Deletes terminal jobs beyond a maximum age, number or size, with the files that no other job refers to; never live jobs.

    Blocks: runs on one thread.
    """

    def __init__(self, store: Store, clock: Clock, settings: Settings, removals: Removals, files: JobFiles) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._removals = removals
        self._files = files
        self._problems = Problems(_log, "delete a job by the retention settings", "job_id")

    def sweep(self) -> int:
        """Delete the jobs that are too old or too many, and return their number. Raises StoreUnavailableError if none can be
        deleted."""
        if not (self._settings.retention_max_age_seconds or self._settings.retention_max_jobs):
            return 0
        keep = self._settings.retention_max_jobs or UNBOUNDED
        return self._delete(lambda limit: self._store.expired_jobs(self._cutoff(), keep, limit), lambda: False)

    def sweep_bytes(self) -> int:
        """Delete those that ended first until the files of the others are small enough, and return their number.

        Raises StoreUnavailableError if none can be deleted, and OSError.
        """
        max_bytes = self._settings.retention_max_bytes
        if not max_bytes:
            return 0
        self._files.measure()
        return self._delete(
            lambda limit: self._store.expired_jobs(Timestamp(), 0, limit), lambda: self._files.total_bytes <= max_bytes
        )

    def _delete(self, find: Callable[[int], list[str]], is_enough: Callable[[], bool]) -> int:
        """Delete what `find` finds, until it finds no more or that is enough. Jobs that can't be deleted stop no others."""
        deleted, failed = 0, set[str]()
        while not is_enough() and (page := [job_id for job_id in find(_PAGE + len(failed)) if job_id not in failed]):
            for job_id in page:
                if self._removals.stopping or is_enough():
                    break
                try:
                    deleted += self._delete_job(job_id)
                except StoreUnavailableError as error:
                    failed.add(job_id)
                    self._problems.report_error(job_id, error)
                    if len(failed) >= _MAX_FAILURES:  # it is not these jobs: nothing can be written
                        raise
            if self._removals.stopping:
                break
        if deleted:
            _log.info("deleted %d jobs by the retention settings", deleted)
        return deleted

    def _delete_job(self, job_id: str) -> bool:
        try:
            deleted = self._store.delete(job_id).result()
        except JobNotFoundError:
            return False  # a client deleted it first
        self._problems.solve(job_id)
        if deleted.files_of:
            self._files.forget(deleted.files_of)
            self._removals.remove(deleted.files_of)
        return True

    def _cutoff(self) -> Timestamp:
        cutoff = Timestamp()
        if self._settings.retention_max_age_seconds:
            max_age_ns = int(self._settings.retention_max_age_seconds * 1e9)
            cutoff.FromNanoseconds(max(0, self._clock.now().ToNanoseconds() - max_age_ns))
        return cutoff
