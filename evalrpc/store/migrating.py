"""The jobs of a SQLite database on their way into one of PostgreSQL: all of them in one transaction, or none."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

from evalrpc.errors import ConfigurationError
from evalrpc.store.lock import lock_data_dir
from evalrpc.store.postgres.connecting import Connection, brief, connect_writer, require_valid, shown
from evalrpc.store.postgres.data_folder import require_same_folder
from evalrpc.store.postgres.migrations import migrate
from evalrpc.store.sqlite.opening import MIGRATED_SUFFIX, open_database
from evalrpc.store.sqlite.store import DATABASE_NAME

_TABLES: Final[Mapping[str, str]] = {
    "jobs": (
        "sequence, status, priority, retry_ns, completed_ns, cached_from, job, job_id, harness, model, num_gpus, supersede_key,"
        " request_id, fingerprint, cache_key, created_ns, owner, engine, suite_run_id, executor"
    ),
    "job_tasks": "task, sequence",
    "job_labels": "label, sequence, value",
    "clock_setbacks": "sequence, setback_ns",
    "journal": "revision, sequence, created_ns, event, previous, labels_before, owner, begin_bytes",
    "removals": "path, job_id",
    "attempt_uses": "ended_ns, sequence, started_ns, width, owner",
    "run_uids": "uid, owner",
    "suite_runs": "suite_run_id, owner, request_id, fingerprint, run, sequence",
}
_COUNT: Final = "INSERT INTO counts SELECT owner, status, count(*), 0 FROM jobs GROUP BY owner, status"
_MOVE_HEAD: Final = """
UPDATE head SET revision = %s, number = %s, sequence = %s, created_ns = %s, journal_bytes = %s, oldest_revision = %s,
    holds = %s,
    migrated_from = data_id
"""


class Migrated(NamedTuple):
    """What is in the new database, as far as it comes from the old one."""

    counts: Mapping[str, int]
    """How many rows each table has."""
    is_new: bool
    """Whether they were copied just now."""


def migrate_to_postgres(data_dir: Path, conninfo: str) -> Migrated:
    """Copy the jobs of a data folder, whose server is stopped, into an empty database, and put the old one aside. Once that is
    done, it is done: another call changes nothing.

    Raises ConfigurationError if something is in the way; then nothing has changed.
    """
    require_valid(conninfo)
    path = data_dir / DATABASE_NAME
    aside = path.with_name(f"{DATABASE_NAME}{MIGRATED_SUFFIX}")
    if not (path.exists() or aside.exists()):
        raise ConfigurationError(
            f"setting data_dir: {data_dir} has no database {DATABASE_NAME}, so there is nothing to migrate"
        )
    with closing(lock_data_dir(data_dir)):
        try:
            with connect_writer(conninfo) as target:
                migrate(target)
                require_same_folder(target, data_dir)
                return _migrate(path, aside, target)
        except psycopg.Error as error:
            raise ConfigurationError(f"setting store: {shown(conninfo)} can't take the jobs: {brief(error)}") from error
        except sqlite3.Error as error:
            raise ConfigurationError(f"setting data_dir: the database {path} can't be read: {error}") from error


def _migrate(path: Path, aside: Path, target: Connection) -> Migrated:
    (head,) = target.execute("SELECT migrated_from, number FROM head").fetchall()
    if head[0]:
        is_new = False
        if path.exists():  # it was stopped before it could put that aside
            path.rename(aside)
    elif head[1]:
        raise ConfigurationError("setting store: the database has jobs already: take an empty one")
    elif not path.exists():
        raise ConfigurationError(f"setting store: the jobs of {aside} were migrated to another database")
    else:
        is_new = True
        _copy(path, target)
        path.rename(aside)
    return Migrated(_counts(target), is_new)


def _copy(path: Path, target: Connection) -> None:
    """Copy all rows, and compare how many there are. Raises ConfigurationError, psycopg.Error, sqlite3.Error."""
    opened = open_database(path)
    with closing(opened.connection) as source, target.transaction():
        target.execute("SET LOCAL statement_timeout = 0")
        target.execute("SELECT FROM head FOR UPDATE")
        for table, columns in _TABLES.items():
            _copy_table(source, target, table, columns)
        target.execute(_COUNT)
        holds = [name for (name,) in source.execute("SELECT name FROM holds")]
        last_ns, end_bytes = opened.last_created_ns, opened.journal_end_bytes
        revision = opened.head_revision
        oldest = opened.oldest_revision
        target.execute(_MOVE_HEAD, (revision, revision, opened.last_sequence, last_ns, end_bytes, oldest, holds))
        there = _counts(target)
        for table in _TABLES:
            (count,) = source.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - a name of ours
            if count != there[table]:
                raise ConfigurationError(f"of table {table}, {there[table]} of {count} rows have arrived: nothing was kept")
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _copy_table(source: sqlite3.Connection, target: Connection, table: str, columns: str) -> None:
    numbered = f"{columns}, number" if table == "journal" else columns  # an event of then is a change of its revision's number
    with target.cursor().copy(f"COPY {table} ({numbered}) FROM STDIN") as copy:
        for row in _rows(source, table, columns):
            copy.write_row((*row, row[0]) if table == "journal" else row)


def _rows(source: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    yield from source.execute(f"SELECT {columns} FROM {table}")  # noqa: S608 - names of ours


def _counts(target: Connection) -> dict[str, int]:
    counts = {}
    for table in _TABLES:
        (row,) = target.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608 - a name of ours
        counts[table] = row[0]
    return counts
