"""Sets of jobs in memory, to get past common conditions that hardly ever meet.

A set has the jobs with one value, of one block of sequences, as the bits of an int. It is read from that part of the value's
index, and kept only when no job can come into it any more: sequences are given in the order of the commits, so a block is
closed once there is a job past its end; and statuses stay once all jobs of the block are terminal. Labels may change later, and
each change is counted with its block (`labels.py`), so a set of a label is kept for one count, and read anew for the next. So
no set is ever brought up to date, and the writer knows nothing of them. What is deleted later stays in them.

Threads: readers share the sets, so one may meet a set that was read from a later state than its own snapshot. What that lacks
was deleted, or got another status, while the call was under way, and may be missing from the answer. What it has too much, and
where the opposite of a condition is asked for, what it lacks, is for the caller to find out: it looks up the rows, their
statuses and what they must not have in its snapshot.
"""

import sqlite3
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Final, NamedTuple

from evalrpc.jobs.lifecycle import LIVE

_BLOCK: Final = 16_384
_ENTRY_BYTES: Final = 400
"""What a kept set takes beside its own bytes and those of its value, rounded up."""

Value = tuple[str | int, ...]

JOB_ROWS: Final = "jobs WHERE TRUE"
STATUS_ROWS: Final = "jobs WHERE status = {}"
LABEL_ROWS: Final = "job_labels WHERE label = {}"
LABEL_VALUE_ROWS: Final = "job_labels WHERE label = {} AND value = {}"

_LABELS: Final = (LABEL_ROWS, LABEL_VALUE_ROWS)


class Condition(NamedTuple):
    """A condition of a filter. An index holds the jobs of each value in the order of arrival."""

    rows: str
    """Those of a value: the table, and what it is searched for, with a `{}` for each part of the value."""
    values: Sequence[Value]
    """Of which one suffices."""
    negated: bool = False
    """Whether the job must have none of the values instead."""


def block_of(sequence: int) -> int:
    """Return the block that a job lies in."""
    return sequence // _BLOCK


class _Key(NamedTuple):
    """What a set is kept under."""

    rows: str
    value: Value
    block: int
    label_changes: int
    """Of the block, at the time of reading; 0 where labels don't matter."""


class BitmapIndex:
    """The sets that were used last, up to a number of bytes. The lock is held for a few lines only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._bitmaps: OrderedDict[_Key, int] = OrderedDict()
        self._lock = threading.Lock()

    def intersect(
        self, connection: sqlite3.Connection, conditions: Sequence[Condition], oldest: int, newest: int
    ) -> Iterator[int]:
        """Yield the sequences from `newest` down to `oldest` that meet all conditions; among them may be some that don't any
        more, or not yet. To be used up within one transaction."""
        first, last = connection.execute(
            "SELECT ifnull((SELECT min(sequence) FROM jobs), 0), ifnull((SELECT max(sequence) FROM jobs), -1)"
        ).fetchone()
        oldest, newest = max(oldest, first), min(newest, last)
        label_changes = _label_changes(connection, block_of(oldest), block_of(newest)) if _any_of_labels(conditions) else {}
        is_narrowed = not all(condition.negated for condition in conditions)
        for block in range(block_of(newest), block_of(oldest) - 1, -1):
            begin = block * _BLOCK
            met = (1 << min(_BLOCK, newest + 1 - begin)) - 1
            for rows, values, negated in conditions:
                if met:
                    changes = label_changes.get(block, 0) if rows in _LABELS else 0
                    keys = (_Key(rows, value, block, changes) for value in values)
                    jobs = reduce(or_, (self._set(connection, key, last) for key in keys))
                    met &= ~jobs if negated else jobs
            if met and not is_narrowed and not _has_jobs(connection, block):
                continue
            while met:
                highest = met.bit_length() - 1
                if begin + highest < oldest:
                    return
                yield begin + highest
                met ^= 1 << highest

    def _set(self, connection: sqlite3.Connection, key: _Key, last: int) -> int:
        with self._lock:
            if key in self._bitmaps:
                self._bitmaps.move_to_end(key)
                return self._bitmaps[key]
        jobs = _scan(connection, key)
        is_closed = last >= (key.block + 1) * _BLOCK - 1
        if is_closed and not (key.rows == STATUS_ROWS and _has_live(connection, key.block)):
            self._keep(key, jobs)
        return jobs

    def _keep(self, key: _Key, jobs: int) -> None:
        with self._lock:
            if key not in self._bitmaps:  # another reader may have been here first
                self._bitmaps[key] = jobs
                self._bytes += _size_bytes(key, jobs)
            while self._bytes > self._max_bytes:
                self._bytes -= _size_bytes(*self._bitmaps.popitem(last=False))


def _size_bytes(key: _Key, jobs: int) -> int:
    return _ENTRY_BYTES + sys.getsizeof(jobs) + sum(map(sys.getsizeof, key.value))


def _scan(connection: sqlite3.Connection, key: _Key) -> int:
    """Read the set of a value. In one row, since with each row SQLite gives the interpreter away and has to get it back."""
    rows = key.rows.format(*"?" * len(key.value))
    begin, end = key.block * _BLOCK, (key.block + 1) * _BLOCK
    query = f"SELECT group_concat(sequence) FROM {rows} AND sequence >= ? AND sequence < ?"  # noqa: S608
    (sequences,) = connection.execute(query, (*key.value, begin, end)).fetchone()
    digits = bytearray(b"0") * _BLOCK
    for sequence in map(int, sequences.split(",") if sequences else ()):
        digits[end - 1 - sequence] = ord("1")
    return int(digits, 2)


def _any_of_labels(conditions: Sequence[Condition]) -> bool:
    return any(condition.rows in _LABELS for condition in conditions)


def _label_changes(connection: sqlite3.Connection, first_block: int, last_block: int) -> Mapping[int, int]:
    query = "SELECT block, changes FROM label_changes WHERE block BETWEEN ? AND ?"
    return dict(connection.execute(query, (first_block, last_block)).fetchall())


def _has_jobs(connection: sqlite3.Connection, block: int) -> bool:
    query = f"SELECT 1 FROM {JOB_ROWS} AND sequence >= ? AND sequence < ? LIMIT 1"  # noqa: S608
    return connection.execute(query, (block * _BLOCK, (block + 1) * _BLOCK)).fetchone() is not None


def _has_live(connection: sqlite3.Connection, block: int) -> bool:
    query = f"SELECT 1 FROM {STATUS_ROWS.format('?')} AND sequence >= ? AND sequence < ? LIMIT 1"  # noqa: S608
    return any(connection.execute(query, (status, block * _BLOCK, (block + 1) * _BLOCK)).fetchone() for status in LIVE)
