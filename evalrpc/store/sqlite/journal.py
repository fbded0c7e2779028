"""The journal's rows: read for watchers that resume, blanked with a deleted job, dropped when they are old."""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs.events import deleted_event
from evalrpc.store import compaction
from evalrpc.store.base import JournalEvent
from evalrpc.store.room import Room

_PAGE: Final = "SELECT revision, event, previous, labels_before, owner FROM journal WHERE revision > ? AND revision <= ?"


def read_events(
    connection: sqlite3.Connection, after: int, through: int, room: Room, sequence: int | None = None, owner: str | None = None
) -> list[JournalEvent]:
    """Return the first events after a revision, up to another one, of one job, of the jobs of one owner, or of all."""
    chosen = {column: value for column, value in (("sequence", sequence), ("owner", owner)) if value is not None}
    query = f"{_PAGE}{''.join(f' AND {column} = ?' for column in chosen)} ORDER BY revision LIMIT ?"
    with closing(connection.execute(query, (after, through, *chosen.values(), room.left))) as rows:
        return [
            JournalEvent(revision, event, previous, None if labels is None else json.loads(labels), owner_of_job)
            for revision, event, previous, labels, owner_of_job in room.take(rows, 1)
        ]


def blank_events(connection: sqlite3.Connection, job_id: str, sequence: int) -> None:
    """Leave of the events of a deleted job only that they are of that job and its owner. Raises sqlite3.Error."""
    rows = connection.execute("SELECT revision, created_ns FROM journal WHERE sequence = ?", (sequence,)).fetchall()
    connection.executemany(
        "UPDATE journal SET event = ?, previous = NULL, labels_before = NULL WHERE revision = ?", _blanks(job_id, rows)
    )


def end_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of all events that there were up to the newest, when they were made; 0 in an empty journal."""
    size = "begin_bytes + length(event) + ifnull(length(labels_before), 0)"
    newest = connection.execute(f"SELECT {size} FROM journal ORDER BY revision DESC LIMIT 1").fetchone()  # noqa: S608
    return int(newest[0]) if newest else 0


def oldest_revision(connection: sqlite3.Connection) -> int:
    """Return the revision after which the journal has every event."""
    (oldest,) = connection.execute("SELECT oldest_revision FROM compaction").fetchone()
    return int(oldest)


def compact(
    connection: sqlite3.Connection, head: int, max_events: int, older_than_ns: int, max_bytes: int, end_bytes: int
) -> int | None:
    """Drop the oldest events, a bounded number and size at a time. Return the revision of the last one; None: there are none to
    drop. `end_bytes` is the size of all events up to the newest."""
    oldest = connection.execute("SELECT begin_bytes FROM journal ORDER BY revision LIMIT 1").fetchone()
    if oldest is None:
        return None
    aged = _last_before(connection, "created_ns", older_than_ns, head)
    excess = _last_before(connection, "begin_bytes", end_bytes - max_bytes, head)
    chunk = _last_before(connection, "begin_bytes", oldest[0] + compaction.CHUNK_BYTES, head)
    through = min(max(aged, excess, head - max_events), oldest_revision(connection) + compaction.CHUNK_REVISIONS, chunk)
    (dropped,) = connection.execute("SELECT max(revision) FROM journal WHERE revision <= ?", (through,)).fetchone()
    if dropped is not None:
        connection.execute("DELETE FROM journal WHERE revision <= ?", (dropped,))
        connection.execute("UPDATE compaction SET oldest_revision = ?", (dropped,))
    return dropped if dropped is None else int(dropped)


def _last_before(connection: sqlite3.Connection, column: str, value: int, default: int) -> int:
    """Return the revision before the first event that has reached a value. Reads no more than the events before that one."""
    query = f"SELECT revision FROM journal WHERE {column} >= ? ORDER BY revision LIMIT 1"  # noqa: S608
    first = connection.execute(query, (value,)).fetchone()
    return first[0] - 1 if first else default


def _blanks(job_id: str, rows: Iterable[tuple[int, int]]) -> Iterable[tuple[bytes, int]]:
    for revision, created_ns in rows:
        time = Timestamp()
        time.FromNanoseconds(created_ns)
        yield deleted_event(job_id, revision, time), revision
