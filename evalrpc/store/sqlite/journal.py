"""The journal's rows: read for watchers that resume, blanked with a deleted job, dropped when they are old."""

import json
import sqlite3
from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs.events import deleted_event
from evalrpc.store.base import JournalEvent

_COMPACTION_CHUNK: Final = 10_000

_PAGE: Final = "SELECT revision, event, previous, labels_before FROM journal WHERE revision > ? AND revision <= ?"


def read_events(
    connection: sqlite3.Connection, after: int, through: int, limit: int, sequence: int | None = None
) -> list[JournalEvent]:
    """Return the first events after a revision, up to another one, of one job or of all."""
    of_job, values = (" AND sequence = ?", (sequence,)) if sequence is not None else ("", ())
    rows = connection.execute(f"{_PAGE}{of_job} ORDER BY revision LIMIT ?", (after, through, *values, limit))
    return [
        JournalEvent(revision, event, previous, None if labels is None else json.loads(labels))
        for revision, event, previous, labels in rows
    ]


def blank_events(connection: sqlite3.Connection, job_id: str, sequence: int) -> None:
    """Leave of the events of a deleted job only that they are of that job. Raises sqlite3.Error."""
    rows = connection.execute("SELECT revision, created_ns FROM journal WHERE sequence = ?", (sequence,)).fetchall()
    connection.executemany(
        "UPDATE journal SET event = ?, previous = NULL, labels_before = NULL WHERE revision = ?", _blanks(job_id, rows)
    )


def oldest_revision(connection: sqlite3.Connection) -> int:
    """Return the revision after which the journal has every event."""
    (oldest,) = connection.execute("SELECT oldest_revision FROM compaction").fetchone()
    return int(oldest)


def compact(connection: sqlite3.Connection, head: int, max_events: int, older_than_ns: int) -> int | None:
    """Drop the oldest events, some thousands at a time. Return the revision of the last one; None: there are none to drop."""
    # Oldest first, so that this reads no more than what is dropped.
    young = connection.execute(
        "SELECT revision FROM journal WHERE created_ns >= ? ORDER BY revision LIMIT 1", (older_than_ns,)
    ).fetchone()
    aged = young[0] - 1 if young else head
    through = min(max(aged, head - max_events), oldest_revision(connection) + _COMPACTION_CHUNK)
    (dropped,) = connection.execute("SELECT max(revision) FROM journal WHERE revision <= ?", (through,)).fetchone()
    if dropped is not None:
        connection.execute("DELETE FROM journal WHERE revision <= ?", (dropped,))
        connection.execute("UPDATE compaction SET oldest_revision = ?", (dropped,))
    return dropped if dropped is None else int(dropped)


def _blanks(job_id: str, rows: Iterable[tuple[int, int]]) -> Iterable[tuple[bytes, int]]:
    for revision, created_ns in rows:
        time = Timestamp()
        time.FromNanoseconds(created_ns)
        yield deleted_event(job_id, revision, time), revision
