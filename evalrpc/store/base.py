"""The contracts of a store, the only place where a job changes, and of the feed of its changes.

Writes are durable once their future has a result. A change of a job's status, or of its labels, its priority or the request to
cancel it, or its deletion, is committed together with its journal event and gets a revision of the whole store, higher than all
before. Whoever follows the changes has been passed a write of this server, and reads see it, before its future has a result.
There may be other writers, of whose changes listeners hear in the same order.

Every method may be called from any thread. Reads block on the disk, so the event loop calls them through a thread pool; only
`cached_job` never blocks.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.errors import ConflictError, JobNotFoundError, StoreUnavailableError, SuiteRunNotFoundError
from evalrpc.jobs.holds import Holds
from evalrpc.jobs.lifecycle import Status, status_name
from evalrpc.jobs.size_limits import MIB
from evalrpc.protobuf import wire_format
from evalrpc.v1.jobs_pb2 import JobEvent, JobFilter, JobInfo
from evalrpc.v1.suites_pb2 import SuiteRun

RETRY_DELAY_SECONDS: Final = 1.0
"""How long a client is asked to wait when the store could not take its write."""

UNBOUNDED: Final = 2**62
"""A number of jobs, events or bytes that nothing reaches."""

MAX_LISTED_BYTES: Final = 4 * MIB
"""How much a read returns of jobs or events: somewhat more than a page has. They take several times as much once parsed."""

_M = TypeVar("_M", JobInfo, JobEvent)


@dataclass(frozen=True)
class Submission:
    """A new job, with what makes its submission repeatable."""

    job: JobInfo
    """With its id, request and options; the store sets the status and the revision."""
    request_id: str = ""
    """Of the owner's. Empty: not repeatable."""
    fingerprint: bytes = b""
    """Equal for submissions of equal contents."""
    cache_key: bytes = b""
    """Equal for identical evaluations of the same owner, of which one run may serve all. Empty: the job runs, and serves no
    other."""


@dataclass(frozen=True)
class SuiteSubmission:
    """A new suite run, with its jobs and what makes its submission repeatable."""

    run: SuiteRun
    """With its id, suite, submission, owner, and the ids of its jobs; the store sets the rest."""
    jobs: Sequence[Submission]
    """Those of the run, in its order. None is repeatable by itself."""
    request_id: str = ""
    """Of the owner's. Empty: not repeatable."""
    fingerprint: bytes = b""
    """Equal for submissions of equal contents."""


class Deleted(NamedTuple):
    """A job that was deleted."""

    job: JobInfo
    files_of: str
    """The job whose files no job refers to any more, so that they are to be removed; empty where some still does."""


class PendingRemoval(NamedTuple):
    """A folder that a deleted job has left outside of the data folder, below the output root."""

    job_id: str
    path: Path


class JournalEvent(NamedTuple):
    """A JobEvent as it was committed, with what a watcher needs to know of the job before it."""

    revision: int
    event: bytes
    """The JobEvent, serialised. DELETED for all events of a deleted job, with nothing else left of it."""
    previous: Status | None = None
    """The status before; UNSPECIFIED for a new job, None where it is not known."""
    labels_before: Mapping[str, str] | None = None
    """The labels before; None where they stayed as they were."""
    owner: str = ""
    """The owner of the job, also of one that was deleted."""

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
    is_own: bool = True
    """Whether this server has committed it, and none of the others on the store."""

    @property
    def status_changed(self) -> bool:
        """Whether the job has another status than before."""
        return self.job.status != self.previous


class ListedJob(NamedTuple):
    """A job with its place in the order of arrival."""

    sequence: int
    job: JobInfo


class ListedSuiteRun(NamedTuple):
    """A suite run with its place in the order of arrival: the sequence of its first job."""

    sequence: int
    run: SuiteRun


class StoredJob(NamedTuple):
    """A job as it is kept: serialised, with what is most asked of it beside."""

    sequence: int
    status: Status
    serialized: bytes
    owner: str

    def parse(self) -> JobInfo:
        """Return the job as a message of its own. Raises StoreUnavailableError."""
        return parse_job(self.serialized)

    @property
    def revision(self) -> int:
        """The job's revision. Raises StoreUnavailableError."""
        try:
            return wire_format.number_field(self.serialized, JobInfo.REVISION_FIELD_NUMBER)
        except (ValueError, OverflowError) as error:
            raise _damaged(JobInfo) from error


class QueuedRow(NamedTuple):
    """What the queue needs to know of a job that waits."""

    job_id: str
    sequence: int
    priority: int
    num_gpus: int
    created_ns: int
    retry_ns: int
    """Time of day before which it must not start; 0 where it may at once."""
    follows: str = ""
    """The job that it follows, so that it is not served itself; empty where it is."""
    owner: str = ""
    engine: str = ""
    """The engines that it needs: see `jobs.served_models.needs_text`. Empty without one."""
    executor: str = ""
    """The nodes that it waits for: see `jobs.defaults.queue_of`."""


