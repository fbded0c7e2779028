"""What the writer of one server has in memory of the database."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from evalrpc.jobs.lifecycle import Status
from evalrpc.store.base import Change, StoredJob
from evalrpc.store.cache import JobCache
from evalrpc.store.postgres import deduplication
from evalrpc.store.postgres.connecting import Connection
from evalrpc.store.postgres.following import Missed
from evalrpc.store.postgres.head import Head
from evalrpc.store.postgres.lease_rows import NO_LEASES, LeaseTable, read_leases
from evalrpc.store.transaction import Transaction
from evalrpc.v1 import jobs_pb2 as pb

_COUNTS = "SELECT owner, status, jobs FROM counts WHERE number > %s"


@dataclass
class State:
    """Where the database stands, as far as this server has read it, and what is counted there."""

    head: Head
    counts_by_owner: dict[tuple[str, Status], int] = field(default_factory=dict)
    followed: set[str] = field(default_factory=set)
    """The jobs that some job follows, or once did."""
    counts: Counter[Status] = field(default_factory=Counter)
    queued_by_owner: Counter[str] = field(default_factory=Counter)
    leases: LeaseTable = NO_LEASES
    """Who has which lease. While the head is locked, and once it is as new as that, this is how it stands."""

    @classmethod
    def read(cls, connection: Connection, head: Head) -> "State":
        """Return what the database has. Raises psycopg.Error."""
        state = cls(head, followed=deduplication.followed_jobs(connection))
        state.count(connection.execute(_COUNTS, (-1,)))
        state.leases = read_leases(connection)
        return state

    def count(self, rows: Iterable[Any]) -> None:
        """Take how many jobs an owner has in a status, for some. Who reads the counts meanwhile keeps those of before."""
        self.counts, self.queued_by_owner = self.counts.copy(), self.queued_by_owner.copy()
        for owner, status, jobs in rows:
            self._set_count(owner, status, jobs)

    def read_counts(self, connection: Connection) -> None:
        """Read what was counted since. Raises psycopg.Error."""
        self.count(connection.execute(_COUNTS, (self.head.number,)))

    def take(self, missed: Missed, cache: JobCache) -> None:
        """Take changes of other servers."""
        for change, stored in missed.changes:
            put(cache, change, stored)
            job = change.job
            if stored is not None and job.status == pb.JOB_STATUS_QUEUED and job.cached_from:
                self.followed.add(job.cached_from)
        self.head = self.head._replace(revision=missed.revision, number=missed.number)

    def take_own(self, transaction: Transaction, cache: JobCache) -> None:
        """Take what this server has committed."""
        for change, serialized in transaction.changes:
            stored = StoredJob(change.sequence, change.job.status, serialized, change.job.owner)
            put(cache, change, None if change.deleted else stored)
        for key, difference in transaction.count_changes.items():
            self.counts_by_owner[key] = self.counts_by_owner.get(key, 0) + difference
        self.counts, self.queued_by_owner = transaction.counts, transaction.queued_by_owner
        self.followed |= transaction.newly_followed
        self.followed -= transaction.settled

    def _set_count(self, owner: str, status: Status, jobs: int) -> None:
        self.counts[status] += jobs - self.counts_by_owner.get((owner, status), 0)
        self.counts_by_owner[owner, status] = jobs
        if status == pb.JOB_STATUS_QUEUED:
            self.queued_by_owner[owner] = jobs


def put(cache: JobCache, change: Change, stored: StoredJob | None) -> None:
    """Let a cache have a job as it is after a change."""
    if stored is None:
        cache.remove(change.job.job_id)
    else:
        cache.put(change.job.job_id, stored)
