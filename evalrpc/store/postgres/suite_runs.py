"""The rows of suite runs. What a run is made of stands there once; what its jobs have come to is read from their rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from psycopg import Connection

from evalrpc.jobs.lifecycle import Status
from evalrpc.store.base import ListedSuiteRun, SuiteSubmission, suite_run_not_found
from evalrpc.store.postgres.texts import storable
from evalrpc.store.rows import suite_run_of, suite_run_row
from evalrpc.store.tables import Requested
from evalrpc.v1.suites_pb2 import SuiteRun

_INSERT: Final = (
    "INSERT INTO suite_runs (suite_run_id, owner, request_id, fingerprint, run, sequence) VALUES (%s, %s, %s, %s, %s, %s)"
)
_REQUESTED: Final = "SELECT fingerprint, suite_run_id FROM suite_runs WHERE request_id = %s AND owner = %s"
_JOBS: Final = "SELECT job_id, status, coalesce(completed_ns, 0) FROM jobs WHERE suite_run_id = %s"
_FORGET_EMPTY: Final = """
DELETE FROM suite_runs WHERE suite_run_id = %(id)s AND NOT EXISTS (SELECT FROM jobs WHERE suite_run_id = %(id)s)
"""
_NEWEST: Final = """
SELECT sequence, suite_run_id FROM suite_runs WHERE sequence < %s AND suite_run_id BETWEEN %s AND %s {of_owner}
ORDER BY sequence DESC LIMIT 100
"""
_END: Final = 2**63 - 1
_KNOWN: Final = "SELECT suite_run_id FROM suite_runs WHERE suite_run_id = ANY(%s)"


def insert(connection: "Connection[Any]", submission: SuiteSubmission, sequence: int) -> None:
    """Add a suite run, whose first job has this sequence. Raises psycopg.Error."""
    connection.execute(_INSERT, suite_run_row(submission, sequence))


def requested(connection: "Connection[Any]", submission: SuiteSubmission) -> Requested | None:
    """Return what the same request_id has got from the same owner, if there is anything."""
    if not submission.request_id:
        return None
    row = connection.execute(_REQUESTED, (submission.request_id, submission.run.owner)).fetchone()
    return Requested(*row) if row else None


def read(
    connection: "Connection[Any]",
    suite_run_id: str,
    revision: int,
    cached_status: Callable[[str], Status | None] = lambda _: None,
) -> SuiteRun:
    """Return a suite run with the statuses of its jobs. To be called within one transaction. Raises SuiteRunNotFoundError.

    `cached_status` is that of a job in memory, as whoever reads the job gets it: a commit is in the database before.
    """
    row = connection.execute("SELECT run FROM suite_runs WHERE suite_run_id = %s", (suite_run_id,)).fetchone()
    if row is None:
        raise suite_run_not_found(suite_run_id)
    return suite_run_of(row[0], connection.execute(_JOBS, (suite_run_id,)), revision, cached_status)


def newest(
    connection: "Connection[Any]",
    prefix: str,
    before_sequence: int | None,
    owner: str | None,
    revision: int,
    cached_status: Callable[[str], Status | None],
) -> Iterator[ListedSuiteRun]:
    """Yield suite runs as `Store.list_suite_runs` does. To be called within one transaction."""
    before = _END if before_sequence is None else before_sequence
    of_owner = () if owner is None else (owner,)
    query = _NEWEST.format(of_owner="" if owner is None else "AND owner = %s")
    while rows := connection.execute(query, (before, prefix, f"{prefix}g", *of_owner)).fetchall():  # g: past all digits
        for before, suite_run_id in rows:
            yield ListedSuiteRun(before, read(connection, suite_run_id, revision, cached_status))


def known(connection: "Connection[Any]", suite_run_ids: Sequence[str], owner: str | None) -> set[str]:
    """Return those of the ids that are ids of suite runs, or of one owner's."""
    query, of_owner = (_KNOWN, ()) if owner is None else (f"{_KNOWN} AND owner = %s", (owner,))
    return {suite_run_id for (suite_run_id,) in connection.execute(query, (storable(suite_run_ids), *of_owner))}


def forget_if_empty(connection: "Connection[Any]", suite_run_id: str) -> None:
    """Remove a suite run of which no job is left. Raises psycopg.Error."""
    connection.execute(_FORGET_EMPTY, {"id": suite_run_id})
