"""One commit of the SQLite store in the making."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc import lifecycle
from evalrpc.clock import Clock
from evalrpc.defaults import gpus_needed
from evalrpc.errors import JobNotFinishedError, JobNotFoundError, QueueFullError, RequestIdReusedError
from evalrpc.lifecycle import Status
from evalrpc.store.base import Change, Submission
from evalrpc.v1 import job_pb2 as pb

RETRY_DELAY_SECONDS: Final = 1.0
"""What a client is told to wait when the store could not take its write."""

_COMPACTION_CHUNK: Final = 10_000


@dataclass
class Transaction:
    """One commit in the making. It only becomes true when the store publishes it."""

    connection: sqlite3.Connection
    clock: Clock
    max_queued: int
    head: int
    counts: Counter[Status]

    def __post_init__(self) -> None:
        self.counts = self.counts.copy()
        self.changes: list[tuple[Change, bytes]] = []
        self.oldest: int | None = None

    def submit(self, submission: Submission) -> pb.JobInfo:
        """See Store.submit."""
        repeated = self._find_request(submission)
        if repeated is not None:
            return repeated
        superseded = self._queued_with_key(submission.job.supersede_key)
        if self.counts[pb.JOB_STATUS_QUEUED] - len(superseded) >= self.max_queued:
            raise QueueFullError(
                f"the queue is full: {self.max_queued} jobs wait already; try again later",
                retry_delay_seconds=RETRY_DELAY_SECONDS,
            )
        job = pb.JobInfo()
        job.CopyFrom(submission.job)
        for job_id in superseded:
            self.update(job_id, lambda old: _supersede(old, job.job_id, self.clock.now()))
        job.status = pb.JOB_STATUS_QUEUED
        job.created_at.CopyFrom(self.clock.now())
        self._insert(job, submission)
        return job

    def update(self, job_id: str, change: Callable[[pb.JobInfo], None]) -> pb.JobInfo:
        """See Store.update."""
        sequence, job = self._load(job_id)
        previous = job.status
        change(job)
        if job.status == previous:
            self._save(Change(job, sequence, previous, None), job.SerializeToString())
            return job
        lifecycle.require_transition(previous, job.status)
        event = self._journal(job)
        self.counts[previous] -= 1
        self._save(Change(job, sequence, previous, event), job.SerializeToString())
        return job

    def delete(self, job_id: str) -> pb.JobInfo:
        """See Store.delete."""
        sequence, job = self._load(job_id)
        if job.status not in lifecycle.TERMINAL:
            raise JobNotFinishedError(
                f"job {job_id} is {lifecycle.status_name(job.status)}: cancel it first, or wait for its end"
            )
        self.connection.execute("DELETE FROM jobs WHERE sequence = ?", (sequence,))
        self.counts[job.status] -= 1
        self.changes.append((Change(job, sequence, job.status, None, deleted=True), b""))
        return job

    def compact(self, max_events: int, older_than_ns: int) -> int:
        """See Store.compact."""
        (oldest,) = self.connection.execute("SELECT oldest_revision FROM compaction").fetchone()
        (aged,) = self.connection.execute("SELECT max(revision) FROM journal WHERE created_ns < ?", (older_than_ns,)).fetchone()
        through = min(max(aged or 0, self.head - max_events), oldest + _COMPACTION_CHUNK)
        if through > oldest:
            self.connection.execute("DELETE FROM journal WHERE revision <= ?", (through,))
            self.connection.execute("UPDATE compaction SET oldest_revision = ?", (through,))
            self.oldest = oldest = through
        return int(oldest)

    def _find_request(self, submission: Submission) -> pb.JobInfo | None:
        if not submission.request_id:
            return None
        row = self.connection.execute(
            "SELECT fingerprint, job FROM jobs WHERE request_id = ?", (submission.request_id,)
        ).fetchone()
        if row is None:
            return None
        fingerprint, job = row
        if fingerprint != submission.fingerprint:
            raise RequestIdReusedError(
                f"request_id {submission.request_id!r} was used for another submission: choose a fresh one",
                metadata={"request_id": submission.request_id},
            )
        return pb.JobInfo.FromString(job)

    def _queued_with_key(self, supersede_key: str) -> Sequence[str]:
        if not supersede_key:
            return ()
        rows = self.connection.execute(
            "SELECT job_id FROM jobs WHERE supersede_key = ? AND status = ?", (supersede_key, pb.JOB_STATUS_QUEUED)
        )
        return [job_id for (job_id,) in rows]

    def _insert(self, job: pb.JobInfo, submission: Submission) -> None:
        event = self._journal(job)
        serialized = job.SerializeToString()
        sequence = self.connection.execute(
            "INSERT INTO jobs (job_id, status, harness, model, priority, num_gpus, supersede_key, request_id, fingerprint,"
            " created_ns, job) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job.job_id,
                job.status,
                job.request.harness,
                job.request.model,
                job.priority,
                gpus_needed(job.request),
                job.supersede_key or None,
                submission.request_id or None,
                submission.fingerprint,
                job.created_at.ToNanoseconds(),
                serialized,
            ),
        ).lastrowid
        assert sequence is not None  # noqa: S101 - an INSERT that succeeds has one
        for task in set(job.request.tasks):
            self.connection.execute("INSERT INTO job_tasks VALUES (?, ?)", (task, sequence))
        for label, value in job.labels.items():
            self.connection.execute("INSERT INTO job_labels VALUES (?, ?, ?)", (label, value, sequence))
        self.changes.append((Change(job, sequence, pb.JOB_STATUS_UNSPECIFIED, event), serialized))

    def _load(self, job_id: str) -> tuple[int, pb.JobInfo]:
        row = self.connection.execute("SELECT sequence, job FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise job_not_found(job_id)
        sequence, job = row
        return sequence, pb.JobInfo.FromString(job)

    def _save(self, change: Change, serialized: bytes) -> None:
        job = change.job
        self.connection.execute(
            "UPDATE jobs SET status = ?, retry_ns = ?, completed_ns = ?, job = ? WHERE sequence = ?",
            (
                job.status,
                job.retry_at.ToNanoseconds(),
                job.completed_at.ToNanoseconds() if job.HasField("completed_at") else None,
                serialized,
                change.sequence,
            ),
        )
        self.changes.append((change, serialized))

    def _journal(self, job: pb.JobInfo) -> bytes:
        """Give the job the next revision and write its event."""
        self.head += 1
        job.revision = self.head
        self.counts[job.status] += 1
        now = self.clock.now()
        event = pb.JobEvent(
            type=pb.JOB_EVENT_TYPE_STATUS,
            revision=self.head,
            time=now,
            job=job,
            terminal=job.status in lifecycle.TERMINAL,
        ).SerializeToString()
        self.connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (self.head, job.job_id, now.ToNanoseconds(), event))
        return event


def _supersede(job: pb.JobInfo, by_job_id: str, now: Timestamp) -> None:
    job.status = pb.JOB_STATUS_CANCELLED
    job.completed_at.CopyFrom(now)
    job.error.reason = "SUPERSEDED"
    job.error.message = f"superseded by job {by_job_id}, which has the same supersede_key"


def job_not_found(job_id: str) -> JobNotFoundError:
    """Build the error for a job that does not exist."""
    return JobNotFoundError(
        f"there is no job {job_id}", metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job_id}
    )
