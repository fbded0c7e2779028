"""The journal's rows: read for watchers that resume, blanked with a deleted job, dropped when they are old."""

import json
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import Connection

from evalrpc.jobs.events import deleted_event
from evalrpc.store import compaction
from evalrpc.store.base import JournalEvent

# The sizes are known without reading what is large, so no more is read than there is room for.
_PAGE: Final = """
SELECT revision, event, previous, labels_before, owner FROM (
    SELECT *, sum(octet_length(event)) OVER (ORDER BY revision) - octet_length(event) AS size_before FROM (
        SELECT * FROM journal WHERE revision > %(after)s AND revision <= %(through)s{chosen} ORDER BY revision LIMIT %(limit)s
    ) AS first
) AS sized WHERE size_before < %(max_bytes)s ORDER BY revision
"""
_BLANK: Final = """
UPDATE journal SET event = new.event, previous = NULL, labels_before = NULL
FROM unnest(%b::bigint[], %b::bytea[]) AS new (revision, event) WHERE journal.revision = new.revision
"""


def read_events(
    connection: "Connection[Any]",
    after: int,
    through: int,
    limit: int,
    max_bytes: int,
    sequence: int | None = None,
    owner: str | None = None,
) -> list[JournalEvent]:
    """Return the first events after a revision, up to another one, of one job, of the jobs of one owner, or of all: up to a
    number, and none after the one with which they have so many bytes."""
    chosen = {column: value for column, value in (("sequence", sequence), ("owner", owner)) if value is not None}
    query = _PAGE.format(chosen="".join(f" AND {column} = %({column})s" for column in chosen))
    bounds = {"after": after, "through": through, "limit": limit, "max_bytes": max_bytes}
    return [
        JournalEvent(revision, event, previous, None if labels is None else json.loads(labels), owner_of_job)
        for revision, event, previous, labels, owner_of_job in connection.execute(query, bounds | chosen)
    ]


def blank_events(connection: "Connection[Any]", job_id: str, sequence: int) -> None:
    """Leave of the events of a deleted job only that they are of that job and its owner. Raises psycopg.Error."""
    rows = connection.execute("SELECT revision, created_ns FROM journal WHERE sequence = %s", (sequence,)).fetchall()
    if rows:
        blanks = [_blank(job_id, revision, created_ns) for revision, created_ns in rows]
        connection.execute(_BLANK, ([revision for revision, _ in rows], blanks))


def compact(
    connection: "Connection[Any]", head: int, max_events: int, older_than_ns: int, max_bytes: int, end_bytes: int
) -> int | None:
    """Drop the oldest events, a bounded number and size at a time. Return the revision of the last one; None: there are none to
    drop. `end_bytes` is the size of all events up to the newest."""
    query = "SELECT begin_bytes, number FROM journal ORDER BY revision LIMIT 1"
    oldest = connection.execute(query).fetchone()
    if oldest is None:
        return None
    aged = _last_before(connection, "created_ns", older_than_ns, head)
    excess = _last_before(connection, "begin_bytes", end_bytes - max_bytes, head)
    chunk = _last_before(connection, "begin_bytes", oldest[0] + compaction.CHUNK_BYTES, head)
    through = min(max(aged, excess, head - max_events), oldest_revision(connection) + compaction.CHUNK_REVISIONS, chunk)
    last = connection.execute(
        "SELECT revision, number FROM journal WHERE revision <= %s ORDER BY revision DESC LIMIT 1", (through,)
    ).fetchone()
    if last is None:
        return None
    dropped, number = last
    connection.execute("DELETE FROM journal WHERE revision <= %s", (dropped,))
    connection.execute("DELETE FROM quiet_changes WHERE number <= %s", (number,))
    connection.execute("UPDATE head SET oldest_revision = %s", (dropped,))
    return int(dropped)


def oldest_revision(connection: "Connection[Any]") -> int:
    """Return the revision after which the journal has every event."""
    (row,) = connection.execute("SELECT oldest_revision FROM head").fetchall()
    return int(row[0])


def _last_before(connection: "Connection[Any]", column: str, value: int, default: int) -> int:
    """Return the revision before the first event that has reached a value. Reads no more than the events before that one."""
    query = f"SELECT revision FROM journal WHERE {column} >= %s ORDER BY revision LIMIT 1"
    first = connection.execute(query, (value,)).fetchone()
    return first[0] - 1 if first else default


def _blank(job_id: str, revision: int, created_ns: int) -> bytes:
    time = Timestamp()
    time.FromNanoseconds(created_ns)
    return deleted_event(job_id, revision, time)
