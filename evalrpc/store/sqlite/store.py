"""A store in one SQLite file, written by one thread.

Threads: every write is a job for the writer thread, which takes all that are waiting, runs them in one transaction, commits
once, notifies the listeners, and only then gives the callers their results. Readers have a connection per thread and see what
is committed (WAL). The in-memory numbers (`_head`, `_counts`) are the writer's own; others read them without a lock, since each
is one reference.

A write checks first and raises before its first statement that changes anything. So one that is refused leaves its
neighbours in the transaction alone, and none needs a savepoint.
"""

import json
import logging
import shutil
import sqlite3
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.errors import EvalrpcError, RevisionCompactedError, RevisionInFutureError, StoreUnavailableError
from evalrpc.files.reserving import reserve_room
from evalrpc.jobs.holds import Holds
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import (
    MAX_LISTED_BYTES,
    RETRY_DELAY_SECONDS,
    AttemptUse,
    JournalEvent,
    ListedJob,
    ListedSuiteRun,
    Listener,
    ObserveCommit,
    PendingRemoval,
    QueuedRow,
    StoredJob,
    Submission,
    SuiteSubmission,
    job_not_found,
    observe_nothing,
    parse_job,
)
from evalrpc.store.cache import JobCache
from evalrpc.store.change_log import ChangeLog
from evalrpc.store.group_commit import CommitQueue
from evalrpc.store.lock import lock_data_dir
from evalrpc.store.room import Room
from evalrpc.store.sqlite import deduplication, journal, run_uids, suite_runs
from evalrpc.store.sqlite.bitmap_index import BitmapIndex
from evalrpc.store.sqlite.filters import find_jobs
from evalrpc.store.sqlite.opening import open_database
from evalrpc.store.sqlite.tables import SqliteTables
from evalrpc.store.transaction import Transaction
from evalrpc.store.writes import Operation, StoreWrites
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.suites_pb2 import SuiteRun

DATABASE_NAME: Final = "evalrpc.sqlite3"

_KNOWN: Final = "SELECT job_id, sequence FROM jobs WHERE job_id IN (SELECT value FROM json_each(?))"
# Only indexes are looked at, whoever owns the jobs, so that nobody can tell by the time whether others have some.
_KNOWN_OF_OWNER: Final = f"""
SELECT job_id FROM ({_KNOWN}) AS known
WHERE EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_by_owner WHERE owner = ? AND jobs.sequence = known.sequence)
"""  # noqa: S608

_CACHE_BYTES: Final = 16 * 1024 * 1024
_BITMAPS_BYTES: Final = 8 * 1024 * 1024

_RESERVED_BYTES: Final = 16 * 1024 * 1024
"""The part of the write-ahead log that has its room on the disk at all times. So when a run has filled that, its end is still
committed, as is a cancel or a deletion, which makes room."""

_CACHED_STATEMENTS: Final = 24
"""How many prepared statements each connection for reading keeps. That of a long filter takes up to 240 KiB."""

_BUSY_WAIT_MS: Final = 5000
_ERASE_WAIT_MS: Final = 200

_ERASE: Final = object()
"""What an operation returns that is carried out after the commit."""

_SHRINK: Final = "PRAGMA shrink_memory"

_log = logging.getLogger(__name__)