class HostState(NamedTuple):
    """A machine whose server has said that it is there, of those that share a store."""

    name: str
    description: str
    """What it has, as its server has said."""
    is_reachable: bool
    """Whether that server has been heard of lately."""
    is_scheduler: bool = False
    """Whether that server places jobs."""


class AttemptUse(NamedTuple):
    """What an attempt that has ended has used. Kept after its job was deleted, so that nobody gains by deleting."""

    owner: str
    started_ns: int
    ended_ns: int
    width: int
    """How many seconds of use each second of it was: see `jobs.share_policy.charged_width`."""


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
        """Add a QUEUED job, or return the one that the same request_id got from the same owner.

        It cancels the owner's queued ones with the same supersede key, in the same commit. If there is a job of an identical
        evaluation then, it shares the run of that one: see `find_identical`. It is COMPLETED at once if that one is, and
        follows it otherwise: see `update`.
        Raises RequestIdReusedError, QueueFullError and QuotaExceededError (neither for a job that is COMPLETED at once),
        StoreUnavailableError.
        """

    def submit_suite(self, submission: SuiteSubmission) -> Future[SuiteRun]:
        """Add a suite run and all its jobs in one commit, or return the run that the same request_id got from the same owner.

        Each job is added as `submit` does it. Raises what `submit` does, where there is no room for all of them, and
        InvalidRequestError where even an empty queue has none.
        """

    def update(self, job_id: str, change: Callable[[JobInfo], None], expect: Expected = ANY) -> Future[JobInfo]:
        """Change a job that is as expected: `change` modifies the message it is given, and may raise an EvalrpcError to leave
        the job as it is. It runs on the writer thread, and may be called again, with another message, before one call counts.
        It changes the status or the labels, never both.

        In the same commit the jobs that follow this one complete with it. If it ends otherwise, the first of them in the order
        of service follows nobody any more, and the others follow that one. A job has at least the priority of each follower.

        Raises JobNotFoundError, ConflictError, IllegalTransitionError, StoreUnavailableError, and what `change` raises.
        """

    def delete(self, job_id: str) -> Future[Deleted]:
        """Remove a terminal job, with a DELETED event. Its earlier events in the journal become DELETED too, in the same
        commit: of what they had, only their revisions, their times, the job's id and its owner are left. In the same commit,
        the folders that it has outside of the data folder become pending removals. The last job of a suite run takes the run
        with it.

        Raises JobNotFoundError, JobNotFinishedError.
        """

    def cached_job(self, job_id: str) -> StoredJob | None:
        """Return a job if it is in memory, without blocking. It has at least the changes that have been passed on."""

    def job(self, job_id: str) -> StoredJob:
        """Return a job. Raises JobNotFoundError."""

    def list_jobs(
        self,
        job_filter: JobFilter,
        before_sequence: int | None,
        limit: int,
        max_bytes: int = MAX_LISTED_BYTES,
        *,
        owner: str | None = None,
    ) -> list[ListedJob]:
        """Return jobs that the filter takes, newest first, of those that arrived before `before_sequence`; with `owner`, only
        jobs of that owner, whatever the filter says.

        No more than `limit`, and none after the one with which they have `max_bytes`. Empty only if there are none.
        """

    def find_submitted(self, submission: Submission) -> JobInfo | None:
        """Return the job that the same request_id got from the same owner for the same contents, if there is one."""

    def find_submitted_suite(self, submission: SuiteSubmission) -> SuiteRun | None:
        """Return the suite run that the same request_id got from the same owner for the same contents, if there is one."""

    def suite_run(self, suite_run_id: str) -> SuiteRun:
        """Return a suite run as its jobs stand, with a revision up to which it has all changes. Raises
        SuiteRunNotFoundError."""

    def list_suite_runs(
        self, prefix: str = "", before_sequence: int | None = None, *, owner: str | None = None
    ) -> Generator[ListedSuiteRun]:
        """Yield suite runs, newest first, of those that arrived before `before_sequence` and whose ids begin with `prefix`;
        with `owner`, only runs of that owner. To be read to its end or closed soon, on one thread."""

    def known_suite_runs(self, suite_run_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """Return those of the ids that are ids of suite runs; with `owner`, of runs of that owner. As `known_jobs`."""

    def find_identical(self, cache_key: bytes, supersede_key: str = "") -> JobInfo | None:
        """Return the job whose run a submission with these keys would share: one that is COMPLETED, of those that ran the
        latest, else any; or else the latest that is QUEUED or RUNNING without a cancel request and follows no other."""

    def queued_rows(self) -> list[QueuedRow]:
        """Return what the queue needs of all QUEUED jobs, in order of arrival."""

    def running_jobs(self) -> list[ListedJob]:
        """Return the RUNNING jobs, in order of arrival."""

    def attempt_uses(self, ended_after_ns: int) -> Iterator[AttemptUse]:
        """Yield what the attempts used that ended after a time of day."""

    def forget_uses(self, ended_before_ns: int) -> Future[None]:
        """Drop what attempts used that ended before a time of day."""

    def expired_jobs(self, older_than: Timestamp, keep: int, limit: int) -> list[str]:
        """Return ids of terminal jobs that ended before a time, or that are not among the `keep` that ended last; those that
        ended first come first."""

    def known_jobs(self, job_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """Return those of the ids that are ids of jobs; with `owner`, of jobs of that owner. A job of another one takes no
        longer than one that does not exist."""

    def jobs_with_files(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the ids whose files must be kept: of jobs, and of deleted ones whose run some job shares."""

    def pending_removals(self) -> list[PendingRemoval]:
        """Return the folders that deleted jobs have left outside of the data folder, until `forget_removal`."""

    def events_after(
        self,
        revision: int,
        limit: int,
        job_id: str | None = None,
        max_bytes: int = MAX_LISTED_BYTES,
        *,
        owner: str | None = None,
    ) -> list[JournalEvent]:
        """Return journal events with a later revision, of one job, of the jobs of one owner, or of all, in order, up to
        `head_revision`.

        No more than `limit`, and none after the one with which they have `max_bytes`. Empty only if there are none.
        Raises RevisionCompactedError, RevisionInFutureError, and JobNotFoundError if that job was deleted.
        """

    def status_counts(self) -> Mapping[Status, int]:
        """Return how many jobs there are in each status."""

    def compact(self, max_events: int, older_than: Timestamp, max_bytes: int = UNBOUNDED) -> Future[int]:
        """Drop journal events that are older than a time, or not among the newest `max_events` revisions or the newest
        `max_bytes`, where each counts with the size that it was made with. Return the oldest revision to resume after; call it
        again until that stays, since it drops a bounded number at a time."""

    def forget_removal(self, path: str) -> Future[None]:
        """Note that a pending removal was carried out. Raises StoreUnavailableError."""

    def run_uids(self) -> Mapping[int, str]:
        """Return the owner of each account that runs have ever had."""

    def assign_run_uid(self, owner: str, uids: range) -> Future[int]:
        """Return the account of these that an owner's runs have, or else give it one that no owner has ever had, for good.

        Raises RunFailedError with reason START_FAILED if there is none left, StoreUnavailableError.
        """

    def set_hold(self, name: str, *, is_held: bool) -> Future[None]:
        """Hold something back, or do so no more: `evalrpc.jobs.holds` has the names. Raises StoreUnavailableError."""

    def erase(self) -> Future[bool]:
        """Erase what was deleted from the files of the store, where it may be left until then. Return whether nothing is left;
        if readers are in the way, call it again later. Raises StoreUnavailableError."""

    def shrink(self) -> None:
        """Give back memory that only makes later reads faster. Blocks. Raises StoreUnavailableError."""

    def check_writable(self) -> Future[None]:
        """Write to the disk without changing anything. Raises StoreUnavailableError."""

    def wait_closed(self) -> None:
        """Block until the store is closed, or can't write any more because of a bug."""

    def close(self) -> None:
        """Finish the writes under way and let go of the files."""

    @property
    def holds(self) -> Holds:
        """What is held back, as it was committed. The same object until that changes."""

    @property
    def head_revision(self) -> int:
        """The newest revision of which the listeners have been notified; 0 in an empty store."""

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


class ObserveCommit(Protocol):
    """Is told how long a commit took, how many writes it had, and whether it was made."""

    def __call__(self, seconds: float, write_count: int, *, is_committed: bool) -> None:
        """Take note of it. Must be quick."""


def observe_nothing(seconds: float, write_count: int, *, is_committed: bool) -> None:
    """Take no note of it."""


class FollowedStore(Store, ChangeFeed, Protocol):
    """A store and the feed of its changes."""

    observe_commit: ObserveCommit
    """Is told of every commit, on the writer thread."""


def job_not_found(job_id: str) -> JobNotFoundError:
    """Build the error for a job that does not exist, or that the caller may not know of."""
    return JobNotFoundError(
        f"there is no job {job_id}", metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job_id}
    )


def suite_run_not_found(suite_run_id: str) -> SuiteRunNotFoundError:
    """Build the error for a suite run that does not exist, or that the caller may not know of."""
    return SuiteRunNotFoundError(
        f"there is no suite run {suite_run_id}",
        metadata={"resource_type": "evalrpc.v1.SuiteRun", "resource_name": suite_run_id},
    )


def parse_job(serialized: bytes) -> JobInfo:
    """Return a job as it was read from the store. Raises StoreUnavailableError where it is damaged."""
    return _parse(JobInfo, serialized)


def _parse(message_class: type[_M], serialized: bytes) -> _M:
    try:
        return message_class.FromString(serialized)
    except DecodeError as error:
        raise _damaged(message_class) from error


def _damaged(message_class: type[Message]) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the server's store is damaged: it has a {message_class.DESCRIPTOR.name} that can't be read; bring back a backup",
        retry_delay_seconds=RETRY_DELAY_SECONDS,
    )
