"""Jobs by a filter, newest first, without a look at most of those that don't match.

Every condition of a filter has an index that holds its jobs in the order of arrival. The search goes down all of them at once:
each gives its newest job at or below a place, and the lowest of these is the next place, since no newer job is in all of them.
Where all give the same is a job. So it takes two steps per job found, and in between not many more than the rarest condition
has jobs. What a job must not have, such as a label, leads nowhere, so it is looked up where a job was found. Common conditions
that hardly ever meet would take many steps that get past a few jobs only. So the walk ends after some hundreds, and the search
goes on from there with sets of jobs in memory (`bitmap_index.py`).

Jobs whose id begins with something are so few that they are read one by one.
"""

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from evalrpc.jobs.filters import JobMatcher, canonical_prefix
from evalrpc.jobs.label_selectors import Requirement, parse_selector
from evalrpc.store.base import parse_job
from evalrpc.store.room import Room
from evalrpc.store.sqlite.bitmap_index import JOB_ROWS, LABEL_ROWS, LABEL_VALUE_ROWS, STATUS_ROWS, BitmapIndex, Condition
from evalrpc.v1.jobs_pb2 import JobFilter

_END: Final = 2**63 - 1
_MAX_STEPS: Final = 500
_MAX_ARGUMENTS: Final = 100
"""Of SQLite's `min`, which takes 127."""

# Every step leads to one other, so the rows come in the order of the walk. They come as they are asked for, so the walk ends
# where the page is full. Its last step comes too where it has to give up, found or not.
_WALK: Final = """
    WITH RECURSIVE walk (place, found, steps) AS (
        VALUES (-1, ?, 0)
        UNION ALL
        SELECT {place}, {lowest}, steps + 1 FROM walk WHERE found >= ? AND steps < ?
    )
    SELECT sequence, job, found = place AND created_ns >= ? AND created_ns < ?{lacking} AS matches, steps
    FROM walk CROSS JOIN jobs ON sequence = found
    WHERE matches OR steps = ?
    LIMIT ?
"""
_PLACE: Final = "found - (found = place)"  # just below a job; or where it is to be seen whether all give the same

_ROWS: Final = """
    SELECT sequence, job FROM json_each(?) CROSS JOIN jobs ON sequence = value
    WHERE created_ns >= ? AND created_ns < ? AND (? OR status IN (SELECT value FROM json_each(?))){lacking}
    LIMIT ?
"""

# The `+` keeps SQLite from going through all jobs in the order of arrival instead of sorting these few.
_WITH_PREFIX: Final = "SELECT sequence FROM jobs WHERE job_id >= ? AND job_id < ? AND +sequence < ? ORDER BY +sequence DESC"


class _Bounds(NamedTuple):
    """What all jobs of a page keep to: sequences from `oldest` to `newest`, times from `after_ns` until before `before_ns`."""

    oldest: int
    newest: int
    after_ns: int
    before_ns: int


class _Lacking(NamedTuple):
    """What a row of `jobs` is looked up for: that the job has none of the labels that it must not have."""

    expression: str
    parameters: Sequence[str]

    @classmethod
    def of(cls, requirements: Sequence[Requirement]) -> "_Lacking":
        expression, parameters = "", list[str]()
        for key, values, negated in requirements:
            if negated:
                any_of = f" AND value IN ({', '.join('?' * len(values))})" if values else ""
                row = f"{LABEL_ROWS.format('?')} AND sequence = jobs.sequence{any_of}"
                expression += f" AND NOT EXISTS (SELECT 1 FROM {row})"  # noqa: S608
                parameters += (key, *sorted(values or ()))
        return cls(expression, parameters)


def find_jobs(
    connection: sqlite3.Connection,
    bitmaps: BitmapIndex,
    job_filter: JobFilter,
    before_sequence: int | None,
    room: Room,
    owner: str | None = None,
) -> list[tuple[int, bytes]]:
    """Return the newest jobs that the filter takes, or those of one owner among them, each with its sequence. To be called
    within one transaction."""
    if job_filter.job_id_prefix:
        return room.take(_with_prefix(connection, JobMatcher(job_filter, owner), job_filter, before_sequence), 1)
    requirements = parse_selector(job_filter.label_selector)
    conditions = list(_conditions(job_filter, requirements, owner))
    lacking = _Lacking.of(requirements)
    bounds = _bounds(connection, job_filter, before_sequence)
    limit = room.left
    jobs, newest = _walk(connection, conditions, lacking, bounds, room)
    sequences = bitmaps.intersect(connection, conditions, bounds.oldest, newest)
    query = _ROWS.format(lacking=lacking.expression)
    times_and_statuses = (bounds.after_ns, bounds.before_ns, not job_filter.statuses, json.dumps(list(job_filter.statuses)))
    while room.left and (some := list(islice(sequences, limit))):
        parameters = (json.dumps(some), *times_and_statuses, *lacking.parameters, room.left)
        with closing(connection.execute(query, parameters)) as rows:
            jobs += room.take(rows, 1)
    return jobs


