"""One commit of the SQLite store in the making."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.errors import JobNotFinishedError, JobNotFoundError, QueueFullError, RequestIdReusedError
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.events import deleted_event
from evalrpc.jobs.lifecycle import Status
from evalrpc.protobuf import wire_format
from evalrpc.store.base import ANY, RETRY_DELAY_SECONDS, Change, Expected, JournalEvent, StoredJob, Submission
from evalrpc.store.sqlite import deduplication, journal
from evalrpc.store.sqlite.labels import relabel
from evalrpc.store.sqlite.rows import Rows
from evalrpc.v1 import jobs_pb2 as pb

_DELETED: Final = StoredJob(0, pb.JOB_STATUS_UNSPECIFIED, b"")
_REQUEST: Final = """
SELECT fingerprint, job_id, FALSE FROM jobs WHERE request_id = ?1
UNION ALL
SELECT joined.fingerprint, job_id, TRUE FROM joined_requests AS joined JOIN jobs USING (sequence) WHERE joined.request_id = ?1
"""


@dataclass
class Transaction:
    """One commit in the making. It only becomes true when the store publishes it.

    What it writes is gathered and written all at once, since a statement costs more than its rows: each lets other threads have
    the interpreter, and has to get it back. So jobs are looked up here first, and `flush` comes before any other query.
    """

    connection: sqlite3.Connection
    clock: Clock
    max_queued: int
    head: int
    last_sequence: int
    last_created_ns: int
    last_number: int
    counts: Counter[Status]
    cached_job: Callable[[str], StoredJob | None]

    def __post_init__(self) -> None:
        self.counts = self.counts.copy()
        self.changes: list[tuple[Change, bytes]] = []
        self.oldest: int | None = None
        self._jobs: dict[str, StoredJob] = {}
        self._requests: dict[str, tuple[bytes, str, bool]] = {}
        self._rows = Rows()

    def flush(self) -> None:
        """Write what was gathered. Raises sqlite3.Error."""
        rows, self._rows = self._rows, Rows()
        rows.write(self.connection)

    def submit(self, submission: Submission) -> pb.JobInfo:
        """See Store.submit."""
        found = self._find_request(submission) or self._join_identical(submission)
        if found is not None:
            return found
        job = pb.JobInfo()
        job.CopyFrom(submission.job)
        superseded = self._queued_with_key(job.supersede_key)
        if self.counts[pb.JOB_STATUS_QUEUED] - len(superseded) >= self.max_queued:
            raise QueueFullError(
                f"the queue is full: {self.max_queued} jobs wait already; try again later",
                retry_delay_seconds=RETRY_DELAY_SECONDS,
            )
        for job_id in superseded:
            self.update(job_id, lambda old: transitions.supersede(old, job.job_id, self.clock.now()))
        job.status = pb.JOB_STATUS_QUEUED
        job.attempt = 0
        self._insert(job, submission)
        return job

    def update(self, job_id: str, change: Callable[[pb.JobInfo], None], expect: Expected = ANY) -> pb.JobInfo:
        """See Store.update."""
        stored = self._load(job_id)
        job = stored.parse()
        expect.require(job)
        change(job)
        if job.status != stored.status:
            lifecycle.require_transition(stored.status, job.status)
            self.counts[stored.status] -= 1
            self.counts[job.status] += 1
            return self._save_event(job, stored)
        before = stored.parse()  # only now, since what changes the status, as most updates do, leaves the labels
        if job.labels != before.labels:
            self.flush()
            relabel(self.connection, stored.sequence, dict(before.labels), dict(job.labels))
            return self._save_event(job, stored, dict(before.labels))
        if (job.priority, job.cancel_requested_at) != (before.priority, before.cancel_requested_at):
            return self._save_event(job, stored)
        return self._save_quietly(job, stored)

    def delete(self, job_id: str) -> pb.JobInfo:
        """See Store.delete."""
        stored = self._load(job_id)
        if stored.status not in lifecycle.TERMINAL:
            raise JobNotFinishedError(
                f"job {job_id} is {lifecycle.status_name(stored.status)}: cancel it first, or wait for its end"
            )
        self.flush()
        job = stored.parse()
        self.connection.execute("DELETE FROM jobs WHERE sequence = ?", (stored.sequence,))
        for task in job.request.tasks:
            self.connection.execute("DELETE FROM job_tasks WHERE task = ? AND sequence = ?", (task, stored.sequence))
        for label in job.labels.items():
            self.connection.execute(
                "DELETE FROM job_labels WHERE label = ? AND value = ? AND sequence = ?", (*label, stored.sequence)
            )
        deduplication.forget(self.connection, stored.sequence)
        journal.blank_events(self.connection, job_id, stored.sequence)
        self.counts[stored.status] -= 1
        self.head, now = self.next_revision(), self.clock.now()
        event = JournalEvent(self.head, deleted_event(job_id, self.head, now))
        self._rows.journal(stored.sequence, now.ToNanoseconds(), event)
        self.changes.append((Change(self._next_number(), job, stored.sequence, stored.status, event, deleted=True), b""))
        self._jobs[job_id] = _DELETED
        return job

    def compact(self, max_events: int, older_than_ns: int) -> int:
        """See Store.compact."""
        self.flush()
        dropped = journal.compact(self.connection, self.head, max_events, older_than_ns)
        if dropped is None:
            return journal.oldest_revision(self.connection)
        self.oldest = dropped
        return dropped

    def next_revision(self) -> int:
        """Return a revision that is higher than all before."""
        return self.head + 1

    def _next_number(self) -> int:
        self.last_number += 1
        return self.last_number

    def _find_request(self, submission: Submission) -> pb.JobInfo | None:
        if not submission.request_id:
            return None
        request_id = submission.request_id
        found = self._requests.get(request_id) or self.connection.execute(_REQUEST, (request_id,)).fetchone()
        if found is None:
            return None
        fingerprint, job_id, joined = found
        if fingerprint != submission.fingerprint:
            raise RequestIdReusedError(
                f"request_id {submission.request_id!r} was used for another submission: choose a fresh one",
                metadata={"request_id": submission.request_id},
            )
        job = self._load(job_id).parse()
        job.cached_from = job.job_id if joined else ""
        return job

    def _join_identical(self, submission: Submission) -> pb.JobInfo | None:
        """Find a job of an identical evaluation, and note that this is what the request_id has got."""
        if not submission.cache_key:
            return None
        self.flush()
        identical = deduplication.find_identical(self.connection, submission.cache_key)
        if identical is None:
            return None
        if submission.request_id:
            deduplication.add_request(self.connection, submission, identical.sequence)
        return identical.job

    def _queued_with_key(self, supersede_key: str) -> Sequence[str]:
        if not supersede_key:
            return ()
        self.flush()
        rows = self.connection.execute(
            "SELECT job_id FROM jobs WHERE supersede_key = ? AND status = ?", (supersede_key, pb.JOB_STATUS_QUEUED)
        )
        return [job_id for (job_id,) in rows]

    def _insert(self, job: pb.JobInfo, submission: Submission) -> None:
        self.last_sequence = sequence = self.last_sequence + 1
        now = self.clock.now()
        job.created_at.CopyFrom(now)
        created_ns = now.ToNanoseconds()
        if created_ns < self.last_created_ns:
            self._rows.setback(sequence, self.last_created_ns - created_ns)
        self.last_created_ns = created_ns
        serialized, event = self._journal(job, sequence, now)
        self._rows.insert(sequence, job, serialized, submission)
        if submission.request_id:
            self._requests[submission.request_id] = (submission.fingerprint, job.job_id, False)
        if submission.cache_key:
            deduplication.add_cache_key(self.connection, submission, sequence)
        self.counts[job.status] += 1
        self._note(Change(self._next_number(), job, sequence, pb.JOB_STATUS_UNSPECIFIED, event), serialized)

    def _load(self, job_id: str) -> StoredJob:
        stored = self._jobs.get(job_id) or self.cached_job(job_id)
        if stored is None:
            row = self.connection.execute("SELECT sequence, status, job FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            stored = StoredJob(*row) if row is not None else _DELETED
        if stored is _DELETED:
            raise job_not_found(job_id)
        return stored

    def _save_event(self, job: pb.JobInfo, stored: StoredJob, labels_before: Mapping[str, str] | None = None) -> pb.JobInfo:
        """Save a change, with an event."""
        serialized, event = self._journal(job, stored.sequence, self.clock.now(), stored.status, labels_before)
        self._save(Change(self._next_number(), job, stored.sequence, stored.status, event), serialized)
        return job

    def _save_quietly(self, job: pb.JobInfo, stored: StoredJob) -> pb.JobInfo:
        """Save a change that has no revision, such as partial results. What changes nothing is no change."""
        serialized = job.SerializeToString()
        if serialized != stored.serialized:
            self._save(Change(self._next_number(), job, stored.sequence, stored.status, None), serialized)
        return job

    def _save(self, change: Change, serialized: bytes) -> None:
        self._rows.update(change.sequence, change.job, serialized)
        self._note(change, serialized)

    def _note(self, change: Change, serialized: bytes) -> None:
        self._jobs[change.job.job_id] = StoredJob(change.sequence, change.job.status, serialized)
        self.changes.append((change, serialized))

    def _journal(
        self,
        job: pb.JobInfo,
        sequence: int,
        now: Timestamp,
        previous: Status = pb.JOB_STATUS_UNSPECIFIED,
        labels_before: Mapping[str, str] | None = None,
    ) -> tuple[bytes, JournalEvent]:
        """Give the job the next revision and write its event. Returns the job, serialised, and the event."""
        job.revision = self.head = self.next_revision()
        serialized = job.SerializeToString()
        head = pb.JobEvent(
            type=pb.JOB_EVENT_TYPE_UPDATED if job.status == previous else pb.JOB_EVENT_TYPE_STATUS,
            revision=self.head,
            time=now,
            terminal=job.status in lifecycle.TERMINAL,
        ).SerializeToString()
        wrapped = head + wire_format.message_field(pb.JobEvent.JOB_FIELD_NUMBER, serialized)
        event = JournalEvent(self.head, wrapped, previous, labels_before)
        self._rows.journal(sequence, now.ToNanoseconds(), event)
        return serialized, event


def job_not_found(job_id: str) -> JobNotFoundError:
    """Build the error for a job that does not exist."""
    return JobNotFoundError(
        f"there is no job {job_id}", metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job_id}
    )
