"""The jobs that are queued, those of each owner in the order of service.

Threads: whoever has them guards them by a lock. Only `find` and the counts need none.
"""

from collections.abc import Iterable, Iterator

from sortedcontainers import SortedKeyList

from evalrpc.jobs import transitions
from evalrpc.jobs.defaults import gpus_needed, queue_of
from evalrpc.jobs.served_models import engine_needs, needs_of, needs_text
from evalrpc.scheduling.owner_queue import OwnerQueue
from evalrpc.scheduling.placement import QueuedJob
from evalrpc.store.base import Change, QueuedRow


class QueuedJobs:
    """The queued jobs by id. Those that follow another one are only counted."""

    def __init__(self) -> None:
        self._jobs: dict[str, QueuedJob] = {}
        self._following: set[str] = set()
        self._delayed = _by_readiness()  # those that are not offered yet, since they are to be tried again later
        self.by_owner: dict[str, OwnerQueue] = {}
        """The queue of each owner that has any."""

    def __iter__(self) -> Iterator[QueuedJob]:
        return iter(self._jobs.values())

    def __getitem__(self, job_id: str) -> QueuedJob:
        return self._jobs[job_id]

    def find(self, job_id: str) -> QueuedJob | None:
        """Return a queued job that follows no other."""
        return self._jobs.get(job_id)

    @property
    def count(self) -> int:
        """How many jobs are queued, also those that follow another."""
        return len(self._jobs) + len(self._following)

    @property
    def following_count(self) -> int:
        """How many of the queued jobs follow another."""
        return len(self._following)

    def load(self, rows: Iterable[QueuedRow]) -> None:
        """Take many jobs at once, in the place of all."""
        rows = list(rows)
        self._following = {row.job_id for row in rows if row.follows}
        jobs = [_queued_job(row) for row in rows if not row.follows]
        self._jobs = {job.job_id: job for job in jobs}
        self._delayed = _by_readiness(job for job in jobs if job.ready_seconds)
        by_owner: dict[str, list[QueuedJob]] = {}
        for job in jobs:
            by_owner.setdefault(job.owner, []).append(job)
        self.by_owner = {}
        for owner, of_owner in by_owner.items():
            queue = self.by_owner[owner] = OwnerQueue(owner)
            queue.load((job for job in of_owner if not job.ready_seconds), (job for job in of_owner if job.ready_seconds))

    def add(self, change: Change) -> None:
        """Take a job that is queued now."""
        if transitions.is_follower(change.job):
            self._following.add(change.job.job_id)
            return
        job = _queued_job(_row(change))
        self._jobs[job.job_id] = job
        queue = self.by_owner.setdefault(job.owner, OwnerQueue(job.owner))
        queue.order.add(job)
        if job.ready_seconds:
            self._delayed.add(job)
        else:
            queue.offer(job)

    def remove(self, job_id: str) -> None:
        """Forget a job, if it is queued."""
        self._following.discard(job_id)
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        queue = self.by_owner[job.owner]
        queue.order.remove(job)
        if job in self._delayed:
            self._delayed.remove(job)
        else:
            queue.withdraw(job)
        if not queue.order:
            del self.by_owner[job.owner]

    def offer_ready(self, now_seconds: float) -> None:
        """Let the jobs be chosen that were to be tried again later, if it is later now."""
        while self._delayed and self._delayed[0].ready_seconds <= now_seconds:
            job = self._delayed.pop(0)
            self.by_owner[job.owner].offer(job)

    @property
    def next_ready_seconds(self) -> float | None:
        """The time of day when the next job is ready that was not so for the last `offer_ready`; None where there is none."""
        return self._delayed[0].ready_seconds if self._delayed else None


def _by_readiness(jobs: Iterable[QueuedJob] = ()) -> "SortedKeyList[QueuedJob]":
    return SortedKeyList(jobs, key=lambda job: job.ready_seconds)


def _row(change: Change) -> QueuedRow:
    job = change.job
    return QueuedRow(
        job.job_id,
        change.sequence,
        job.priority,
        gpus_needed(job.request),
        job.created_at.ToNanoseconds(),
        job.retry_at.ToNanoseconds(),
        owner=job.owner,
        engine=needs_text(engine_needs(job.request, job.job_id)),
        executor=queue_of(job.request),
    )


def _queued_job(row: QueuedRow) -> QueuedJob:
    return QueuedJob(
        -row.priority,
        row.sequence,
        row.job_id,
        row.num_gpus,
        row.created_ns / 1e9,
        row.retry_ns / 1e9,
        row.owner,
        row.engine,
        row.executor,
        bool(row.engine) and row.num_gpus == sum(need.num_gpus for need in needs_of(row.engine)),
    )
