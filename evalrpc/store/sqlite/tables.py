"""The tables of the SQLite database, as a transaction uses them."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

from evalrpc.jobs.holds import Holds, holds_named
from evalrpc.store.base import ListedJob, StoredJob, SuiteSubmission
from evalrpc.store.rows import Rows
from evalrpc.store.sqlite import deduplication, journal, run_uids, suite_runs
from evalrpc.store.sqlite.labels import relabel
from evalrpc.store.sqlite.rows import write_rows
from evalrpc.store.tables import Requested
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteRun


class SqliteTables:
    """The Tables of the connection that writes. What is raised by the database is a sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def write(self, rows: Rows) -> None:
        """See Tables.write."""
        write_rows(self.connection, rows)

    def stored_job(self, job_id: str) -> StoredJob | None:
        """See Tables.stored_job."""
        query = "SELECT sequence, status, job, owner FROM jobs WHERE job_id = ?"
        row = self.connection.execute(query, (job_id,)).fetchone()
        return row and StoredJob(*row)

    def requested_job(self, request_id: str, owner: str) -> Requested | None:
        """See Tables.requested_job."""
        query = "SELECT fingerprint, job_id FROM jobs WHERE request_id = ? AND owner = ?"
        row = self.connection.execute(query, (request_id, owner)).fetchone()
        return row and Requested(*row)

    def queued_with_key(self, supersede_key: str, owner: str) -> Sequence[str]:
        """See Tables.queued_with_key."""
        query = "SELECT job_id FROM jobs WHERE supersede_key = ? AND owner = ? AND status = ?"
        rows = self.connection.execute(query, (supersede_key, owner, pb.JOB_STATUS_QUEUED))
        return [job_id for (job_id,) in rows]

    def find_completed(self, cache_key: bytes) -> pb.JobInfo | None:
        """See Tables.find_completed."""
        return deduplication.find_completed(self.connection, cache_key)

    def find_live(self, cache_key: bytes) -> pb.JobInfo | None:
        """See Tables.find_live."""
        return deduplication.find_live(self.connection, cache_key)

    def followers(self, source_id: str) -> Iterator[ListedJob]:
        """See Tables.followers."""
        return deduplication.followers(self.connection, source_id)

    def relabel(self, sequence: int, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """See Tables.relabel."""
        relabel(self.connection, sequence, before, after)

    def delete_job(self, sequence: int, job: pb.JobInfo) -> None:
        """See Tables.delete_job."""
        self.connection.execute("DELETE FROM jobs WHERE sequence = ?", (sequence,))
        for task in job.request.tasks:
            self.connection.execute("DELETE FROM job_tasks WHERE task = ? AND sequence = ?", (task, sequence))
        for label in job.labels:
            self.connection.execute("DELETE FROM job_labels WHERE label = ? AND sequence = ?", (label, sequence))
        journal.blank_events(self.connection, job.job_id, sequence)
        if job.suite_run_id:
            suite_runs.forget_if_empty(self.connection, job.suite_run_id)

    def add_removals(self, job_id: str, paths: Iterable[str]) -> None:
        """See Tables.add_removals."""
        rows = [(path, job_id) for path in paths]
        self.connection.executemany("INSERT OR REPLACE INTO removals (path, job_id) VALUES (?, ?)", rows)

    def referred_to(self, job_ids: Sequence[str]) -> set[str]:
        """See Tables.referred_to."""
        return deduplication.referred_to(self.connection, job_ids)

    def insert_suite_run(self, submission: SuiteSubmission, sequence: int) -> None:
        """See Tables.insert_suite_run."""
        suite_runs.insert(self.connection, submission, sequence)

    def requested_suite_run(self, submission: SuiteSubmission) -> Requested | None:
        """See Tables.requested_suite_run."""
        return suite_runs.requested(self.connection, submission)

    def suite_run(self, suite_run_id: str, revision: int) -> SuiteRun:
        """See Tables.suite_run."""
        return suite_runs.read(self.connection, suite_run_id, revision)

    def compact(self, head: int, max_events: int, older_than_ns: int, max_bytes: int, end_bytes: int) -> int | None:
        """See Tables.compact."""
        return journal.compact(self.connection, head, max_events, older_than_ns, max_bytes, end_bytes)

    def oldest_revision(self) -> int:
        """See Tables.oldest_revision."""
        return journal.oldest_revision(self.connection)

    def forget_removal(self, path: str) -> None:
        """See Tables.forget_removal."""
        self.connection.execute("DELETE FROM removals WHERE path = ?", (path,))

    def holds(self) -> Holds:
        """Return what is held back. Raises sqlite3.Error."""
        return holds_named(name for (name,) in self.connection.execute("SELECT name FROM holds"))

    def set_hold(self, name: str, *, is_held: bool) -> Holds:
        """See Tables.set_hold."""
        self.connection.execute("DELETE FROM holds WHERE name = ?", (name,))
        if is_held:
            self.connection.execute("INSERT INTO holds VALUES (?)", (name,))
        return self.holds()

    def forget_uses(self, ended_before_ns: int) -> None:
        """See Tables.forget_uses."""
        self.connection.execute("DELETE FROM attempt_uses WHERE ended_ns < ?", (ended_before_ns,))

    def assign_run_uid(self, owner: str, uids: range) -> int:
        """See Tables.assign_run_uid."""
        return run_uids.assign(self.connection, owner, uids)

    def write_unchanged(self) -> None:
        """See Tables.write_unchanged."""
        self.connection.execute("UPDATE compaction SET oldest_revision = oldest_revision")