def _with_prefix(
    connection: sqlite3.Connection, matcher: JobMatcher, job_filter: JobFilter, before_sequence: int | None
) -> Iterator[tuple[int, bytes]]:
    """Yield the newest jobs first."""
    prefix = canonical_prefix(job_filter.job_id_prefix)
    before = _END if before_sequence is None else before_sequence
    for sequence in connection.execute(_WITH_PREFIX, (prefix, f"{prefix}g", before)).fetchall():  # g: past all digits
        (job,) = connection.execute("SELECT job FROM jobs WHERE sequence = ?", sequence).fetchone()
        if matcher.matches(parse_job(job)):
            yield *sequence, job


def _bounds(connection: sqlite3.Connection, job_filter: JobFilter, before_sequence: int | None) -> _Bounds:
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
    return _Bounds(oldest, newest, after_ns, before_ns)


def _walk(
    connection: sqlite3.Connection, conditions: Sequence[Condition], lacking: _Lacking, bounds: _Bounds, room: Room
) -> tuple[list[tuple[int, bytes]], int]:
    """Return the jobs that were found, and the sequence from which on downward there may be more; -1: there are none."""
    wanted = [condition for condition in conditions if not condition.negated]
    query = _WALK.format(place=_PLACE, lowest=_lowest(wanted), lacking=lacking.expression)
    values = chain.from_iterable(chain.from_iterable(condition.values for condition in wanted))
    bound = (bounds.oldest, _MAX_STEPS, bounds.after_ns, bounds.before_ns, *lacking.parameters, _MAX_STEPS, room.left)
    rows: list[Any] = []  # the last one

    def matching(found: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        for row in found:
            rows[:] = [row]
            if row[2]:
                yield row[:2]

    with closing(connection.execute(query, (bounds.newest, *values, *bound))) as found:
        jobs = room.take(matching(found), 1)
    if not rows:
        return jobs, -1
    ((last, _, matches, steps),) = rows
    return jobs, last - matches if steps == _MAX_STEPS else -1


def _conditions(job_filter: JobFilter, requirements: Sequence[Requirement], owner: str | None) -> Iterator[Condition]:
    for rows, values in (
        ("jobs WHERE owner = {}", () if owner is None else (owner,)),
        ("jobs WHERE owner = {}", job_filter.owners),
        ("jobs WHERE suite_run_id = {}", list(map(str.lower, job_filter.suite_run_ids))),
        ("jobs WHERE model = {}", job_filter.models),
        ("jobs WHERE harness = {}", job_filter.harnesses),
        ("job_tasks WHERE task = {}", job_filter.tasks),
    ):
        if values:
            yield Condition(rows, [(value,) for value in values])
    for label in job_filter.labels.items():
        yield Condition(LABEL_VALUE_ROWS, [label])
    for key, wanted, negated in requirements:
        if wanted is None:
            yield Condition(LABEL_ROWS, [(key,)], negated)
        else:
            yield Condition(LABEL_VALUE_ROWS, [(key, value) for value in sorted(wanted)], negated)
    if job_filter.statuses:  # last, since its sets are not always kept
        yield Condition(STATUS_ROWS, [(status,) for status in job_filter.statuses])


def _lowest(wanted: Sequence[Condition]) -> str:
    """Return the expression of the next place: the lowest of the conditions' newest jobs."""
    newest = [_newest_of(condition) for condition in wanted] or [_newest(JOB_ROWS)]
    lowest = _PLACE
    for begin in range(0, len(newest), _MAX_ARGUMENTS):
        lowest = f"min({lowest}, {', '.join(newest[begin : begin + _MAX_ARGUMENTS])})"
    return lowest


def _newest_of(condition: Condition) -> str:
    """Return the expression of a condition's newest job at or below the place."""
    if len(condition.values) == 1:
        return _newest(condition.rows.format("?", "?"))
    newest = _newest(condition.rows.format("column1", "column2"))
    rows = ", ".join([f"({', '.join('?' * len(condition.values[0]))})"] * len(condition.values))
    return f"(SELECT max({newest}) FROM (VALUES {rows}))"  # noqa: S608


def _newest(rows: str) -> str:
    return f"(SELECT max(sequence) FROM {rows} AND sequence <= {_PLACE})"  # noqa: S608


def _first_created(connection: sqlite3.Connection, time_ns: int) -> int:
    """Return the sequence from which on jobs were created at a time or later, if times grow with the sequences.

    They do but where the clock was set back; whoever leaves room for all of that gets a bound that holds.
    """
    (last,) = connection.execute("SELECT ifnull(max(sequence), 0) FROM jobs").fetchone()

    def created_ns(sequence: int) -> int:
        query = "SELECT created_ns FROM jobs WHERE sequence >= ? ORDER BY sequence LIMIT 1"
        return int(connection.execute(query, (sequence,)).fetchone()[0])

    return 1 + bisect_left(range(1, last + 1), time_ns, key=created_ns)
