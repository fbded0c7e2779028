"""The rows of suite runs. What a run is made of stands there once; what its jobs have come to is read from their rows."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Final

from evalrpc.jobs.lifecycle import Status
from evalrpc.store.base import ListedSuiteRun, SuiteSubmission, suite_run_not_found
from evalrpc.store.rows import suite_run_of, suite_run_row
from evalrpc.store.tables import Requested
from evalrpc.v1.suites_pb2 import SuiteRun

_INSERT: Final = (
    "INSERT INTO suite_runs (suite_run_id, owner, request_id, fingerprint, run, sequence) VALUES (?, ?, ?, ?, ?, ?)"
)
_REQUESTED: Final = "SELECT fingerprint, suite_run_id FROM suite_runs WHERE request_id = ? AND owner = ?"
_JOBS: Final = "SELECT job_id, status, ifnull(completed_ns, 0) FROM jobs WHERE suite_run_id = ?"
_FORGET_EMPTY: Final = """
DELETE FROM suite_runs WHERE suite_run_id = ?1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE suite_run_id = ?1)
"""

_NEWEST: Final = """
SELECT sequence, suite_run_id FROM suite_runs WHERE sequence < ? AND suite_run_id BETWEEN ? AND ? {of_owner}
ORDER BY sequence DESC
"""
_END: Final = 2**63 - 1

# As for jobs, only indexes are looked at, whoever owns the runs.
_KNOWN: Final = "SELECT suite_run_id FROM suite_runs WHERE suite_run_id IN (SELECT value FROM json_each(?))"
_KNOWN_OF_OWNER: Final = """
SELECT suite_run_id FROM suite_runs INDEXED BY suite_runs_by_owner
WHERE owner = ? AND suite_run_id IN (SELECT value FROM json_each(?))
"""


def insert(connection: sqlite3.Connection, submission: SuiteSubmission, sequence: int) -> None:
    """Add a suite run, whose first job has this sequence. Raises sqlite3.Error."""
    connection.execute(_INSERT, suite_run_row(submission, sequence))


def requested(connection: sqlite3.Connection, submission: SuiteSubmission) -> Requested | None:
    """Return what the same request_id has got from the same owner, if there is anything."""
    if not submission.request_id:
        return None
    row = connection.execute(_REQUESTED, (submission.request_id, submission.run.owner)).fetchone()
    return row and Requested(*row)


def read(
    connection: sqlite3.Connection,
    suite_run_id: str,
    revision: int,
    cached_status: Callable[[str], Status | None] = lambda _: None,
) -> SuiteRun:
    """Return a suite run with the statuses of its jobs. To be called within one transaction. Raises SuiteRunNotFoundError.

    `cached_status` is that of a job in memory, as whoever reads the job gets it: a commit is in the database before.
    """
    row = connection.execute("SELECT run FROM suite_runs WHERE suite_run_id = ?", (suite_run_id,)).fetchone()
    if row is None:
        raise suite_run_not_found(suite_run_id)
    return suite_run_of(row[0], connection.execute(_JOBS, (suite_run_id,)), revision, cached_status)


def newest(
    connection: sqlite3.Connection,
    prefix: str,
    before_sequence: int | None,
    owner: str | None,
    revision: int,
    cached_status: Callable[[str], Status | None],
) -> Iterator[ListedSuiteRun]:
    """Yield suite runs as `Store.list_suite_runs` does. To be called within one transaction."""
    before = _END if before_sequence is None else before_sequence
    of_owner = () if owner is None else (owner,)
    query = _NEWEST.format(of_owner="" if owner is None else "AND owner = ?")
    with closing(connection.execute(query, (before, prefix, f"{prefix}g", *of_owner))) as rows:  # g: past all digits
        for sequence, suite_run_id in rows:
            yield ListedSuiteRun(sequence, read(connection, suite_run_id, revision, cached_status))


def known(connection: sqlite3.Connection, suite_run_ids: Sequence[str], owner: str | None) -> set[str]:
    """Return those of the ids that are ids of suite runs, or of one owner's."""
    ids = json.dumps(list(suite_run_ids))
    rows = connection.execute(_KNOWN, (ids,)) if owner is None else connection.execute(_KNOWN_OF_OWNER, (owner, ids))
    return {suite_run_id for (suite_run_id,) in rows}


def forget_if_empty(connection: sqlite3.Connection, suite_run_id: str) -> None:
    """Remove a suite run of which no job is left. Raises sqlite3.Error."""
    connection.execute(_FORGET_EMPTY, (suite_run_id,))
