"""Sets of jobs in memory, to get past common conditions that hardly ever meet.

A set has the jobs with one value, of one block of sequences, as the bits of an int. It is read from that part of the value's
index, and kept only when no job can come into it any more: sequences are given in the order of the commits, so a block is
closed once there is a job past its end; and statuses stay once all jobs of the block are terminal. So no set is ever
brought up to date, and the writer knows nothing of them. What is deleted later stays in them.

Threads: readers share the sets, so one may meet a set that was read from a later state than its own snapshot. What that lacks
was deleted, or got another status, while the call was under way, and may be missing from the answer. What it has too much is
for the caller to find out: it looks up the rows, and their statuses, in its snapshot.
"""

import sqlite3
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Final, NamedTuple

from evalrpc.jobs.lifecycle import LIVE

_BLOCK: Final = 16_384
_ENTRY_BYTES: Final = 400
"""What a kept set takes beside its own bytes and those of its value, rounded up."""

Value = tuple[str | int, ...]

STATUS_ROWS: Final = "jobs WHERE status = {}"


class Condition(NamedTuple):
    """A condition of a filter. An index holds the jobs of each value in the order of arrival."""

    rows: str
    """Those of a value: the table, and what it is searched for, with a `{}` for each part of the value."""
    values: Sequence[Value]
    """Of which one suffices."""


class BitmapIndex:
    """The sets that were used last, up to a number of bytes. The lock is held for a few lines only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._bitmaps: OrderedDict[tuple[str, Value, int], int] = OrderedDict()
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
        for block in range(newest // _BLOCK, oldest // _BLOCK - 1, -1):
            begin = block * _BLOCK
            met = (1 << min(_BLOCK, newest + 1 - begin)) - 1
            for rows, values in conditions:
                if met:
                    met &= reduce(or_, (self._set(connection, rows, value, block, last) for value in values))
            while met:
                highest = met.bit_length() - 1
                if begin + highest < oldest:
                    return
                yield begin + highest
                met ^= 1 << highest

    def _set(self, connection: sqlite3.Connection, rows: str, value: Value, block: int, last: int) -> int:
        key = (rows, value, block)
        with self._lock:
            if key in self._bitmaps:
                self._bitmaps.move_to_end(key)
                return self._bitmaps[key]
        jobs = _scan(connection, rows, value, block)
        if last >= (block + 1) * _BLOCK - 1 and not (rows == STATUS_ROWS and _has_live(connection, block)):
            self._keep(key, jobs)
        return jobs

    def _keep(self, key: tuple[str, Value, int], jobs: int) -> None:
        with self._lock:
            if key not in self._bitmaps:  # another reader may have been here first
                self._bitmaps[key] = jobs
                self._bytes += _size_bytes(key, jobs)
            while self._bytes > self._max_bytes:
                self._bytes -= _size_bytes(*self._bitmaps.popitem(last=False))


def _size_bytes(key: tuple[str, Value, int], jobs: int) -> int:
    return _ENTRY_BYTES + sys.getsizeof(jobs) + sum(map(sys.getsizeof, key[1]))


def _scan(connection: sqlite3.Connection, rows: str, value: Value, block: int) -> int:
    """Read the set of a value. In one row, since with each row SQLite gives the interpreter away and has to get it back."""
    query = f"SELECT group_concat(sequence) FROM {rows.format(*'?' * len(value))} AND sequence >= ? AND sequence < ?"  # noqa: S608
    begin, end = block * _BLOCK, (block + 1) * _BLOCK
    (sequences,) = connection.execute(query, (*value, begin, end)).fetchone()
    digits = bytearray(b"0") * _BLOCK
    for sequence in map(int, sequences.split(",") if sequences else ()):
        digits[end - 1 - sequence] = ord("1")
    return int(digits, 2)


def _has_live(connection: sqlite3.Connection, block: int) -> bool:
    query = f"SELECT 1 FROM {STATUS_ROWS.format('?')} AND sequence >= ? AND sequence < ? LIMIT 1"  # noqa: S608
    return any(connection.execute(query, (status, block * _BLOCK, (block + 1) * _BLOCK)).fetchone() for status in LIVE)