class SqliteStore(StoreWrites):
    """The store of one server, in `data_dir`, which it locks against every other.

    Raises DataDirectoryInUseError, ConfigurationError.
    """

    transaction_class = Transaction

    def __init__(self, data_dir: Path, clock: Clock, max_queued: int, entitlements: Entitlements | None = None) -> None:
        self._path = data_dir / DATABASE_NAME
        self._clock = clock
        self._max_queued = max_queued
        self._entitlements = entitlements or Entitlements()
        self._lock_file = lock_data_dir(data_dir)
        self._changes = ChangeLog()
        self._cache = JobCache(_CACHE_BYTES)
        self._bitmaps = BitmapIndex(_BITMAPS_BYTES)
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self.observe_commit: ObserveCommit = observe_nothing
        """Is told of every commit, on the writer thread."""
        self._operations: CommitQueue[tuple[Operation, Future[Any]]] = CommitQueue(clock)
        self._closed = False
        with ExitStack() as stack:
            stack.callback(self._lock_file.close)  # whoever can't open the database must not keep it locked
            opened = open_database(self._path)
            stack.pop_all()
        self._connection = opened.connection
        self._oldest = opened.oldest_revision
        self._head = opened.head_revision
        self._journal_end_bytes = opened.journal_end_bytes
        self._last_sequence = opened.last_sequence
        self._last_created_ns = opened.last_created_ns
        self._counts = opened.counts
        self._queued_by_owner = opened.queued_by_owner
        self._followed = opened.followed
        self._tables = SqliteTables(self._connection)
        self._holds = self._tables.holds()
        self._unerased = True  # an earlier server may have been killed before it could
        self._reserve_room()
        self._writer = threading.Thread(target=self._write_batches, name="store-writer", daemon=True)
        self._writer.start()

    # Writing.

    def erase(self) -> Future[bool]:
        """Empty the write-ahead log, in which SQLite keeps pages as they were before a deletion. In the file itself it has
        overwritten them (secure_delete)."""
        return self._write(lambda _: _ERASE)

    def shrink(self) -> None:
        """Empty the page cache of each connection, of some MB. What the machine has of the file in memory stays there."""
        with self._readers_lock:
            readers = list(self._readers)
        try:
            for reader in readers:
                reader.execute(_SHRINK)
        except sqlite3.Error as error:
            raise _unavailable(f"the server's store can't be read: {error}") from error
        self._write(lambda _: self._connection.execute(_SHRINK)).result()

    @property
    def position(self) -> int:
        """The number of the latest change. Numbers begin anew with every opening, since nobody follows from one to the next."""
        return self._changes.position

    def follow(self, after: int, listener: Listener) -> None:
        """Pass every later change to the listener, on the writer thread."""
        self._changes.follow(after, listener)

    def wait_closed(self) -> None:
        """Block until the store is closed, or can't write any more because of a bug."""
        self._writer.join()

    def close(self) -> None:
        """Finish the writes under way and let go of the files."""
        if self._closed:
            return
        self._closed = True
        self._operations.close()
        self._writer.join()
        self._connection.close()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
        self._lock_file.close()

    def _write(self, operation: Operation, submissions: Sequence[Submission] = ()) -> Future[Any]:  # noqa: ARG002
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # whoever gives up waiting must not cancel the write
        if not self._operations.put((operation, future)):
            raise _unavailable("the store is closed")
        return future

    def _write_batches(self) -> None:
        """Run on the writer thread until the store is closed. An error that is no EvalrpcError and no sqlite3.Error is a bug:
        it ends the thread, and with it the server, before anything wrong can be written."""
        batch: list[tuple[Operation, Future[Any]]] = []
        try:
            while batch := self._operations.take():
                self._commit(batch)
        finally:
            self._refuse(batch)

    def _refuse(self, batch: list[tuple[Operation, Future[Any]]]) -> None:
        """Take no more, and answer whoever still waits after a bug in this batch."""
        self._operations.close()
        for _, future in batch + self._operations.take():
            if not future.done():
                future.set_exception(_unavailable("the store is closed"))

    def _commit(self, batch: list[tuple[Operation, Future[Any]]]) -> None:
        transaction = self.transaction_class(
            self._tables,
            self._clock,
            self._max_queued,
            self._head,
            self._last_sequence,
            self._last_created_ns,
            self._changes.position,
            self._counts,
            self._queued_by_owner,
            self._entitlements,
            self._cache.get,
            self._followed,
            self._journal_end_bytes,
        )
        outcomes: list[tuple[Future[Any], Any]] = []
        begun = self._clock.monotonic()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for operation, future in batch:
                try:
                    outcomes.append((future, operation(transaction)))
                except EvalrpcError as refusal:
                    outcomes.append((future, refusal))
            transaction.flush()
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(batch, error)
            self.observe_commit(self._clock.monotonic() - begun, len(batch), is_committed=False)
            return
        self.observe_commit(self._clock.monotonic() - begun, len(batch), is_committed=True)
        self._publish(transaction)
        for future, outcome in outcomes:
            if isinstance(outcome, EvalrpcError):
                future.set_exception(outcome)
            elif outcome is _ERASE:
                self._erase(future)
            else:
                future.set_result(outcome)

    def _erase(self, future: Future[bool]) -> None:
        """Wait for the readers at work only for a moment, since all writes wait meanwhile. On a full disk the log stays as it
        is: others might take the room that it gives back."""
        try:
            if self._unerased and shutil.disk_usage(self._path.parent).free > _RESERVED_BYTES:
                self._unerased = not self._empty_log()
        except sqlite3.Error as error:
            future.set_exception(_unavailable(f"the server's store can't write: {error}"))
        else:
            future.set_result(not self._unerased)
        self._reserve_room()

    def _reserve_room(self) -> None:
        """Reserve what emptying the log has given back."""
        with suppress(OSError):  # without it, the server writes for as long as there is room
            reserve_room(self._path.with_name(f"{self._path.name}-wal"), _RESERVED_BYTES)

    def _empty_log(self) -> bool:
        """Empty the write-ahead log, unless somebody still reads from it. Return whether it is empty."""
        self._connection.execute(f"PRAGMA busy_timeout = {_ERASE_WAIT_MS}")
        try:
            (is_busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_WAIT_MS}")
        return not is_busy

    def _roll_back(self, batch: list[tuple[Operation, Future[Any]]], error: sqlite3.Error) -> None:
        _log.error("the store could not commit %d writes: %s", len(batch), error)
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        for _, future in batch:
            future.set_exception(_unavailable(f"the server's store can't write: {error}"))

    def _publish(self, transaction: Transaction) -> None:
        self._journal_end_bytes = transaction.journal_end_bytes
        self._last_sequence = transaction.last_sequence
        self._last_created_ns = transaction.last_created_ns
        self._counts = transaction.counts
        self._queued_by_owner = transaction.queued_by_owner
        self._followed |= transaction.newly_followed
        self._followed -= transaction.settled
        if transaction.holds is not None:
            self._holds = transaction.holds
        if transaction.oldest is not None:
            self._oldest = transaction.oldest
        for change, serialized in transaction.changes:
            if change.deleted:
                self._unerased = True
                self._cache.remove(change.job.job_id)
            else:
                self._cache.put(change.job.job_id, StoredJob(change.sequence, change.job.status, serialized, change.job.owner))
        self._head = transaction.head  # once the cache has all up to it
        if transaction.changes:
            self._changes.pass_on([change for change, _ in transaction.changes])

    # Reading.

    @property
    def head_revision(self) -> int:
        """The newest revision."""
        return self._head

    @property
    def oldest_revision(self) -> int:
        """The oldest revision that one can resume after."""
        return self._oldest

    @property
    def holds(self) -> Holds:
        """What is held back."""
        return self._holds

    def status_counts(self) -> Mapping[Status, int]:
        """Return how many jobs there are in each status."""
        return self._counts

    def cached_job(self, job_id: str) -> StoredJob | None:
        """Return a job from memory."""
        return self._cache.get(job_id)

    def job(self, job_id: str) -> StoredJob:
        """Return a job, from memory or from the disk."""
        cached = self._cache.get(job_id)
        if cached is not None:
            return cached
        generation = self._cache.generation
        with self._reading() as connection:
            query = "SELECT sequence, status, job, owner FROM jobs WHERE job_id = ?"
            row = connection.execute(query, (job_id,)).fetchone()
        if row is None:
            raise job_not_found(job_id)
        stored = StoredJob(*row)
        self._cache.fill(job_id, stored, generation)
        return stored

    def list_jobs(
        self,
        job_filter: JobFilter,
        before_sequence: int | None,
        limit: int,
        max_bytes: int = MAX_LISTED_BYTES,
        *,
        owner: str | None = None,
    ) -> list[ListedJob]:
        """Return jobs that the filter takes, newest first."""
        with self._reading() as connection, _snapshot(connection):
            rows = find_jobs(connection, self._bitmaps, job_filter, before_sequence, Room(limit, max_bytes), owner)
        return [ListedJob(sequence, parse_job(job)) for sequence, job in rows]

    def find_submitted(self, submission: Submission) -> pb.JobInfo | None:
        """Return the job that the same request_id got for the same contents."""
        query = "SELECT job FROM jobs WHERE request_id = ? AND owner = ? AND fingerprint = ?"
        with self._reading() as connection:
            row = connection.execute(query, (submission.request_id, submission.job.owner, submission.fingerprint)).fetchone()
        return parse_job(row[0]) if row else None

    def find_submitted_suite(self, submission: SuiteSubmission) -> SuiteRun | None:
        """Return the suite run that the same request_id got for the same contents."""
        head = self._head
        with self._reading() as connection, _snapshot(connection):
            found = suite_runs.requested(connection, submission)
            if found is None or found.fingerprint != submission.fingerprint:
                return None
            return suite_runs.read(connection, found.given_id, head, self._cached_status)

    def suite_run(self, suite_run_id: str) -> SuiteRun:
        """Return a suite run as its jobs stand."""
        head = self._head
        with self._reading() as connection, _snapshot(connection):
            return suite_runs.read(connection, suite_run_id, head, self._cached_status)

    def list_suite_runs(
        self, prefix: str = "", before_sequence: int | None = None, *, owner: str | None = None
    ) -> Generator[ListedSuiteRun]:
        """Yield suite runs, newest first."""
        head = self._head
        with self._reading() as connection, _snapshot(connection):
            yield from suite_runs.newest(connection, prefix, before_sequence, owner, head, self._cached_status)

    def _cached_status(self, job_id: str) -> Status | None:
        cached = self._cache.get(job_id)
        return cached and cached.status

    def known_suite_runs(self, suite_run_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """Return those of the ids that are ids of suite runs, or of runs of an owner."""
        with self._reading() as connection:
            return suite_runs.known(connection, suite_run_ids, owner)

    def find_identical(self, cache_key: bytes, supersede_key: str = "") -> pb.JobInfo | None:
        """Return the job whose run a submission would share."""
        with self._reading() as connection, _snapshot(connection):
            completed = deduplication.find_completed(connection, cache_key)
            return completed or deduplication.find_live(connection, cache_key, supersede_key)

    def queued_rows(self) -> list[QueuedRow]:
        """Return what the queue needs of all QUEUED jobs, in order of arrival."""
        columns = "job_id, sequence, priority, num_gpus, created_ns, retry_ns, ifnull(cached_from, ''), owner, engine, executor"
        query = f"SELECT {columns} FROM jobs WHERE status = ? ORDER BY sequence"  # noqa: S608
        with self._reading() as connection:
            return [QueuedRow(*row) for row in connection.execute(query, (pb.JOB_STATUS_QUEUED,))]

    def running_jobs(self) -> list[ListedJob]:
        """Return the RUNNING jobs, in order of arrival."""
        query = "SELECT sequence, job FROM jobs WHERE status = ? ORDER BY sequence"
        with self._reading() as connection:
            rows = connection.execute(query, (pb.JOB_STATUS_RUNNING,)).fetchall()
        return [ListedJob(sequence, parse_job(job)) for sequence, job in rows]

    def attempt_uses(self, ended_after_ns: int) -> Iterator[AttemptUse]:
        """Yield what the attempts used that ended after a time of day."""
        query = "SELECT owner, started_ns, ended_ns, width FROM attempt_uses WHERE ended_ns > ?"
        with self._reading() as connection:
            yield from (AttemptUse(*row) for row in connection.execute(query, (ended_after_ns,)))

    def expired_jobs(self, older_than: Timestamp, keep: int, limit: int) -> list[str]:
        """Return ids of terminal jobs that are too old or too many, in the order of their ends."""
        too_many = "SELECT completed_ns FROM jobs WHERE completed_ns IS NOT NULL ORDER BY completed_ns DESC LIMIT 1 OFFSET ?"
        before = f"max(?, ifnull(({too_many}), -1) + 1)"
        query = f"SELECT job_id FROM jobs WHERE completed_ns < {before} ORDER BY completed_ns LIMIT ?"  # noqa: S608
        with self._reading() as connection:
            return [job_id for (job_id,) in connection.execute(query, (older_than.ToNanoseconds(), keep, limit))]

    def known_jobs(self, job_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """Return those of the ids that are ids of jobs, or of jobs of an owner."""
        query, of_owner = (_KNOWN, ()) if owner is None else (_KNOWN_OF_OWNER, (owner,))
        with self._reading() as connection:
            return {job_id for job_id, *_ in connection.execute(query, (json.dumps(list(job_ids)), *of_owner))}

    def jobs_with_files(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the ids whose files some job refers to."""
        with self._reading() as connection:
            return deduplication.referred_to(connection, job_ids)

    def pending_removals(self) -> list[PendingRemoval]:
        """Return the folders outside of the data folder that are still to be removed."""
        with self._reading() as connection:
            rows = connection.execute("SELECT job_id, path FROM removals ORDER BY job_id, path").fetchall()
        return [PendingRemoval(job_id, Path(path)) for job_id, path in rows]

    def run_uids(self) -> Mapping[int, str]:
        """Return the owner of each account that runs have ever had."""
        with self._reading() as connection:
            return run_uids.run_uids(connection)

    def events_after(
        self,
        revision: int,
        limit: int,
        job_id: str | None = None,
        max_bytes: int = MAX_LISTED_BYTES,
        *,
        owner: str | None = None,
    ) -> list[JournalEvent]:
        """Return journal events with a later revision, in order."""
        head = self._head  # the listeners were not yet notified of what is committed past it, so nobody may see that
        if revision > head:
            raise RevisionInFutureError(
                f"after_revision {revision} lies beyond the newest revision {head}: does it come from another server?",
                metadata={"head_revision": str(head)},
            )
        with self._reading() as connection, _snapshot(connection):
            sequence = _sequence_of(connection, job_id) if job_id else None
            events = journal.read_events(connection, revision, head, Room(limit, max_bytes), sequence, owner)
            oldest = journal.oldest_revision(connection)
        if revision < oldest:
            raise RevisionCompactedError(
                f"the journal reaches back to revision {oldest} only: begin anew with after_revision 0",
                metadata={"oldest_revision": str(oldest)},
            )
        return events

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise _unavailable("the store is closed")
        try:
            yield self._reader()
        except sqlite3.Error as error:
            raise _unavailable(f"the server's store can't be read: {error}") from error

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, cached_statements=_CACHED_STATEMENTS
            )
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection


def _sequence_of(connection: sqlite3.Connection, job_id: str) -> int:
    """Return the place of a job in the order of arrival. Raises JobNotFoundError."""
    row = connection.execute("SELECT sequence FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        raise job_not_found(job_id)
    return int(row[0])


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all queries see the same state."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _unavailable(message: str) -> StoreUnavailableError:
    return StoreUnavailableError(message, retry_delay_seconds=RETRY_DELAY_SECONDS)
