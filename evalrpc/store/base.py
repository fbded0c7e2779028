"""The contracts of a store, the only place where a job changes, and of the feed of its changes.

Writes are durable once their future has a result. A change of a job's status, or of its labels, its priority or the request to
cancel it, or its deletion, is committed together with its journal event and gets a revision of the whole store, higher than all
before. Whoever follows the changes has been passed a write of this server, and
reads see it, before its future has a result. There may be other writers, of whose changes followers hear in the same order.

Every method may be called from any thread. Reads block on the disk, so the event loop calls them through a thread pool; only
`cached_job` never blocks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.errors import ConflictError, StoreUnavailableError
from evalrpc.jobs.lifecycle import Status, status_name
from evalrpc.v1.jobs_pb2 import JobEvent, JobFilter, JobInfo

RETRY_DELAY_SECONDS: Final = 1.0
"""How long a client is asked to wait when the store could not take its write."""

_M = TypeVar("_M", JobInfo, JobEvent)


@dataclass(frozen=True)
class Submission:
    """A new job, with what makes its submission repeatable."""

    job: JobInfo
    """With its id, request and options; the store sets the status and the revision."""
    request_id: str = ""
    """Empty: not repeatable."""
    fingerprint: bytes = b""
    """Equal for submissions of equal contents."""
    cache_key: bytes = b""
    """Equal for identical evaluations, of which one job may serve all. Empty: it is a job of its own."""


class JournalEvent(NamedTuple):
    """A JobEvent as it was committed, with what a watcher needs to know of the job before it."""

    revision: int
    event: bytes
    """The JobEvent, serialised. DELETED for all events of a deleted job, with nothing else left of it."""
    previous: Status | None = None
    """The status before; UNSPECIFIED for a new job, None where it is not known."""
    labels_before: Mapping[str, str] | None = None
    """The labels before; None where they stayed as they were."""

    def parse(self) -> JobEvent:
        """Return the event as a message of its own. Raises StoreUnavailableError."""
        return _parse(JobEvent, self.event)


class Change(NamedTuple):
    """A committed change of one job. Listeners must not modify `job`."""

    number: int
    """Its place among all changes of the store, also those without a revision. Numbers grow; some may be missing."""
    job: JobInfo
    """The job after the change; for a deletion, the job before it."""
    sequence: int
    """Its place in the order of arrival."""
    previous: Status
    """The status before; UNSPECIFIED for a new job."""
    event: JournalEvent | None
    """What was journalled, with the revision of the change; None where it has none."""
    deleted: bool = False

    @property
    def status_changed(self) -> bool:
        """Whether the job has another status than before."""
        return self.job.status != self.previous


class ListedJob(NamedTuple):
    """A job with its place in the order of arrival."""

    sequence: int
    job: JobInfo


class StoredJob(NamedTuple):
    """A job as it is kept: serialised, with what is most asked of it beside."""

    sequence: int
    status: Status
    serialized: bytes

    def parse(self) -> JobInfo:
        """Return the job as a message of its own. Raises StoreUnavailableError."""
        return parse_job(self.serialized)


class QueuedRow(NamedTuple):
    """What the queue needs to know of a job that waits."""

    job_id: str
    sequence: int
    priority: int
    num_gpus: int
    created_ns: int
    retry_ns: int
    """Time of day before which it must not start; 0 where it may at once."""


class Expected(NamedTuple):
    """What an update expects of the job. None accepts anything."""

    status: Status | None = None
    attempt: int | None = None
    """The number of the latest attempt; 0 before the first."""
    revision: int | None = None

    def require(self, job: JobInfo) -> None:
        """Raise ConflictError unless the job is as expected."""
        if (
            self.status not in (None, job.status)
            or self.attempt not in (None, job.attempt)
            or self.revision not in (None, job.revision)
        ):
            raise ConflictError(
                f"job {job.job_id} was changed meanwhile: it is {status_name(job.status)}, with {job.attempt} attempts, at "
                f"revision {job.revision}",
                metadata={"revision": str(job.revision)},
            )


ANY: Final = Expected()

Listener = Callable[[Sequence[Change]], None]
"""Receives committed changes in the order of their numbers, on a thread of the store: it must be quick, and must not wait for a
write."""


class Store(Protocol):
    """Jobs and their journal. The future of a write can't be cancelled: a caller that stops waiting does not stop the write."""

    def submit(self, submission: Submission) -> Future[JobInfo]:
        """Add a QUEUED job, or find the one that the same request_id got, or else an identical one: see `find_identical`.

        A new job cancels the queued ones with the same supersede key, in the same commit. An identical one has `cached` set, is
        left as it is, and is what the same request_id gets from then on.
        Raises RequestIdReusedError, QueueFullError, StoreUnavailableError.
        """

    def update(self, job_id: str, change: Callable[[JobInfo], None], expect: Expected = ANY) -> Future[JobInfo]:
        """Change a job that is as expected: `change` modifies the message it is given, and may raise an EvalrpcError to leave
        the job as it is. It runs on the writer thread, and may be called again, with another message, before one call counts.
        It changes the status or the labels, never both.

        Raises JobNotFoundError, ConflictError, IllegalTransitionError, StoreUnavailableError, and what `change` raises.
        """

    def delete(self, job_id: str) -> Future[JobInfo]:
        """Remove a terminal job, with a DELETED event. Its earlier events in the journal become DELETED too, in the same
        commit: of what they had, only their revisions, their times and the job's id are left.

        Raises JobNotFoundError, JobNotFinishedError.
        """

    def cached_job(self, job_id: str) -> StoredJob | None:
        """Return a job if it is in memory, without blocking. It has at least the changes that have been passed on."""

    def job(self, job_id: str) -> StoredJob:
        """Return a job. Raises JobNotFoundError."""

    def list_jobs(self, job_filter: JobFilter, before_sequence: int | None, limit: int) -> list[ListedJob]:
        """Return jobs that the filter takes, newest first, of those that arrived before `before_sequence`."""

    def find_identical(self, cache_key: bytes) -> JobInfo | None:
        """Return a job with this cache key, with `cached` set: the latest that is COMPLETED, or else the latest that is QUEUED
        or RUNNING without a cancel request."""

    def queued_rows(self) -> list[QueuedRow]:
        """Return what the queue needs of all QUEUED jobs, in order of arrival."""

    def running_jobs(self) -> list[ListedJob]:
        """Return the RUNNING jobs, in order of arrival."""

    def expired_jobs(self, older_than: Timestamp, keep: int, limit: int) -> list[str]:
        """Return ids of terminal jobs that ended before a time, or that are not among the `keep` that ended last."""

    def known_jobs(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are ids of jobs."""

    def events_after(self, revision: int, limit: int, job_id: str | None = None) -> list[JournalEvent]:
        """Return journal events with a later revision, of one job or of all, in order, up to `head_revision`.

        Raises RevisionCompactedError, RevisionInFutureError, and JobNotFoundError if that job was deleted.
        """

    def status_counts(self) -> Mapping[Status, int]:
        """Return how many jobs there are in each status."""

    def compact(self, max_events: int, older_than: Timestamp) -> Future[int]:
        """Drop journal events that are older than a time, or not among the newest `max_events` revisions. Return the oldest
        revision to resume after."""

    def wait_closed(self) -> None:
        """Block until the store is closed, or can't write any more because of a bug."""

    def close(self) -> None:
        """Finish the writes under way and let go of the files."""

    @property
    def head_revision(self) -> int:
        """The newest revision of which the followers have been notified; 0 in an empty store."""

    @property
    def oldest_revision(self) -> int:
        """The oldest revision that one can resume after."""


class ChangeFeed(Protocol):
    """The changes of a store, whoever makes them. What has been passed on is in all that the store then reads.

    To follow from a known state: take the position, read, then follow from that position. What was read may be newer than the
    position, so a change may be received that is in it already.
    """

    @property
    def position(self) -> int:
        """The number of the latest change that has been passed on; 0 before the first."""

    def follow(self, after: int, listener: Listener) -> None:
        """Pass every change with a number above `after` to the listener, once and in order. Gaps between numbers are normal.

        Raises ChangesMissedError if it no longer has all of them: read the state again, and follow from there.
        """


def parse_job(serialized: bytes) -> JobInfo:
    """Return a job as it was read from the store. Raises StoreUnavailableError where it is damaged."""
    return _parse(JobInfo, serialized)


def _parse(message_class: type[_M], serialized: bytes) -> _M:
    try:
        return message_class.FromString(serialized)
    except DecodeError as error:
        raise StoreUnavailableError(
            f"the server's store is damaged: it has a {message_class.DESCRIPTOR.name} that can't be read; bring back a backup",
            retry_delay_seconds=RETRY_DELAY_SECONDS,
        ) from error


def fields_match(job: JobInfo, job_filter: JobFilter) -> bool:
    """Return whether the filter takes the job. For events; a listing filters in the database."""
    request = job.request
    return (
        _any_of(job_filter.statuses, (job.status,))
        and _any_of(job_filter.models, (request.model,))
        and _any_of(job_filter.tasks, request.tasks)
        and _any_of(job_filter.harnesses, (request.harness,))
        and all(job.labels.get(key) == value for key, value in job_filter.labels.items())
        and (
            not job_filter.HasField("created_after")
            or job.created_at.ToNanoseconds() >= job_filter.created_after.ToNanoseconds()
        )
        and (
            not job_filter.HasField("created_before")
            or job.created_at.ToNanoseconds() < job_filter.created_before.ToNanoseconds()
        )
    )


def _any_of(wanted: Sequence[object], present: Iterable[object]) -> bool:
    return not wanted or not set(wanted).isdisjoint(present)
