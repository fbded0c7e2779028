"""Opening the database file: made or brought up to date, and read for what the writer has to know."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.errors import ConfigurationError
from evalrpc.jobs.ids import is_job_id
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.paths import JOBS_DIR
from evalrpc.store.sqlite import deduplication, journal
from evalrpc.store.sqlite.backup import connect_reader
from evalrpc.store.sqlite.migrations import known_version, migrate
from evalrpc.v1 import jobs_pb2 as pb

_QUEUED_BY_OWNER: Final = "SELECT owner, count(*) FROM jobs WHERE status = ? GROUP BY owner"

BACKUP_MARKER: Final = "evalrpc-backup.json"
"""The file that makes a folder a backup, which no server may work on."""

MIGRATED_SUFFIX: Final = ".migrated"
"""What follows the name of a database whose jobs are in another one by now."""

RESTORING_DIR: Final = "restoring"
"""The folder that a data folder has until it is restored."""


class Opened(NamedTuple):
    """A database that is ready, as its writer finds it."""

    connection: sqlite3.Connection
    oldest_revision: int
    head_revision: int
    journal_end_bytes: int
    last_sequence: int
    last_created_ns: int
    counts: Counter[Status]
    queued_by_owner: Counter[str]
    followed: set[str]
    """The jobs that some job follows."""


def open_database(path: Path) -> Opened:
    """Open a database for its writer, or make it. Raises ConfigurationError if it can't be used."""
    with _problems_with(path):
        _require_no_backup(path.parent)
        _require_not_lost(path)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # not FAST, which leaves large values of a deleted job in free pages
        migrate(connection)
        (oldest,) = connection.execute("SELECT oldest_revision FROM compaction").fetchone()
        (newest,) = connection.execute("SELECT ifnull(max(revision), 0) FROM journal").fetchone()
        end_bytes = journal.end_bytes(connection)
        last_sequence = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        last_created = connection.execute("SELECT created_ns FROM jobs ORDER BY sequence DESC LIMIT 1").fetchone()
        counts = Counter(dict(connection.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall()))
        queued_by_owner = Counter(dict(connection.execute(_QUEUED_BY_OWNER, (pb.JOB_STATUS_QUEUED,)).fetchall()))
        followed = deduplication.followed_jobs(connection)
    return Opened(
        connection,
        oldest,
        max(oldest, newest),
        end_bytes,
        last_sequence[0] if last_sequence else 0,
        last_created[0] if last_created else 0,
        counts,
        queued_by_owner,
        followed,
    )


def check_database(path: Path) -> None:
    """Look whether a server would open a database, or make it, without changing it. Raises ConfigurationError if not."""
    with _problems_with(path):
        _require_no_backup(path.parent)
        _require_not_lost(path)
        if _has_content(path):
            with closing(connect_reader(path)) as connection:
                known_version(connection)


@contextmanager
def _problems_with(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, TypeError) as error:  # TypeError: a row is missing
        is_full = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL
        todo = "make room on its disk" if is_full else "take another folder, or a backup"
        raise ConfigurationError(f"setting data_dir: the database {path} can't be opened: {error}; {todo}") from error


def _require_no_backup(folder: Path) -> None:
    """Refuse a backup: its revisions would be handed out a second time."""
    if (folder / BACKUP_MARKER).exists():
        raise ConfigurationError(f"setting data_dir: {folder} is a backup; run `evalrpc restore`")


def _require_not_lost(path: Path) -> None:
    """Refuse to begin anew where a database was: SQLite would drop its journal, and the server the files of its jobs."""
    if path.with_name(f"{path.name}{MIGRATED_SUFFIX}").exists():
        raise ConfigurationError(
            "setting store: the jobs of this data folder were migrated to PostgreSQL; say where they are, as in "
            "store = postgresql://USER@HOST/DATABASE"
        )
    journal, jobs, restoring = path.with_name(f"{path.name}-wal"), path.parent / JOBS_DIR, path.parent / RESTORING_DIR
    found = ((journal, _has_content(journal)), (jobs, _has_jobs(jobs)), (restoring, restoring.exists()))
    traces = [trace for trace, is_there in found if is_there]
    if traces and not _has_content(path):
        raise ConfigurationError(
            f"setting data_dir: the database {path} is empty or gone, though {traces[-1]} is there; "
            "bring back a backup, or take another folder"
        )


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _has_jobs(folder: Path) -> bool:
    """Whether the files of a job are there: a disk that was mounted for runs alone has its `lost+found`."""
    return folder.is_dir() and any(is_job_id(path.name) for path in folder.iterdir())
