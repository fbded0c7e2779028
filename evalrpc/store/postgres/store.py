"""A store in a PostgreSQL database.

Threads: every write is a job for the writer thread, which commits all that are waiting together (see `writer.py`), notifies the
listeners, and only then gives the callers their results. It also passes on what other servers have committed: the listening
thread wakes it. Readers have a connection per thread.
"""

import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock
from evalrpc.errors import ConfigurationError, RevisionCompactedError, RevisionInFutureError, StoreUnavailableError
from evalrpc.jobs.holds import Holds
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import (
    ANY,
    MAX_LISTED_BYTES,
    AttemptUse,
    Expected,
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
from evalrpc.store.group_commit import CommitQueue
from evalrpc.store.lock import lock_data_dir
from evalrpc.store.postgres import deduplication, journal, suite_runs
from evalrpc.store.postgres.checking import require_usable
from evalrpc.store.postgres.connecting import Connection, Readers, brief, connect_writer, require_valid, shown, unavailable
from evalrpc.store.postgres.data_folder import require_same_folder
from evalrpc.store.postgres.filters import find_jobs
from evalrpc.store.postgres.hosts import HostsView
from evalrpc.store.postgres.lease import Leases, Part, require_own_name
from evalrpc.store.postgres.lease_rows import LeaseTable
from evalrpc.store.postgres.listening import Listening
from evalrpc.store.postgres.migrations import migrate
from evalrpc.store.postgres.progress import JobProgress, SharedProgress
from evalrpc.store.postgres.texts import storable
from evalrpc.store.postgres.writer import Write, Writer
from evalrpc.store.transaction import Transaction
from evalrpc.store.writes import Operation, StoreWrites
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.suites_pb2 import SuiteRun

_CACHE_BYTES: Final = 16 * 1024 * 1024
_CATCH_UP_SECONDS: Final = 10.0

_QUEUED: Final = f"""
SELECT job_id, sequence, priority, num_gpus, created_ns, retry_ns, coalesce(cached_from, ''), owner, engine, executor
FROM jobs WHERE status = {pb.JOB_STATUS_QUEUED} ORDER BY sequence
"""
_RUNNING: Final = f"SELECT sequence, job FROM jobs WHERE status = {pb.JOB_STATUS_RUNNING} ORDER BY sequence"
_EXPIRED: Final = """
SELECT job_id FROM jobs WHERE completed_ns < greatest(%s, coalesce((
    SELECT completed_ns FROM jobs WHERE completed_ns IS NOT NULL ORDER BY completed_ns DESC LIMIT 1 OFFSET %s
), -1) + 1) ORDER BY completed_ns LIMIT %s
"""
_KNOWN: Final = "SELECT job_id FROM jobs WHERE job_id = ANY(%s)"
_SUBMITTED: Final = "SELECT job FROM jobs WHERE request_id = %s AND owner = %s AND fingerprint = %s"


class PostgresStore(StoreWrites):
    """The store of one server. `data_dir` is the folder of its files, which it shares with the servers on the same database.

    Raises DataDirectoryInUseError, ConfigurationError.
    """

    def __init__(
        self, conninfo: str, data_dir: Path, clock: Clock, max_queued: int, entitlements: Entitlements | None = None
    ) -> None:
        require_valid(conninfo)
        self._lock_file = lock_data_dir(data_dir, is_shared=True)
        self._conninfo = conninfo
        self._server_id = str(uuid.uuid4())
        self._leases: Leases | None = None
        self._part: Part | None = None
        self.hosts = HostsView()
        """The machines of the servers on this database."""
        self._closed = False
        self.observe_commit: ObserveCommit = observe_nothing
        """Is told of every commit, on the writer thread."""
        self._clock = clock
        self._cache = JobCache(_CACHE_BYTES)
        self._readers = Readers(conninfo)
        self._operations: CommitQueue[Write | None] = CommitQueue(clock)  # None: see what others have committed
        self._is_woken = False
        with ExitStack() as stack:
            stack.callback(self._lock_file.close)
            try:
                connection = stack.enter_context(connect_writer(conninfo))
                require_usable(connection, conninfo, clock)
                migrate(connection)
                require_same_folder(connection, data_dir)
                given = entitlements or Entitlements()
                self._writer = Writer(conninfo, clock, max_queued, given, self._cache, self._server_id, self._see_leases)
            except (psycopg.Error, StoreUnavailableError) as error:
                raise ConfigurationError(
                    f"setting store: {shown(conninfo)} can't be used: {brief(error)}; see that it runs, and that the user may "
                    "create tables"
                ) from error
            connection.close()
            stack.pop_all()
        self._thread = threading.Thread(target=self._write_batches, name="store-writer", daemon=True)
        self._thread.start()
        self._progress: SharedProgress | None = None
        self._listening = Listening(conninfo, self._wake, self._wake_progress)

    # Writing.

    def update_as_runner(self, job_id: str, change: Callable[[pb.JobInfo], None], expect: Expected = ANY) -> Future[pb.JobInfo]:
        """Do the same for a server that has leases: in the same commit it says what its machine has, if that has changed. Its
        future raises StoreUnavailableError, too, where another server has one of its leases by now."""
        held = self._leases.held if self._leases is not None else {}

        def operation(transaction: Transaction) -> pb.JobInfo:
            part = self._part
            self._writer.require_leases(held, part.host if part else "", part.describe() if part else "")
            return transaction.update(job_id, change, expect)

        return self._write(operation)

    def require_own_name(
        self, host: str, is_elsewhere: Callable[[str], bool], lease_seconds: float, should_stop: Callable[[float], bool]
    ) -> None:
        """Wait until no other machine has the name of this one. See `lease.require_own_name`. Raises ConfigurationError."""
        try:
            require_own_name(self._conninfo, host, is_elsewhere, lease_seconds, should_stop)
        except psycopg.Error as error:
            raise ConfigurationError(f"setting store: {shown(self._conninfo)} can't be used: {brief(error)}") from error

    def take_part(self, part: Part, lease_seconds: float) -> None:
        """Try to be the server that sees to the runs of its machine, and then the scheduler, until the store is closed."""
        self._part = part
        self._leases = Leases(self._conninfo, self._clock, self._server_id, lease_seconds, part, self.hosts.take)

    def share_progress(self, hear: Callable[[JobProgress], bool]) -> None:
        """Hand what other servers say of their running jobs to `hear`, from now on. It returns whether that attempt runs."""
        self._progress = SharedProgress(self._conninfo, self._own_fence, hear)

    def say_progress(self, progress: JobProgress) -> None:
        """Let the other servers know how far a job of this one has come. Never blocks."""
        if self._progress is not None:
            self._progress.say(progress)

    def forget_progress(self, job_id: str) -> None:
        """Let them forget it, since the job runs no more. Never blocks."""
        if self._progress is not None:
            self._progress.forget(job_id)

    def _own_fence(self) -> int | None:
        leases, part = self._leases, self._part
        return leases.held.get(part.host) if leases is not None and part is not None else None

    def _wake_progress(self) -> None:
        if self._progress is not None:
            self._progress.wake()

    def is_trusted(self) -> bool:
        """Return whether no other server can have the leases of this one yet."""
        return self._leases is not None and self._leases.is_trusted()

    def stop_trying(self) -> None:
        """Try no more to get leases. What is held is held until it expires, or `stop_running`."""
        if self._leases is not None:
            self._leases.stop()

    def stop_running(self, *, has_runs: bool = True) -> None:
        """Give the leases back, for other servers. `has_runs`: whether anything runs on this machine."""
        if self._leases is not None:
            self._leases.close(has_runs=has_runs)

    def catch_up(self) -> None:
        """Wait until everything has been passed on that was committed before. Raises StoreUnavailableError."""
        self._look_up()

    def erase(self) -> Future[bool]:
        """Do nothing: what was deleted is overwritten in the files of the database as its autovacuum gives their room away."""
        return self._write(lambda _: True)

    def shrink(self) -> None:
        """Do nothing: the pages that were read are in memory of the database."""

    @property
    def position(self) -> int:
        """The number of the latest change that has been passed on."""
        return self._writer.changes.position

    def follow(self, after: int, listener: Listener) -> None:
        """Pass every later change to the listener, on the writer thread."""
        self._writer.changes.follow(after, listener)

    def wait_closed(self) -> None:
        """Block until the store is closed, or can't write any more because of a bug."""
        self._thread.join()

    def close(self) -> None:
        """Finish the writes under way and let go of the database."""
        if self._closed:
            return
        self._closed = True
        self.stop_running()
        self._listening.close()
        if self._progress is not None:
            self._progress.close()
        self._operations.close()
        self._writer.stop()
        self._thread.join()
        self._writer.close()
        self._readers.close()
        self._lock_file.close()

    def _write(self, operation: Operation, submissions: Sequence[Submission] = ()) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # whoever gives up waiting must not cancel the write
        if not self._operations.put(Write(operation, future, submissions)):
            raise unavailable("the store is closed")
        return future

    def _wake(self, number: int | None) -> None:
        """Have the writer see what others have committed, unless it is there already. Called by the listening thread."""
        if not self._is_woken and (number is None or number > self.position):
            self._is_woken = True
            self._operations.put(None)

    def _see_leases(self, leases: LeaseTable) -> None:
        """Take what the writer has read, since something has changed: a lease may be free now."""
        self.hosts.take(leases)
        if self._leases is not None:
            self._leases.wake()

    def _write_batches(self) -> None:
        """Run on the writer thread until the store is closed. An error that is no EvalrpcError and no psycopg.Error is a bug:
        it ends the thread, and with it the server, before anything wrong can be written."""
        writes: list[Write] = []
        try:
            while batch := self._operations.take():
                writes = [write for write in batch if write is not None]
                self._is_woken = False
                if writes:
                    begun = self._clock.monotonic()
                    is_committed = self._writer.commit(writes)
                    self.observe_commit(self._clock.monotonic() - begun, len(writes), is_committed=is_committed)
                else:
                    self._catch_up()
        finally:
            self._refuse(writes)

    def _catch_up(self) -> None:
        try:
            self._writer.catch_up()
        except StoreUnavailableError:
            self._is_woken = False  # the listening thread says that it can't be reached, and wakes again

    def _refuse(self, batch: Sequence[Write]) -> None:
        """Take no more, and answer whoever still waits after a bug in this batch."""
        self._operations.close()
        for write in [*batch, *(write for write in self._operations.take() if write is not None)]:
            if not write.future.done():
                write.future.set_exception(unavailable("the store is closed"))

    # Reading.

    @property
    def head_revision(self) -> int:
        """The newest revision of which the listeners were notified."""
        return self._writer.head_revision

    @property
    def oldest_revision(self) -> int:
        """The oldest revision that one can resume after."""
        return self._writer.oldest_revision

    @property
    def holds(self) -> Holds:
        """What is held back."""
        return self._writer.holds

    def status_counts(self) -> Mapping[Status, int]:
        """Return how many jobs there are in each status."""
        return self._writer.state.counts

    def cached_job(self, job_id: str) -> StoredJob | None:
        """Return a job from memory."""
        return self._cache.get(job_id)

    def job(self, job_id: str) -> StoredJob:
        """Return a job, from memory or from the database."""
        cached = self._cache.get(job_id)
        if cached is not None:
            return cached
        generation = self._cache.generation
        query = "SELECT sequence, status, job, owner FROM jobs WHERE job_id = ANY(%s)"
        with self._readers.reading() as connection:
            row = connection.execute(query, (storable([job_id]),)).fetchone()
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
        with self._readers.reading() as connection:
            rows = find_jobs(connection, job_filter, before_sequence, limit, max_bytes, owner)
        return [ListedJob(sequence, parse_job(job)) for sequence, job in rows]

    def find_submitted(self, submission: Submission) -> pb.JobInfo | None:
        """Return the job that the same request_id got for the same contents."""
        with self._readers.reading() as connection:
            asked = submission.request_id, submission.job.owner, submission.fingerprint
            row = connection.execute(_SUBMITTED, asked).fetchone()
        return parse_job(row[0]) if row else None

    def find_submitted_suite(self, submission: SuiteSubmission) -> SuiteRun | None:
        """Return the suite run that the same request_id got for the same contents."""
        head = self.head_revision
        with self._readers.snapshot() as connection:
            found = suite_runs.requested(connection, submission)
            if found is None or found.fingerprint != submission.fingerprint:
                return None
            return suite_runs.read(connection, found.given_id, head, self._cached_status)

    def suite_run(self, suite_run_id: str) -> SuiteRun:
        """Return a suite run as its jobs stand."""
        head = self.head_revision
        with self._readers.snapshot() as connection:
            return suite_runs.read(connection, suite_run_id, head, self._cached_status)

    def list_suite_runs(
        self, prefix: str = "", before_sequence: int | None = None, *, owner: str | None = None
    ) -> Generator[ListedSuiteRun]:
        """Yield suite runs, newest first."""
        head = self.head_revision
        with self._readers.snapshot() as connection:
            yield from suite_runs.newest(connection, prefix, before_sequence, owner, head, self._cached_status)

    def _cached_status(self, job_id: str) -> Status | None:
        cached = self._cache.get(job_id)
        return cached and cached.status

    def known_suite_runs(self, suite_run_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """Return those of the ids that are ids of suite runs, or of runs of an owner."""
        with self._readers.reading() as connection:
            return suite_runs.known(connection, suite_run_ids, owner)

    def find_identical(self, cache_key: bytes, supersede_key: str = "") -> pb.JobInfo | None:
        """Return the job whose run a submission would share."""
        with self._readers.snapshot() as connection:
            completed = deduplication.find_completed(connection, cache_key)
            return completed or deduplication.find_live(connection, cache_key, supersede_key)

    def queued_rows(self) -> list[QueuedRow]:
        """Return what the queue needs of all QUEUED jobs, in order of arrival."""
        with self._readers.reading() as connection:
            return [QueuedRow(*row) for row in connection.execute(_QUEUED)]

    def running_jobs(self) -> list[ListedJob]:
        """Return the RUNNING jobs, in order of arrival."""
        with self._readers.reading() as connection:
            rows = connection.execute(_RUNNING).fetchall()
        return [ListedJob(sequence, parse_job(job)) for sequence, job in rows]

    def attempt_uses(self, ended_after_ns: int) -> Iterator[AttemptUse]:
        """Yield what the attempts used that ended after a time of day."""
        query = "SELECT owner, started_ns, ended_ns, width FROM attempt_uses WHERE ended_ns > %s ORDER BY ended_ns"
        with self._readers.reading() as connection:
            yield from [AttemptUse(*row) for row in connection.execute(query, (ended_after_ns,))]

    def expired_jobs(self, older_than: Timestamp, keep: int, limit: int) -> list[str]:
        """Return ids of terminal jobs that are too old or too many, in the order of their ends."""
        with self._readers.reading() as connection:
            rows = connection.execute(_EXPIRED, (older_than.ToNanoseconds(), keep, limit))
            return [job_id for (job_id,) in rows]

    def known_jobs(self, job_ids: Sequence[str], owner: str | None = None) -> set[str]:
        """Return those of the ids that are ids of jobs, or of jobs of an owner."""
        query, of_owner = (_KNOWN, ()) if owner is None else (f"{_KNOWN} AND owner = %s", (owner,))
        with self._readers.reading() as connection:
            return {job_id for (job_id,) in connection.execute(query, (storable(job_ids), *of_owner))}

    def jobs_with_files(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of the ids whose files some job refers to."""
        with self._readers.reading() as connection:
            return deduplication.referred_to(connection, storable(job_ids))

    def pending_removals(self) -> list[PendingRemoval]:
        """Return the folders outside of the data folder that are still to be removed."""
        with self._readers.reading() as connection:
            rows = connection.execute("SELECT job_id, path FROM removals ORDER BY job_id, path").fetchall()
        return [PendingRemoval(job_id, Path(path)) for job_id, path in rows]

    def run_uids(self) -> Mapping[int, str]:
        """Return the owner of each account that runs have ever had."""
        with self._readers.reading() as connection:
            return dict(connection.execute("SELECT uid, owner FROM run_uids").fetchall())

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
        if revision > self.head_revision:
            self._look_up()  # another server may have told it
        head = self.head_revision  # the listeners were not yet notified of what is committed past it, so nobody may see that
        if revision > head:
            raise RevisionInFutureError(
                f"after_revision {revision} lies beyond the newest revision {head}: does it come from another server?",
                metadata={"head_revision": str(head)},
            )
        with self._readers.snapshot() as connection:
            sequence = _sequence_of(connection, job_id) if job_id else None
            events = journal.read_events(connection, revision, head, limit, max_bytes, sequence, owner)
            oldest = journal.oldest_revision(connection)
        if revision < oldest:
            raise RevisionCompactedError(
                f"the journal reaches back to revision {oldest} only: begin anew with after_revision 0",
                metadata={"oldest_revision": str(oldest)},
            )
        return events

    def _look_up(self) -> None:
        """Wait until everything has been passed on that was committed before. Raises StoreUnavailableError."""
        try:
            self._write(lambda transaction: transaction.head).result(_CATCH_UP_SECONDS)
        except FutureTimeoutError as error:
            raise unavailable("the database takes too long; try again") from error


def _sequence_of(connection: Connection, job_id: str) -> int:
    """Return the place of a job in the order of arrival. Raises JobNotFoundError."""
    row = connection.execute("SELECT sequence FROM jobs WHERE job_id = ANY(%s)", (storable([job_id]),)).fetchone()
    if row is None:
        raise job_not_found(job_id)
    return int(row[0])
