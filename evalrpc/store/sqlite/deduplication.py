"""Identical evaluations, of which one run may serve all: whose run a job would share, and which jobs share whose."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from evalrpc.store.base import ListedJob
from evalrpc.store.identical import latest_to_follow, readable_jobs
from evalrpc.v1 import jobs_pb2 as pb

_COMPLETED: Final = f"SELECT sequence, job FROM jobs WHERE cache_key = ? AND status = {pb.JOB_STATUS_COMPLETED}"  # noqa: S608
_THAT_RAN: Final = f"{_COMPLETED} AND cached_from IS NULL ORDER BY sequence DESC LIMIT 1"
_THAT_SHARES: Final = f"{_COMPLETED} AND cached_from IS NOT NULL ORDER BY cached_from, sequence LIMIT 1"
_LIVE: Final = "SELECT sequence, job FROM jobs WHERE cache_key = ? AND status = ? AND cached_from IS NULL"
_FOLLOWERS: Final = f"""
SELECT sequence, job FROM jobs WHERE cached_from = ? AND status = {pb.JOB_STATUS_QUEUED} ORDER BY priority DESC, sequence
"""  # noqa: S608
_FOLLOWED: Final = f"""
SELECT DISTINCT cached_from FROM jobs WHERE status = {pb.JOB_STATUS_QUEUED} AND cached_from IS NOT NULL
"""  # noqa: S608
_REFERRED_TO: Final = """
SELECT value FROM json_each(?)
WHERE EXISTS (SELECT 1 FROM jobs WHERE job_id = value) OR EXISTS (SELECT 1 FROM jobs WHERE cached_from = value)
"""


def find_completed(connection: sqlite3.Connection, cache_key: bytes) -> pb.JobInfo | None:
    """Return a COMPLETED job with this key: the latest that ran, or else one that shares the run of a job that was deleted."""
    for query in (_THAT_RAN, _THAT_SHARES):
        for _, job in _jobs(connection, query, cache_key):
            return job
    return None


def find_live(connection: sqlite3.Connection, cache_key: bytes, supersede_key: str = "") -> pb.JobInfo | None:
    """Return the latest job with this key that others may follow, once the queued ones with a supersede key are cancelled."""
    statuses = pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_QUEUED
    live = [job for status in statuses for job in _jobs(connection, _LIVE, cache_key, status)]
    return latest_to_follow(live, partial(followers, connection), supersede_key)


def followers(connection: sqlite3.Connection, source_id: str) -> Iterator[ListedJob]:
    """Yield the jobs that follow another one, in the order of service."""
    return _jobs(connection, _FOLLOWERS, source_id)


def followed_jobs(connection: sqlite3.Connection) -> set[str]:
    """Return the ids of the jobs that some job follows."""
    return {job_id for (job_id,) in connection.execute(_FOLLOWED)}


def referred_to(connection: sqlite3.Connection, job_ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are ids of jobs, or of deleted ones whose run some job shares."""
    return {job_id for (job_id,) in connection.execute(_REFERRED_TO, (json.dumps(list(job_ids)),))}


def _jobs(connection: sqlite3.Connection, query: str, *values: object) -> Iterator[ListedJob]:
    return readable_jobs(connection.execute(query, values).fetchall())
