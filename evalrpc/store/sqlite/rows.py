"""The statements that write the rows of a transaction."""

import sqlite3
from collections.abc import Iterable
from typing import Final

from evalrpc.store.rows import Row, Rows, label_rows, new_row, task_rows

_MAX_ROWS: Final = 512
"""At most so many in one statement. SQLite takes 32,766 values."""

_GIVEN: Final = "SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL"
_INSERT_JOBS: Final = (
    "INSERT INTO jobs (sequence, status, priority, retry_ns, completed_ns, cached_from, job, job_id, harness, model, num_gpus,"
    " supersede_key, request_id, fingerprint, cache_key, created_ns, owner, engine, suite_run_id, executor)"
    f" {_GIVEN}"
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


def write_rows(connection: sqlite3.Connection, rows: Rows) -> None:
    """Write all, once. Raises sqlite3.Error."""
    new = rows.new_jobs()
    _write(connection, _INSERT_JOBS, map(new_row, new))
    _write(connection, _INSERT_TASKS, task_rows(new))
    _write(connection, _INSERT_LABELS, label_rows(new))
    _write(connection, _UPDATE_JOBS, rows.changed_rows())
    _write(connection, _INSERT_SETBACKS, rows.setbacks)
    _write(connection, _INSERT_USES, rows.uses)
    _write(connection, _INSERT_EVENTS, [row[:-1] for row in rows.events])  # its one writer needs no number of a change


def _write(connection: sqlite3.Connection, statement: str, given: Iterable[Row]) -> None:
    """Write rows, filled up with empty ones to a power of two, so that SQLite keeps the few statements prepared."""
    rows = list(given)
    for begin in range(0, len(rows), _MAX_ROWS):
        chunk = rows[begin : begin + _MAX_ROWS]
        width = len(chunk[0])
        size = 1 << (len(chunk) - 1).bit_length()
        values = [value for row in chunk for value in row] + [None] * width * (size - len(chunk))
        marks = f"({', '.join('?' * width)})"
        connection.execute(statement.format(rows=", ".join([marks] * size)), values)
