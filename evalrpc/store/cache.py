"""Jobs in memory, so that most reads need no disk."""

import threading
from collections import OrderedDict

from evalrpc.store.base import StoredJob


class JobCache:
    """Stored jobs, the most recently used up to a number of bytes. The lock is held for a few lines only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._generation = 0
        self._jobs: OrderedDict[str, StoredJob] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, job_id: str) -> StoredJob | None:
        """Return a job, if it is here."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None:
                self._jobs.move_to_end(job_id)
            return job

    def put(self, job_id: str, job: StoredJob) -> None:
        """Take what the writer has committed."""
        with self._lock:
            self._generation += 1
            self._insert(job_id, job)

    @property
    def generation(self) -> int:
        """How often the writer has changed the cache. A reader takes it before it reads the disk."""
        return self._generation

    def fill(self, job_id: str, job: StoredJob, generation: int) -> None:
        """Take what a reader found on the disk, unless the writer has changed anything since `generation`: what was read may
        be out of date by now, and would stay so."""
        with self._lock:
            if generation == self._generation:
                self._insert(job_id, job)

    def remove(self, job_id: str) -> None:
        """Forget what the writer has deleted."""
        with self._lock:
            self._generation += 1
            self._forget(job_id)

    def _insert(self, job_id: str, job: StoredJob) -> None:
        self._forget(job_id)
        self._bytes += len(job.serialized)
        self._jobs[job_id] = job
        while self._bytes > self._max_bytes:
            _, evicted = self._jobs.popitem(last=False)
            self._bytes -= len(evicted.serialized)

    def _forget(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._bytes -= len(job.serialized)
