"""One commit of a store in the making: what a change of a job entails, whatever the database."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.errors import (
    FieldViolation,
    InvalidRequestError,
    JobNotFinishedError,
    QueueFullError,
    QuotaExceededError,
    RequestIdReusedError,
    StoreUnavailableError,
)
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.events import deleted_event
from evalrpc.jobs.holds import Holds
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.paths import output_folders
from evalrpc.jobs.share_policy import Entitlements, owner_name
from evalrpc.protobuf import wire_format
from evalrpc.store.base import (
    ANY,
    RETRY_DELAY_SECONDS,
    Change,
    Deleted,
    Expected,
    JournalEvent,
    StoredJob,
    Submission,
    SuiteSubmission,
    job_not_found,
)
from evalrpc.store.rows import Rows, event_bytes, event_row
from evalrpc.store.tables import Requested, Tables
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteRun

_DELETED: Final = StoredJob(0, pb.JOB_STATUS_UNSPECIFIED, b"", "")


@dataclass
class Transaction:
    """One commit in the making. It only becomes true when the store publishes it.

    What it writes is gathered and written all at once, since a statement costs more than its rows: each lets other threads have
    the interpreter, and has to get it back. So jobs are looked up here first, and `flush` comes before any other query.

    Nearly no job has followers, and most jobs end without a query: so the ids of those that have are in memory.
    """

    tables: Tables
    clock: Clock
    max_queued: int
    head: int
    last_sequence: int
    last_created_ns: int
    last_number: int
    counts: Counter[Status]
    queued_by_owner: Counter[str]
    entitlements: Entitlements
    cached_job: Callable[[str], StoredJob | None]
    followed: Set[str]
    """The jobs that some job followed before this commit."""
    journal_end_bytes: int
    """The size of all events that there were so far."""

    def __post_init__(self) -> None:
        self.counts = self.counts.copy()
        self.queued_by_owner = self.queued_by_owner.copy()
        self.changes: list[tuple[Change, bytes]] = []
        self.count_changes: Counter[tuple[str, Status]] = Counter()
        """How many more jobs each owner has in each status than before."""
        self.oldest: int | None = None
        self.holds: Holds | None = None
        """What is held back, if that was changed."""
        self._jobs: dict[str, StoredJob] = {}
        self.newly_followed: set[str] = set()
        self.settled: set[str] = set()
        """The jobs that nobody follows any more, since they have ended."""
        self._requests: dict[tuple[str, str], Requested] = {}
        self._rows = Rows()

    def flush(self) -> None:
        """Write what was gathered. Raises what the database raises."""
        self.tables.write(self.take_rows())

    def take_rows(self) -> Rows:
        """Return what was gathered, to be written by the caller."""
        rows, self._rows = self._rows, Rows()
        return rows

    def submit(self, submission: Submission) -> pb.JobInfo:
        """See Store.submit."""
        found = self._find_request(submission)
        if found is not None:
            return found
        job = submission.job
        superseded = self._queued_with_key(job.supersede_key, job.owner)
        completed = self._find_completed(submission.cache_key)
        if completed is None:
            self._require_room(job.owner, superseded)
        for job_id in superseded:
            self.update(job_id, lambda old: transitions.supersede(old, job.job_id, self.clock.now()))
        return self._add(submission, completed)

    def submit_suite(self, submission: SuiteSubmission) -> SuiteRun:
        """See Store.submit_suite."""
        run = submission.run
        found = self.tables.requested_suite_run(submission)
        if found is not None:
            if found.fingerprint != submission.fingerprint:
                raise _request_id_reused(submission.request_id)
            return self._suite_run(found.given_id)
        completed = [self._find_completed(each.cache_key) for each in submission.jobs]
        self._require_possible(run, completed.count(None))
        self._require_room(run.owner, (), completed.count(None))
        run.created_at.CopyFrom(self.clock.now())
        self.tables.insert_suite_run(submission, self.last_sequence + 1)
        for each, source in zip(submission.jobs, completed, strict=True):
            self._add(each, source)
        return self._suite_run(run.suite_run_id)

    def _suite_run(self, suite_run_id: str) -> SuiteRun:
        self.flush()
        return self.tables.suite_run(suite_run_id, self.head)

    def _add(self, submission: Submission, completed: pb.JobInfo | None) -> pb.JobInfo:
        """Add a job, for which there is room: with the results of a job that has completed, if that is given."""
        job = pb.JobInfo()
        job.CopyFrom(submission.job)
        job.attempt = 0
        job.attempt_count = 0
        now = self.clock.now()
        if completed is not None:
            transitions.share_results(job, completed, now)
        else:
            self._queue(job, submission.cache_key)
        self._insert(job, submission, now)
        return job

    def update(self, job_id: str, change: Callable[[pb.JobInfo], None], expect: Expected = ANY) -> pb.JobInfo:
        """See Store.update."""
        stored = self._load(job_id)
        job = stored.parse()
        expect.require(job)
        priority = job.priority
        change(job)
        if job.priority < priority:
            self._keep_priority_of_followers(job)
        self._save_changed(job, stored)
        if job.priority > priority and transitions.is_follower(job):
            self._raise_priority(job.cached_from, job.priority)
        if job.status in lifecycle.TERMINAL and stored.status in lifecycle.LIVE:
            self._settle_followers(job)
        return job

    def _save_changed(self, job: pb.JobInfo, stored: StoredJob) -> None:
        """Save a change, with an event if clients must not miss it."""
        if job.status != stored.status:
            lifecycle.require_transition(stored.status, job.status)
            self._count(job, stored.status, -1)
            self._count(job, job.status, 1)
            if stored.status == pb.JOB_STATUS_RUNNING and job.attempts:
                self._rows.use(stored.sequence, job)
            self._save_event(job, stored)
            return
        before = stored.parse()  # only now, since what changes the status, as most updates do, leaves the labels
        if job.labels != before.labels:
            self.flush()
            self.tables.relabel(stored.sequence, dict(before.labels), dict(job.labels))
            self._save_event(job, stored, dict(before.labels))
        elif _noteworthy(job) != _noteworthy(before):
            self._save_event(job, stored)
        else:
            self._save_quietly(job, stored)

    def delete(self, job_id: str) -> Deleted:
        """See Store.delete."""
        stored = self._load(job_id)
        if stored.status not in lifecycle.TERMINAL:
            raise JobNotFinishedError(
                f"job {job_id} is {lifecycle.status_name(stored.status)}: cancel it first, or wait for its end"
            )
        self.flush()
        job = stored.parse()
        self.tables.delete_job(stored.sequence, job)
        self.tables.add_removals(job_id, map(str, output_folders(job)))
        self._count(job, stored.status, -1)
        self.head, now = self.next_revision(), self.clock.now()
        event = JournalEvent(self.head, deleted_event(job_id, self.head, now), owner=job.owner)
        number = self._append(event, stored.sequence, now)
        self.changes.append((Change(number, job, stored.sequence, stored.status, event, deleted=True), b""))
        self._jobs[job_id] = _DELETED
        owner_id = job.cached_from or job_id
        return Deleted(job, "" if self.tables.referred_to([owner_id]) else owner_id)

    def compact(self, max_events: int, older_than_ns: int, max_bytes: int) -> int:
        """See Store.compact."""
        self.flush()
        dropped = self.tables.compact(self.head, max_events, older_than_ns, max_bytes, self.journal_end_bytes)
        if dropped is None:
            return self.tables.oldest_revision()
        self.oldest = dropped
        return dropped

    def forget_removal(self, path: str) -> None:
        """See Store.forget_removal."""
        self.tables.forget_removal(path)

    def set_hold(self, name: str, *, is_held: bool) -> None:
        """See Store.set_hold."""
        self.holds = self.tables.set_hold(name, is_held=is_held)
        self._next_number()

    def assign_run_uid(self, owner: str, uids: range) -> int:
        """See Store.assign_run_uid."""
        return self.tables.assign_run_uid(owner, uids)

    def forget_uses(self, ended_before_ns: int) -> None:
        """See Store.forget_uses."""
        self.flush()
        self.tables.forget_uses(ended_before_ns)

    def write_unchanged(self) -> None:
        """See Store.check_writable."""
        self.tables.write_unchanged()

    def next_revision(self) -> int:
        """Return a revision that is higher than all before."""
        return self.head + 1

    def _next_number(self) -> int:
        self.last_number += 1
        return self.last_number

    def _find_request(self, submission: Submission) -> pb.JobInfo | None:
        if not submission.request_id:
            return None
        request = submission.request_id, submission.job.owner
        found = self._requests.get(request) or self.tables.requested_job(*request)
        if found is None:
            return None
        fingerprint, job_id = found
        if fingerprint != submission.fingerprint:
            raise _request_id_reused(submission.request_id)
        return self._load(job_id).parse()

    def _find_completed(self, cache_key: bytes) -> pb.JobInfo | None:
        if not cache_key:
            return None
        self._flush_for(cache_key)
        return self.tables.find_completed(cache_key)

    def _flush_for(self, cache_key: bytes) -> None:
        """Write what was gathered, if that may be found by a cache key."""
        if self._rows.may_have(cache_key):
            self.flush()

    def _count(self, job: pb.JobInfo, status: Status, difference: int) -> None:
        """Count a job that comes into a status, or leaves it."""
        self.counts[status] += difference
        self.count_changes[job.owner, status] += difference
        if status == pb.JOB_STATUS_QUEUED:
            self.queued_by_owner[job.owner] += difference

    def _require_possible(self, run: SuiteRun, count: int) -> None:
        """Raise InvalidRequestError for a suite run of so many jobs to queue for which even an empty queue has no room."""
        of_owner = self.entitlements.policy.quota(run.owner).max_queued
        limit = self.max_queued if of_owner is None else min(self.max_queued, of_owner)
        if count > limit:
            problem = (
                f"{count} of its jobs would be queued, and at most {limit} may be: ask the operator for a larger `max_queued`"
            )
            raise InvalidRequestError(violations=[FieldViolation("suite", problem)])

    def _require_room(self, owner: str, leaving: Sequence[str], count: int = 1) -> None:
        """Raise QueueFullError or QuotaExceededError where there is no room for so many further jobs, once these have left."""
        if not count:
            return
        self._require_room_of(owner, leaving, count)
        queued_count = self.counts[pb.JOB_STATUS_QUEUED] - len(leaving)
        if queued_count + count > self.max_queued:
            raise QueueFullError(
                f"the queue is full: {queued_count} of at most {self.max_queued} jobs wait already; try again later",
                metadata={"setting": "max_queued", "limit": str(self.max_queued)},
                retry_delay_seconds=RETRY_DELAY_SECONDS,
            )

    def _require_room_of(self, owner: str, leaving: Sequence[str], count: int) -> None:
        quota, queued_count = self.entitlements.policy.quota(owner), self.queued_by_owner[owner]
        if quota.max_queued is not None and queued_count + count > quota.max_queued:
            queued_count -= sum(self._load(job_id).parse().owner == owner for job_id in leaving)
            if queued_count + count > quota.max_queued:
                raise _quota_exceeded(owner, "max_queued", queued_count, quota.max_queued, "jobs in the queue; try again later")
        kept_bytes = self.entitlements.kept_bytes.get(owner, 0)
        if quota.max_bytes is not None and kept_bytes >= quota.max_bytes:
            raise _quota_exceeded(owner, "max_bytes", kept_bytes, quota.max_bytes, "bytes of files; delete jobs first")

    def _queue(self, job: pb.JobInfo, cache_key: bytes) -> None:
        """Let a new job wait: for a job of an identical evaluation, if there is one, else for its turn."""
        if cache_key:
            self._flush_for(cache_key)  # also the superseded ones
            if source := self.tables.find_live(cache_key):
                self._follow(job, source.job_id)
                self._raise_priority(source.job_id, job.priority)
        job.status = pb.JOB_STATUS_QUEUED

    def _follow(self, job: pb.JobInfo, source_id: str) -> None:
        transitions.follow(job, source_id)
        self.newly_followed.add(source_id)

    def _has_followers(self, job_id: str) -> bool:
        return job_id in self.newly_followed or job_id in self.followed

    def _keep_priority_of_followers(self, job: pb.JobInfo) -> None:
        """Undo the part of a change that puts a job behind one that follows it."""
        if self._has_followers(job.job_id):
            self.flush()
            for _, first in islice(self.tables.followers(job.job_id), 1):
                transitions.raise_priority(job, first.priority)

    def _raise_priority(self, source_id: str, priority: int) -> None:
        """Let a job be served no later than one that follows it."""
        with suppress(StoreUnavailableError):  # it can't be read; that must not stop the follower
            if self._load(source_id).parse().priority < priority:
                self.update(source_id, lambda source: transitions.raise_priority(source, priority))

    def _settle_followers(self, source: pb.JobInfo) -> None:
        """Complete the followers of a job that has ended, or let the first one run, and the others follow that."""
        if not self._has_followers(source.job_id):
            return
        self.settled.add(source.job_id)
        self.flush()
        followers = [job.job_id for _, job in self.tables.followers(source.job_id)]
        if source.status == pb.JOB_STATUS_COMPLETED:
            for job_id in followers:
                self.update(job_id, lambda job: transitions.share_results(job, source, source.completed_at))
            return
        for job_id in followers[:1]:
            self.update(job_id, transitions.unfollow)
        for job_id in followers[1:]:
            self.update(job_id, lambda job: self._follow(job, followers[0]))

    def _queued_with_key(self, supersede_key: str, owner: str) -> Sequence[str]:
        if not supersede_key:
            return ()
        self.flush()
        return self.tables.queued_with_key(supersede_key, owner)

    def _insert(self, job: pb.JobInfo, submission: Submission, now: Timestamp) -> None:
        self.last_sequence = sequence = self.last_sequence + 1
        job.created_at.CopyFrom(now)
        created_ns = now.ToNanoseconds()
        if created_ns < self.last_created_ns:
            self._rows.setbacks.append((sequence, self.last_created_ns - created_ns))
        self.last_created_ns = created_ns
        serialized, event, number = self._journal(job, sequence, now)
        self._rows.insert(sequence, job, serialized, submission)
        if submission.request_id:
            self._requests[submission.request_id, job.owner] = Requested(submission.fingerprint, job.job_id)
        self._count(job, job.status, 1)
        self._note(Change(number, job, sequence, pb.JOB_STATUS_UNSPECIFIED, event), serialized)

    def _load(self, job_id: str) -> StoredJob:
        stored = self._jobs.get(job_id) or self.cached_job(job_id)
        if stored is None:
            stored = self.tables.stored_job(job_id) or _DELETED
        if stored is _DELETED:
            raise job_not_found(job_id)
        return stored

    def _save_event(self, job: pb.JobInfo, stored: StoredJob, labels_before: Mapping[str, str] | None = None) -> None:
        """Save a change, with an event."""
        serialized, event, number = self._journal(job, stored.sequence, self.clock.now(), stored.status, labels_before)
        self._save(Change(number, job, stored.sequence, stored.status, event), serialized)

    def _save_quietly(self, job: pb.JobInfo, stored: StoredJob) -> None:
        """Save a change that has no revision, such as partial results. What changes nothing is no change."""
        serialized = job.SerializeToString()
        if serialized != stored.serialized:
            number = self._next_number()
            self._rows.quiet.append((number, stored.sequence))
            self._save(Change(number, job, stored.sequence, stored.status, None), serialized)

    def _save(self, change: Change, serialized: bytes) -> None:
        self._rows.update(change.sequence, change.job, serialized)
        self._note(change, serialized)

    def _note(self, change: Change, serialized: bytes) -> None:
        self._jobs[change.job.job_id] = StoredJob(change.sequence, change.job.status, serialized, change.job.owner)
        self.changes.append((change, serialized))

    def _journal(
        self,
        job: pb.JobInfo,
        sequence: int,
        now: Timestamp,
        previous: Status = pb.JOB_STATUS_UNSPECIFIED,
        labels_before: Mapping[str, str] | None = None,
    ) -> tuple[bytes, JournalEvent, int]:
        """Give the job the next revision and write its event. Returns the job, serialised, the event, and the number of the
        change."""
        job.revision = self.head = self.next_revision()
        serialized = job.SerializeToString()
        head = pb.JobEvent(
            type=pb.JOB_EVENT_TYPE_UPDATED if job.status == previous else pb.JOB_EVENT_TYPE_STATUS,
            revision=self.head,
            time=now,
            terminal=job.status in lifecycle.TERMINAL,
        ).SerializeToString()
        wrapped = head + wire_format.message_field(pb.JobEvent.JOB_FIELD_NUMBER, serialized)
        event = JournalEvent(self.head, wrapped, previous, labels_before, job.owner)
        return serialized, event, self._append(event, sequence, now)

    def _append(self, event: JournalEvent, sequence: int, now: Timestamp) -> int:
        """Write an event. Returns the number of the change."""
        number = self._next_number()
        self._rows.events.append(event_row(event, number, sequence, now.ToNanoseconds(), self.journal_end_bytes))
        self.journal_end_bytes += event_bytes(event)
        return number


def _noteworthy(job: pb.JobInfo) -> tuple[object, ...]:
    """Return what, beside status and labels, has an event when it changes."""
    return job.priority, job.cancel_requested_at, job.cached_from


def _request_id_reused(request_id: str) -> RequestIdReusedError:
    return RequestIdReusedError(
        f"request_id {request_id!r} was used for another submission: choose a fresh one", metadata={"request_id": request_id}
    )


def _quota_exceeded(owner: str, quota: str, count: int, limit: int, of_what: str) -> QuotaExceededError:
    return QuotaExceededError(
        f"{owner_name(owner)} has {count} of at most {limit} {of_what}",
        metadata={"owner": owner, "quota": quota, "limit": str(limit)},
        retry_delay_seconds=RETRY_DELAY_SECONDS,
    )
