"""The statements that write the rows of a transaction: one per table, with an array for each column."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from psycopg import Connection

from evalrpc.jobs.lifecycle import Status
from evalrpc.store.rows import Row, Rows, label_rows, new_row, task_rows

_CHANGED: Final = {
    "sequence": "bigint",
    "status": "smallint",
    "priority": "integer",
    "retry_ns": "bigint",
    "completed_ns": "bigint",
    "cached_from": "text",
    "job": "bytea",
}
_JOBS: Final = _CHANGED | {
    "job_id": "text",
    "harness": "text",
    "model": "text",
    "num_gpus": "integer",
    "supersede_key": "text",
    "request_id": "text",
    "fingerprint": "bytea",
    "cache_key": "bytea",
    "created_ns": "bigint",
    "owner": "text",
    "engine": "text",
    "suite_run_id": "text",
    "executor": "text",
}
_TASKS: Final = {"task": "text", "sequence": "bigint"}
_LABELS: Final = {"label": "text", "sequence": "bigint", "value": "text"}
_SETBACKS: Final = {"sequence": "bigint", "setback_ns": "bigint"}
_USES: Final = {"ended_ns": "bigint", "sequence": "bigint", "started_ns": "bigint", "width": "integer", "owner": "text"}
_EVENTS: Final = {
    "revision": "bigint",
    "sequence": "bigint",
    "created_ns": "bigint",
    "event": "bytea",
    "previous": "smallint",
    "labels_before": "text",
    "owner": "text",
    "begin_bytes": "bigint",
    "number": "bigint",
}
_QUIET: Final = {"number": "bigint", "sequence": "bigint"}
_COUNTS: Final = {"owner": "text", "status": "smallint", "jobs": "bigint", "number": "bigint"}


def _arrays(columns: Mapping[str, str]) -> str:
    return f"unnest({', '.join(f'%b::{kind}[]' for kind in columns.values())})"


def _insert(table: str, columns: Mapping[str, str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) SELECT * FROM {_arrays(columns)}"


_INSERT_JOBS: Final = _insert("jobs", _JOBS)
_INSERT_TASKS: Final = _insert("job_tasks", _TASKS)
_INSERT_LABELS: Final = _insert("job_labels", _LABELS)
_INSERT_SETBACKS: Final = _insert("clock_setbacks", _SETBACKS)
_INSERT_USES: Final = f"{_insert('attempt_uses', _USES)} ON CONFLICT DO NOTHING"
_INSERT_EVENTS: Final = _insert("journal", _EVENTS)
_INSERT_QUIET: Final = _insert("quiet_changes", _QUIET)
_ADD_COUNTS: Final = (
    f"{_insert('counts', _COUNTS)} ON CONFLICT (owner, status) DO UPDATE"
    " SET jobs = counts.jobs + EXCLUDED.jobs, number = EXCLUDED.number"
)
_UPDATE_JOBS: Final = (
    f"UPDATE jobs SET {', '.join(f'{name} = new.{name}' for name in _CHANGED if name != 'sequence')}"
    f" FROM {_arrays(_CHANGED)} AS new ({', '.join(_CHANGED)}) WHERE jobs.sequence = new.sequence"
)


def write_rows(connection: "Connection[Any]", rows: Rows) -> None:
    """Write all, once. Within a pipeline, errors show when that ends. Raises psycopg.Error."""
    new = rows.new_jobs()
    _write(connection, _INSERT_JOBS, map(new_row, new))
    _write(connection, _INSERT_TASKS, task_rows(new))
    _write(connection, _INSERT_LABELS, label_rows(new))
    _write(connection, _UPDATE_JOBS, rows.changed_rows())
    _write(connection, _INSERT_SETBACKS, rows.setbacks)
    _write(connection, _INSERT_USES, rows.uses)
    _write(connection, _INSERT_EVENTS, rows.events)
    _write(connection, _INSERT_QUIET, rows.quiet)


def add_counts(connection: "Connection[Any]", differences: Mapping[tuple[str, Status], int], number: int) -> None:
    """Count the jobs that have come into a status, or left it. Raises psycopg.Error."""
    changed = [(*key, difference, number) for key, difference in sorted(differences.items()) if difference]
    _write(connection, _ADD_COUNTS, changed)


def _write(connection: "Connection[Any]", statement: str, rows: Iterable[Row]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    if columns:
        connection.execute(statement, columns)
