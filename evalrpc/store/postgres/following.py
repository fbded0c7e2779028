"""What other servers have committed, read from the journal as this server did not make it."""

import json
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from evalrpc.errors import ChangesMissedError
from evalrpc.jobs.lifecycle import Status
from evalrpc.store.base import Change, JournalEvent, StoredJob, parse_job
from evalrpc.store.postgres.connecting import Connection
from evalrpc.store.postgres.head import Head, read_head
from evalrpc.v1 import jobs_pb2 as pb

MAX_PAGE: Final = 512
"""How many changes are read at a time."""

_EVENTS: Final = """
SELECT number, sequence, revision, event, previous, labels_before, owner, NULL::bytea FROM journal
WHERE revision > %(revision)s AND revision <= %(through)s ORDER BY revision LIMIT %(limit)s
"""
_QUIET: Final = """
SELECT number, sequence, NULL, NULL, NULL, NULL, owner, job FROM quiet_changes JOIN jobs USING (sequence)
WHERE number > %(number)s AND number <= %(through_number)s ORDER BY number LIMIT %(limit)s
"""
_CHANGED: Final = f"SELECT * FROM (({_EVENTS}) UNION ALL ({_QUIET})) AS changed ORDER BY number LIMIT %(limit)s"

Known = Callable[[str], StoredJob | None]
"""Returns a job as this server has it in memory."""


class Missed(NamedTuple):
    """Some changes of others, and where one is after them."""

    changes: list[tuple[Change, StoredJob | None]]
    """Each with the job as it is stored then; None where it was deleted."""
    revision: int
    number: int


def read_missed(connection: Connection, revision: int, number: int, head: Head, known: Known) -> Iterator[Missed]:
    """Yield all changes after a revision and a number, up to a head that is locked or was read before, in pages.

    Raises ChangesMissedError if some are gone already, psycopg.Error.
    """
    while number < head.number:
        asked = {"revision": revision, "number": number, "limit": MAX_PAGE}
        bounds = {"through": head.revision, "through_number": head.number}
        rows = connection.execute(_CHANGED, asked | bounds).fetchall()
        oldest = read_head(connection).oldest_revision
        if oldest > revision:
            raise ChangesMissedError(f"the journal reaches back to revision {oldest} only, and this server was at {revision}")
        changes: list[tuple[Change, StoredJob | None]] = []
        latest: dict[str, StoredJob | None] = {}
        for row in map(_Row._make, rows):
            if row.revision is not None:
                revision = row.revision
            job, stored = _job_of(row)
            if stored is not None and job.revision > revision:
                continue  # a quiet change, and the job has had an event since, which is still to come
            before = latest[job.job_id] if job.job_id in latest else known(job.job_id)
            changes.append((_change(row, job, stored, before), stored))
            latest[job.job_id] = stored
        number = rows[-1][0] if len(rows) == MAX_PAGE else head.number
        if len(rows) < MAX_PAGE:
            revision = head.revision
        yield Missed(changes, revision, number)


class _Row(NamedTuple):
    number: int
    sequence: int
    revision: int | None
    """None of a quiet change."""
    event: bytes | None
    previous: Status | None
    labels_before: str | None
    owner: str
    job: bytes | None
    """Of a quiet change."""


def _job_of(row: _Row) -> tuple[pb.JobInfo, StoredJob | None]:
    """Return the job of a change, and how it is stored with it: None where it was deleted. It is parsed once."""
    if row.event is None:
        serialized = row.job or b""
        job = parse_job(serialized)
    else:
        event = pb.JobEvent.FromString(row.event)
        job = event.job
        if event.type == pb.JOB_EVENT_TYPE_DELETED:
            return job, None
        serialized = job.SerializeToString()
    return job, StoredJob(row.sequence, job.status, serialized, row.owner)


def _change(row: _Row, job: pb.JobInfo, stored: StoredJob | None, before: StoredJob | None) -> Change:
    journalled = None
    if row.event is not None and row.revision is not None:
        labels = None if row.labels_before is None else json.loads(row.labels_before)
        journalled = JournalEvent(row.revision, row.event, row.previous, labels, row.owner)
    if stored is None:
        known = pb.JobInfo(job_id=job.job_id, owner=row.owner) if before is None else before.parse()
        return Change(row.number, known, row.sequence, known.status, journalled, deleted=True, is_own=False)
    status_before: Status = job.status if row.event is None else row.previous or pb.JOB_STATUS_UNSPECIFIED
    return Change(row.number, job, row.sequence, status_before, journalled, is_own=False)
