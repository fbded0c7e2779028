"""What other servers have committed, read from the journal as this server did not make it."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

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
        for row in rows:
            if row[2] is not None:
                revision = row[2]
            stored = _stored(row)
            if stored is not None and parse_job(stored.serialized).revision > revision:
                continue  # a quiet change, and the job has had an event since, which is still to come
            job_id = _job_id(row, stored)
            before = latest[job_id] if job_id in latest else known(job_id)
            changes.append((_change(row, stored, before, job_id), stored))
            latest[job_id] = stored
        number = rows[-1][0] if len(rows) == MAX_PAGE else head.number
        if len(rows) < MAX_PAGE:
            revision = head.revision
        yield Missed(changes, revision, number)


def _stored(row: Any) -> StoredJob | None:
    """Return the job of a change, as it is stored with it; None where it was deleted."""
    _, sequence, _, event, _, _, owner, job = row
    if event is None:
        return StoredJob(sequence, parse_job(job).status, job, owner)
    parsed = pb.JobEvent.FromString(event)
    if parsed.type == pb.JOB_EVENT_TYPE_DELETED:
        return None
    return StoredJob(sequence, parsed.job.status, parsed.job.SerializeToString(), owner)


def _job_id(row: Any, stored: StoredJob | None) -> str:
    message = pb.JobEvent.FromString(row[3]).job if stored is None else stored.parse()
    return message.job_id


def _change(row: Any, stored: StoredJob | None, before: StoredJob | None, job_id: str) -> Change:
    number, sequence, revision, event, previous, labels, owner, _ = row
    journalled = None
    if event is not None:
        journalled = JournalEvent(revision, event, previous, None if labels is None else json.loads(labels), owner)
    if stored is None:
        job = pb.JobInfo(job_id=job_id, owner=owner) if before is None else before.parse()
        return Change(number, job, sequence, job.status, journalled, deleted=True)
    status_before: Status = stored.status if event is None else previous or pb.JOB_STATUS_UNSPECIFIED
    return Change(number, stored.parse(), sequence, status_before, journalled)
