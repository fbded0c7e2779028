"""Rows on their way into the database: gathered by a transaction, then written with as few statements as can be."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from evalrpc.jobs.defaults import gpus_needed
from evalrpc.jobs.served_models import identity, model_of
from evalrpc.store.base import Submission
from evalrpc.v1 import jobs_pb2 as pb

_MAX_ROWS: Final = 512
"""At most so many in one statement. SQLite takes 32,766 values."""

_GIVEN: Final = "SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL"
_INSERT_JOBS: Final = (
    "INSERT INTO jobs (sequence, status, priority, retry_ns, completed_ns, cached_from, job, job_id, harness, model, num_gpus,"
    f" supersede_key, request_id, fingerprint, cache_key, created_ns, owner, engine, suite_run_id) {_GIVEN}"
)
_UPDATE_JOBS: Final = (
    "UPDATE jobs SET status = new.column2, priority = new.column3, retry_ns = new.column4, completed_ns = new.column5,"
    " cached_from = new.column6, job = new.column7 FROM (VALUES {rows}) AS new WHERE jobs.sequence = new.column1"
)
_INSERT_TASKS: Final = f"INSERT INTO job_tasks (task, sequence) {_GIVEN}"
_INSERT_LABELS: Final = f"INSERT INTO job_labels (label, sequence, value) {_GIVEN}"
_INSERT_SETBACKS: Final = f"INSERT INTO clock_setbacks (sequence, setback_ns) {_GIVEN}"
_INSERT_USES: Final = f"INSERT OR REPLACE INTO attempt_uses (ended_ns, sequence, started_ns, width, owner) {_GIVEN}"
_INSERT_EVENTS: Final = (
    f"INSERT INTO journal (revision, sequence, created_ns, event, previous, labels_before, owner, begin_bytes) {_GIVEN}"
)

_Row = tuple[Any, ...]


class Rows:
    """What one transaction writes. Of several changes of one job only the last is written."""

    def __init__(self) -> None:
        self._inserts: dict[int, Submission] = {}
        self._changed: dict[int, tuple[pb.JobInfo, bytes]] = {}
        self._events: list[_Row] = []
        self._setbacks: list[_Row] = []
        self._uses: list[_Row] = []

    def insert(self, sequence: int, job: pb.JobInfo, serialized: bytes, submission: Submission) -> None:
        """Add a new job."""
        self._inserts[sequence] = submission
        self._changed[sequence] = (job, serialized)

    def update(self, sequence: int, job: pb.JobInfo, serialized: bytes) -> None:
        """Change a job, which may be a new one."""
        self._changed[sequence] = (job, serialized)

    def setback(self, sequence: int, setback_ns: int) -> None:
        """Note that the clock was set back before a new job."""
        self._setbacks.append((sequence, setback_ns))

    def use(self, sequence: int, job: pb.JobInfo) -> None:
        """Note what the latest attempt of a job has used, which has ended."""
        attempt = job.attempts[-1]
        started_ns, ended_ns = attempt.started_at.ToNanoseconds(), attempt.completed_at.ToNanoseconds()
        self._uses.append((ended_ns, sequence, started_ns, len(attempt.gpus) or 1, job.owner))

    def journal(self, event_row: _Row) -> None:
        """Add an event, as `journal.event_row` gives it."""
        self._events.append(event_row)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write all, once. Raises sqlite3.Error."""
        new = [(sequence, *self._changed.pop(sequence), submission) for sequence, submission in self._inserts.items()]
        _write(connection, _INSERT_JOBS, [_new_row(*each) for each in new])
        _write(connection, _INSERT_TASKS, [(task, sequence) for sequence, job, *_ in new for task in set(job.request.tasks)])
        _write(
            connection,
            _INSERT_LABELS,
            [(label, sequence, value) for sequence, job, *_ in new for label, value in job.labels.items()],
        )
        _write(connection, _UPDATE_JOBS, [_changed_row(sequence, *changed) for sequence, changed in self._changed.items()])
        _write(connection, _INSERT_SETBACKS, self._setbacks)
        _write(connection, _INSERT_USES, self._uses)
        _write(connection, _INSERT_EVENTS, self._events)


def _new_row(sequence: int, job: pb.JobInfo, serialized: bytes, submission: Submission) -> _Row:
    return (
        *_changed_row(sequence, job, serialized),
        job.job_id,
        job.request.harness,
        model_of(job.request),
        gpus_needed(job.request),
        job.supersede_key or None,
        submission.request_id or None,
        submission.fingerprint,
        submission.cache_key or None,
        job.created_at.ToNanoseconds(),
        job.owner,
        identity(job.request, job.job_id),
        job.suite_run_id or None,
    )


def _changed_row(sequence: int, job: pb.JobInfo, serialized: bytes) -> _Row:
    completed_ns = job.completed_at.ToNanoseconds() if job.HasField("completed_at") else None
    return (
        sequence,
        job.status,
        job.priority,
        job.retry_at.ToNanoseconds(),
        completed_ns,
        job.cached_from or None,
        serialized,
    )


def _write(connection: sqlite3.Connection, statement: str, rows: Sequence[_Row]) -> None:
    """Write rows, filled up with empty ones to a power of two, so that SQLite keeps the few statements prepared."""
    for begin in range(0, len(rows), _MAX_ROWS):
        chunk = rows[begin : begin + _MAX_ROWS]
        width = len(chunk[0])
        size = 1 << (len(chunk) - 1).bit_length()
        values = [value for row in chunk for value in row] + [None] * width * (size - len(chunk))
        marks = f"({', '.join('?' * width)})"
        connection.execute(statement.format(rows=", ".join([marks] * size)), values)
