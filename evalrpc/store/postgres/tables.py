"""The tables of the PostgreSQL database, as a transaction uses them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from evalrpc.errors import RunFailedError
from evalrpc.jobs.holds import Holds, holds_named
from evalrpc.store.base import ListedJob, StoredJob, Submission, SuiteSubmission
from evalrpc.store.postgres import deduplication, journal, suite_runs
from evalrpc.store.postgres.connecting import Connection
from evalrpc.store.postgres.rows import write_rows
from evalrpc.store.rows import Rows
from evalrpc.store.tables import Requested
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteRun

_REQUESTED = """
SELECT request_id, owner, fingerprint, job_id FROM jobs
JOIN unnest(%b::text[], %b::text[]) AS asked (request_id, owner) USING (request_id, owner)
"""
_KEYS = "SELECT key FROM unnest(%b::bytea[]) AS key WHERE EXISTS (SELECT FROM jobs WHERE cache_key = key)"


class PostgresTables:
    """The Tables of the connection that writes. What is raised by the database is a psycopg.Error.

    What the submissions of a commit ask for is read with one statement for all: nearly all of them ask for what is not there.
    """

    def __init__(self, connection: Connection, submissions: Sequence[Submission]) -> None:
        self._connection = connection
        self._requested: dict[tuple[str, str], Requested | None] = {}
        self._absent_keys: set[bytes] = set()
        requests = sorted({(each.request_id, each.job.owner) for each in submissions if each.request_id})
        keys = {each.cache_key for each in submissions if each.cache_key}
        if requests:
            self._requested = dict.fromkeys(requests)
            for request_id, owner, *found in connection.execute(_REQUESTED, list(map(list, zip(*requests, strict=True)))):
                self._requested[request_id, owner] = Requested(*found)
        if keys:
            self._absent_keys = keys - {key for (key,) in connection.execute(_KEYS, (list(keys),))}

    def write(self, rows: Rows) -> None:
        """See Tables.write."""
        self._absent_keys -= {new.submission.cache_key for new in rows.new_jobs()}
        with self._connection.pipeline():
            write_rows(self._connection, rows)

    def stored_job(self, job_id: str) -> StoredJob | None:
        """See Tables.stored_job."""
        query = "SELECT sequence, status, job, owner FROM jobs WHERE job_id = %s"
        row = self._connection.execute(query, (job_id,)).fetchone()
        return StoredJob(*row) if row else None

    def requested_job(self, request_id: str, owner: str) -> Requested | None:
        """See Tables.requested_job."""
        if (request_id, owner) in self._requested:
            return self._requested[request_id, owner]
        query = "SELECT fingerprint, job_id FROM jobs WHERE request_id = %s AND owner = %s"
        row = self._connection.execute(query, (request_id, owner)).fetchone()
        return Requested(*row) if row else None

    def queued_with_key(self, supersede_key: str, owner: str) -> Sequence[str]:
        """See Tables.queued_with_key."""
        query = "SELECT job_id FROM jobs WHERE supersede_key = %s AND owner = %s AND status = %s ORDER BY sequence"
        rows = self._connection.execute(query, (supersede_key, owner, pb.JOB_STATUS_QUEUED))
        return [job_id for (job_id,) in rows]

    def find_completed(self, cache_key: bytes) -> pb.JobInfo | None:
        """See Tables.find_completed."""
        return None if cache_key in self._absent_keys else deduplication.find_completed(self._connection, cache_key)

    def find_live(self, cache_key: bytes) -> pb.JobInfo | None:
        """See Tables.find_live."""
        return None if cache_key in self._absent_keys else deduplication.find_live(self._connection, cache_key)

    def followers(self, source_id: str) -> Iterator[ListedJob]:
        """See Tables.followers."""
        return deduplication.followers(self._connection, source_id)

    def relabel(self, sequence: int, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """See Tables.relabel."""
        gone = [label for label in before if label not in after]
        new = {label: value for label, value in after.items() if before.get(label) != value or label not in before}
        if gone:
            query = "DELETE FROM job_labels WHERE label = ANY(%s) AND sequence = %s"
            self._connection.execute(query, (gone, sequence))
        if new:
            query = (
                "INSERT INTO job_labels (label, sequence, value) SELECT label, %s, value"
                " FROM unnest(%s::text[], %s::text[]) AS new (label, value)"
                " ON CONFLICT (label, sequence) DO UPDATE SET value = EXCLUDED.value"
            )
            self._connection.execute(query, (sequence, list(new), list(new.values())))

    def delete_job(self, sequence: int, job: pb.JobInfo) -> None:
        """See Tables.delete_job."""
        with self._connection.pipeline():
            self._connection.execute("DELETE FROM jobs WHERE sequence = %s", (sequence,))
            query = "DELETE FROM job_tasks WHERE task = ANY(%s) AND sequence = %s"
            self._connection.execute(query, (list(job.request.tasks), sequence))
            query = "DELETE FROM job_labels WHERE label = ANY(%s) AND sequence = %s"
            self._connection.execute(query, (list(job.labels), sequence))
        journal.blank_events(self._connection, job.job_id, sequence)
        if job.suite_run_id:
            suite_runs.forget_if_empty(self._connection, job.suite_run_id)

    def add_removals(self, job_id: str, paths: Iterable[str]) -> None:
        """See Tables.add_removals."""
        query = (
            "INSERT INTO removals (path, job_id) SELECT path, %s FROM unnest(%s::text[]) AS path"
            " ON CONFLICT (path) DO UPDATE SET job_id = EXCLUDED.job_id"
        )
        if folders := list(paths):
            self._connection.execute(query, (job_id, folders))

    def referred_to(self, job_ids: Sequence[str]) -> set[str]:
        """See Tables.referred_to."""
        return deduplication.referred_to(self._connection, job_ids)

    def insert_suite_run(self, submission: SuiteSubmission, sequence: int) -> None:
        """See Tables.insert_suite_run."""
        suite_runs.insert(self._connection, submission, sequence)

    def requested_suite_run(self, submission: SuiteSubmission) -> Requested | None:
        """See Tables.requested_suite_run."""
        return suite_runs.requested(self._connection, submission)

    def suite_run(self, suite_run_id: str, revision: int) -> SuiteRun:
        """See Tables.suite_run."""
        return suite_runs.read(self._connection, suite_run_id, revision)

    def compact(self, head: int, max_events: int, older_than_ns: int, max_bytes: int, end_bytes: int) -> int | None:
        """See Tables.compact."""
        return journal.compact(self._connection, head, max_events, older_than_ns, max_bytes, end_bytes)

    def oldest_revision(self) -> int:
        """See Tables.oldest_revision."""
        return journal.oldest_revision(self._connection)

    def forget_removal(self, path: str) -> None:
        """See Tables.forget_removal."""
        self._connection.execute("DELETE FROM removals WHERE path = %s", (path,))

    def set_hold(self, name: str, *, is_held: bool) -> Holds:
        """See Tables.set_hold."""
        change = "array_append(array_remove(holds, %s), %s)" if is_held else "array_remove(holds, %s)"
        names = (name, name) if is_held else (name,)
        (row,) = self._connection.execute(f"UPDATE head SET holds = {change} RETURNING holds", names).fetchall()
        return holds_named(row[0])

    def forget_uses(self, ended_before_ns: int) -> None:
        """See Tables.forget_uses."""
        self._connection.execute("DELETE FROM attempt_uses WHERE ended_ns < %s", (ended_before_ns,))

    def assign_run_uid(self, owner: str, uids: range) -> int:
        """See Tables.assign_run_uid."""
        taken = dict(self._connection.execute("SELECT uid, owner FROM run_uids").fetchall())
        own = (uid for uid in taken if taken[uid] == owner and uid in uids)
        free = (uid for uid in uids if uid not in taken)
        uid = next(own, None) or next(free, None)
        if uid is None:
            raise RunFailedError(
                "START_FAILED", f"all {len(uids)} accounts for runs have been given away (setting run_as_uids)"
            )
        self._connection.execute("INSERT INTO run_uids VALUES (%s, %s) ON CONFLICT DO NOTHING", (uid, owner))
        return uid

    def write_unchanged(self) -> None:
        """See Tables.write_unchanged."""
        self._connection.execute("UPDATE head SET revision = revision")
