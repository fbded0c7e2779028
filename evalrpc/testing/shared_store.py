"""Stores of several servers over one database, each of which hears of the others' changes later than they are made.

It is what a database with several writers does to a server: changes that the server did not make, numbers and revisions with
gaps, and reads that are ahead of the changes. So what works on it assumes no single writer.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs.lifecycle import Status
from evalrpc.store.base import (
    ANY,
    MAX_LISTED_BYTES,
    UNBOUNDED,
    AttemptUse,
    Change,
    Deleted,
    Expected,
    JournalEvent,
    ListedJob,
    ListedSuiteRun,
    Listener,
    PendingRemoval,
    QueuedRow,
    StoredJob,
    Submission,
    SuiteSubmission,
)
from evalrpc.store.change_log import ChangeLog
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.store.transaction import Transaction
from evalrpc.v1.jobs_pb2 import JobFilter, JobInfo
from evalrpc.v1.suites_pb2 import SuiteRun

NUMBER_STEP: Final = 3
REVISION_STEP: Final = 5

_T = TypeVar("_T")


class _GappedTransaction(Transaction):
    def next_revision(self) -> int:
        """Leave out some revisions, as a sequence of a database does after a rollback."""
        return self.head + REVISION_STEP


class Database(SqliteStore):
    """The database that SharedStores share. Whoever opens it closes it, after them."""

    transaction_class = _GappedTransaction


class SharedStore:
    """The Store and the ChangeFeed of one server. `hold` keeps changes back, until `release`."""

    def __init__(self, database: SqliteStore) -> None:
        self._database = database
        self._changes = ChangeLog()
        self._head = database.head_revision
        self._may_deliver = threading.Event()
        self._may_deliver.set()
        self._deliveries: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._deliverer = threading.Thread(target=self._deliver, name="deliverer", daemon=True)
        self._deliverer.start()
        database.follow(database.position, lambda changes: self._deliveries.put(lambda: self._pass_on(changes)))

    def hold(self) -> None:
        """Let no change, and no result of a write, get through."""
        self._may_deliver.clear()

    def release(self) -> None:
        """Let through all that was held, in order."""
        self._may_deliver.set()

    # The changes.

    @property
    def position(self) -> int:
        """The number of the latest change that has been passed on."""
        return self._changes.position

    def follow(self, after: int, listener: Listener) -> None:
        """See ChangeFeed.follow."""
        self._changes.follow(after, listener)

    @property
    def head_revision(self) -> int:
        """The newest revision that has been passed on."""
        return self._head

    def _deliver(self) -> None:
        while delivery := self._deliveries.get():
            self._may_deliver.wait()
            delivery()

    def _pass_on(self, changes: Sequence[Change]) -> None:
        revisions = [change.event.revision for change in changes if change.event is not None]
        self._head = max([self._head, *revisions])  # first: followers look for it
        self._changes.pass_on([change._replace(number=NUMBER_STEP * change.number) for change in changes])

    # Writing. A write of this server has been passed on to its listeners before its result is there.

    def submit(self, submission: Submission) -> Future[JobInfo]:
        """See Store.submit."""
        return self._after_its_changes(self._database.submit(submission))

    def submit_suite(self, submission: SuiteSubmission) -> Future[SuiteRun]:
        """See Store.submit_suite."""
        return self._after_its_changes(self._database.submit_suite(submission))

    def update(self, job_id: str, change: Callable[[JobInfo], None], expect: Expected = ANY) -> Future[JobInfo]:
        """See Store.update. The change is tried on a copy first, as where another writer gets in between."""

        def twice(job: JobInfo) -> None:
            copy = JobInfo()
            copy.CopyFrom(job)
            change(copy)
            change(job)

        return self._after_its_changes(self._database.update(job_id, twice, expect))

    def delete(self, job_id: str) -> Future[Deleted]:
        """See Store.delete."""
        return self._after_its_changes(self._database.delete(job_id))

    def compact(self, max_events: int, older_than: Timestamp, max_bytes: int = UNBOUNDED) -> Future[int]:
        """See Store.compact."""
        return self._after_its_changes(self._database.compact(max_events, older_than, max_bytes))

    def forget_removal(self, path: str) -> Future[None]:
        """See Store.forget_removal."""
        return self._database.forget_removal(path)

    def check_writable(self) -> Future[None]:
        """See Store.check_writable."""
        return self._database.check_writable()

    def run_uids(self) -> Mapping[int, str]:
        """See Store.run_uids."""
        return self._database.run_uids()

    def assign_run_uid(self, owner: str, uids: range) -> Future[int]:
        """See Store.assign_run_uid."""
        return self._database.assign_run_uid(owner, uids)

    def erase(self) -> Future[bool]:
        """See Store.erase."""
        return self._database.erase()

    def shrink(self) -> None:
        """See Store.shrink."""
        self._database.shrink()

    def forget_uses(self, ended_before_ns: int) -> Future[None]:
        """See Store.forget_uses."""
        return self._database.forget_uses(ended_before_ns)

    def _after_its_changes(self, write: Future[_T]) -> Future[_T]:
        result: Future[_T] = Future()
        result.set_running_or_notify_cancel()
        write.add_done_callback(lambda done: self._deliveries.put(lambda: _resolve(result, done)))
        return result

    # Reading, of what is in the database by now.

    def cached_job(self, job_id: str) -> StoredJob | None:
        """See Store.cached_job."""
        return self._database.cached_job(job_id)

    def job(self, job_id: str) -> StoredJob:
        """See Store.job."""
        return self._database.job(job_id)

    def list_jobs(
        self,
        job_filter: JobFilter,
        before_sequence: int | None,
        limit: int,
        max_bytes: int = MAX_LISTED_BYTES,
        *,
        owner: str | None = None,
    ) -> list[ListedJob]:
        """See Store.list_jobs."""
        return self._database.list_jobs(job_filter, before_sequence, limit, max_bytes, owner=owner)

    def find_submitted(self, submission: Submission) -> JobInfo | None:
        """See Store.find_submitted."""
        return self._database.find_submitted(submission)

    def find_submitted_suite(self, submission: SuiteSubmission) -> SuiteRun | None:
        """See Store.find_submitted_suite."""
        return self._database.find_submitted_suite(submission)

    def suite_run(self, suite_run_id: str) -> SuiteRun:
        """See Store.suite_run."""
        head = self._head
        run = self._database.suite_run(suite_run_id)
        run.revision = head
        return run

    def list_suite_runs(
        self, prefix: str = "", before_sequence: int | None = None, *, owner: str | None = None
    ) -> Generator[ListedSuiteRun]:
        """See Store.list_suite_runs."""
        head = self._head
        for listed in self._database.list_suite_runs(prefix, before_sequence, owner=owner):
            listed.run.revision = head
            yield listed

    def known_suite_runs(self, suite_run_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """See Store.known_suite_runs."""
        return self._database.known_suite_runs(suite_run_ids, owner)

    def find_identical(self, cache_key: bytes, supersede_key: str = "") -> JobInfo | None:
        """See Store.find_identical."""
        return self._database.find_identical(cache_key, supersede_key)

    def queued_rows(self) -> list[QueuedRow]:
        """See Store.queued_rows."""
        return self._database.queued_rows()

    def running_jobs(self) -> list[ListedJob]:
        """See Store.running_jobs."""
        return self._database.running_jobs()

    def attempt_uses(self, ended_after_ns: int) -> Iterator[AttemptUse]:
        """See Store.attempt_uses."""
        return self._database.attempt_uses(ended_after_ns)

    def expired_jobs(self, older_than: Timestamp, keep: int, limit: int) -> list[str]:
        """See Store.expired_jobs."""
        return self._database.expired_jobs(older_than, keep, limit)

    def known_jobs(self, job_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """See Store.known_jobs."""
        return self._database.known_jobs(job_ids, owner)

    def jobs_with_files(self, job_ids: Sequence[str]) -> set[str]:
        """See Store.jobs_with_files."""
        return self._database.jobs_with_files(job_ids)

    def pending_removals(self) -> list[PendingRemoval]:
        """See Store.pending_removals."""
        return self._database.pending_removals()

    def events_after(
        self,
        revision: int,
        limit: int,
        job_id: str | None = None,
        max_bytes: int = MAX_LISTED_BYTES,
        *,
        owner: str | None = None,
    ) -> list[JournalEvent]:
        """See Store.events_after."""
        head = self._head
        events = self._database.events_after(revision, limit, job_id, max_bytes, owner=owner)
        return [event for event in events if event.revision <= head]

    def status_counts(self) -> Mapping[Status, int]:
        """See Store.status_counts."""
        return self._database.status_counts()

    @property
    def oldest_revision(self) -> int:
        """See Store.oldest_revision."""
        return self._database.oldest_revision

    def wait_closed(self) -> None:
        """Block until the database is closed, or can't write any more because of a bug."""
        self._database.wait_closed()

    def close(self) -> None:
        """Deliver what is under way, and let go of the database."""
        self.release()
        self._deliveries.put(None)
        self._deliverer.join()


class SoleSharedStore(SharedStore):
    """A SharedStore that closes its database with itself."""

    def close(self) -> None:
        """Close both. May be called again."""
        self._database.close()
        super().close()


def _resolve(result: Future[Any], done: Future[Any]) -> None:
    if error := done.exception():
        result.set_exception(error)
    else:
        result.set_result(done.result())
