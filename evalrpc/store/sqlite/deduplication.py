"""Identical evaluations, of which one job may serve all: which job has which key, and which request_id was answered with it."""

import sqlite3
from typing import Final

from evalrpc.store.base import ListedJob, StoredJob, Submission
from evalrpc.v1 import jobs_pb2 as pb

_IDENTICAL: Final = """
SELECT sequence, status, job FROM twins JOIN jobs USING (sequence) WHERE cache_key = ?1 AND status IN (?2, ?3, ?4)
ORDER BY status = ?2 DESC, sequence DESC
"""


def find_identical(connection: sqlite3.Connection, cache_key: bytes) -> ListedJob | None:
    """See Store.find_identical."""
    statuses = (pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING)
    for row in connection.execute(_IDENTICAL, (cache_key, *statuses)):
        job = StoredJob(*row).parse()
        if job.status == pb.JOB_STATUS_COMPLETED or not job.HasField("cancel_requested_at"):
            job.cached_from = job.job_id
            return ListedJob(row[0], job)
    return None


def add_cache_key(connection: sqlite3.Connection, submission: Submission, sequence: int) -> None:
    """Note the key of a new job."""
    connection.execute("INSERT INTO twins VALUES (?, ?)", (submission.cache_key, sequence))


def add_request(connection: sqlite3.Connection, submission: Submission, sequence: int) -> None:
    """Note with which job a submission was answered."""
    row = (submission.request_id, submission.fingerprint, sequence)
    connection.execute("INSERT INTO joined_requests VALUES (?, ?, ?)", row)


def forget(connection: sqlite3.Connection, sequence: int) -> None:
    """Drop all that is noted of a job that is deleted."""
    for table in ("twins", "joined_requests"):
        connection.execute(f"DELETE FROM {table} WHERE sequence = ?", (sequence,))  # noqa: S608
