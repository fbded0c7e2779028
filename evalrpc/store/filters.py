"""Jobs by a filter, newest first, without a look at most of those that don't match.

Every condition of a filter has an index that holds its jobs in the order of arrival. The search goes down all of them at once:
each tells its newest job at or below a place, and the lowest of these is the next place, since no newer job is in all of them.
Where all tell the same is a job. So it takes two steps per job found, and in between not many more than the rarest condition
has jobs. The worst case are common conditions that hardly ever meet: then a step gets past a few jobs only.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from evalrpc.v1.evaluation_service_pb2 import JobFilter

_END: Final = 2**63 - 1

# Every step leads to one other, so the rows come in the order of the walk. They come as they are asked for, so the walk ends
# where the page is full.
_WALK: Final = """
    WITH RECURSIVE walk (place, found) AS (
        VALUES (-1, ?)
        UNION ALL
        SELECT {place}, min({place}, {told}) FROM walk WHERE found >= ?
    )
    SELECT sequence, job FROM walk CROSS JOIN jobs ON sequence = found
    WHERE found = place AND created_ns >= ? AND created_ns < ?
    LIMIT ?
"""
_PLACE: Final = "found - (found = place)"  # just below a job; or where it is to be seen whether all tell the same

_Values = Sequence[str | int]


def find_jobs(
    connection: sqlite3.Connection, job_filter: JobFilter, before_sequence: int | None, limit: int
) -> list[tuple[int, bytes]]:
    """Return the newest jobs that the filter takes, each with its sequence. To be called within one transaction."""
    after_ns, before_ns, oldest, newest = 0, _END, 0, _END
    (setback_ns,) = connection.execute("SELECT ifnull(sum(setback_ns), 0) FROM clock_setbacks").fetchone()
    if job_filter.HasField("created_after"):
        after_ns = job_filter.created_after.ToNanoseconds()
        oldest = _first_created(connection, after_ns - setback_ns)
    if job_filter.HasField("created_before"):
        before_ns = job_filter.created_before.ToNanoseconds()
        newest = _first_created(connection, before_ns + setback_ns) - 1
    if before_sequence is not None:
        newest = min(newest, before_sequence - 1)
    told, values = zip(*(list(_conditions(job_filter)) or [(_told("jobs WHERE TRUE"), ())]), strict=True)
    query = _WALK.format(place=_PLACE, told=", ".join(told))
    return connection.execute(query, (newest, *chain(*values), oldest, after_ns, before_ns, limit)).fetchall()


def _conditions(job_filter: JobFilter) -> Iterator[tuple[str, _Values]]:
    """Yield for each condition the expression of what it tells, and the values in that."""
    for column, values in (
        ("jobs WHERE status", job_filter.statuses),
        ("jobs WHERE model", job_filter.models),
        ("jobs WHERE harness", job_filter.harnesses),
        ("job_tasks WHERE task", job_filter.tasks),
    ):
        if values:  # of which one suffices
            told = _told(f"{column} = column1")
            yield f"(SELECT max({told}) FROM (VALUES {', '.join(['(?)'] * len(values))}))", values  # noqa: S608
    for label in job_filter.labels.items():
        yield _told("job_labels WHERE label = ? AND value = ?"), label


def _told(index: str) -> str:
    return f"(SELECT max(sequence) FROM {index} AND sequence <= {_PLACE})"  # noqa: S608


def _first_created(connection: sqlite3.Connection, time_ns: int) -> int:
    """Return the sequence from which on jobs were created at a time or later, if times grow with the sequences.

    They do but where the clock was set back; whoever leaves room for all of that gets a bound that holds.
    """
    (last,) = connection.execute("SELECT ifnull(max(sequence), 0) FROM jobs").fetchone()

    def created_ns(sequence: int) -> int:
        query = "SELECT created_ns FROM jobs WHERE sequence >= ? ORDER BY sequence LIMIT 1"
        return int(connection.execute(query, (sequence,)).fetchone()[0])

    return 1 + bisect_left(range(1, last + 1), time_ns, key=created_ns)
