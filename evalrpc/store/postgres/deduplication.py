"""Identical evaluations, of which one run may serve all: whose run a job would share, and which jobs share whose."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

from psycopg import Connection

from evalrpc.store.base import ListedJob
from evalrpc.store.identical import latest_to_follow, readable_jobs
from evalrpc.v1 import jobs_pb2 as pb

_COMPLETED: Final = f"SELECT sequence, job FROM jobs WHERE cache_key = %s AND status = {pb.JOB_STATUS_COMPLETED}"
_THAT_RAN: Final = f"{_COMPLETED} AND cached_from IS NULL ORDER BY sequence DESC LIMIT 1"
_THAT_SHARES: Final = f"{_COMPLETED} AND cached_from IS NOT NULL ORDER BY cached_from, sequence LIMIT 1"
_LIVE: Final = "SELECT sequence, job FROM jobs WHERE cache_key = %s AND status = ANY(%s) AND cached_from IS NULL"
_FOLLOWERS: Final = f"""
SELECT sequence, job FROM jobs WHERE cached_from = %s AND status = {pb.JOB_STATUS_QUEUED} ORDER BY priority DESC, sequence
"""
_FOLLOWED: Final = f"""
SELECT DISTINCT cached_from FROM jobs WHERE status = {pb.JOB_STATUS_QUEUED} AND cached_from IS NOT NULL
"""
_REFERRED_TO: Final = """
SELECT id FROM unnest(%s::text[]) AS id
WHERE EXISTS (SELECT FROM jobs WHERE job_id = id) OR EXISTS (SELECT FROM jobs WHERE cached_from = id)
"""


def find_completed(connection: "Connection[Any]", cache_key: bytes) -> pb.JobInfo | None:
    """Return a COMPLETED job with this key: the latest that ran, or else one that shares the run of a job that was deleted."""
    for query in (_THAT_RAN, _THAT_SHARES):
        for _, job in _jobs(connection, query, cache_key):
            return job
    return None


def find_live(connection: "Connection[Any]", cache_key: bytes, supersede_key: str = "") -> pb.JobInfo | None:
    """Return the latest job with this key that others may follow, once the queued ones with a supersede key are cancelled."""
    live = list(_jobs(connection, _LIVE, cache_key, [pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_QUEUED]))
    return latest_to_follow(live, partial(followers, connection), supersede_key)


def followers(connection: "Connection[Any]", source_id: str) -> Iterator[ListedJob]:
    """Yield the jobs that follow another one, in the order of service."""
    return _jobs(connection, _FOLLOWERS, source_id)


def followed_jobs(connection: "Connection[Any]") -> set[str]:
    """Return the ids of the jobs that some job follows."""
    return {job_id for (job_id,) in connection.execute(_FOLLOWED)}


def referred_to(connection: "Connection[Any]", job_ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are ids of jobs, or of deleted ones whose run some job shares."""
    return {job_id for (job_id,) in connection.execute(_REFERRED_TO, (list(job_ids),))}


def _jobs(connection: "Connection[Any]", query: str, *values: object) -> Iterator[ListedJob]:
    return readable_jobs(connection.execute(query, values).fetchall())
