"""Databases that are copied while a server writes them, and made ready to take the place of a lost one."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from evalrpc.errors import ConfigurationError

_BUSY_WAIT_SECONDS: Final = 10.0


def copy_database(source: Path, target: Path, *, is_in_use: bool) -> None:
    """Copy a database as it is at one moment, without holding up who writes it. Beside one that is not in use, no file is
    made.

    Raises ConfigurationError if it can't be read, or is damaged.
    """
    with (
        _problems_with(source),
        closing(connect_reader(source, is_in_use=is_in_use)) as original,
        closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)  # in one step, and so of one moment: readers don't hold up the writer
        found = [text for (text,) in copy.execute("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        raise ConfigurationError(f"the database {source} is damaged: {found[0]}")


def jobs_ended_and_gone(copy: Path, original: Path) -> list[str]:
    """Return the jobs that are terminal in a copy, and were deleted in the original since. Raises ConfigurationError."""
    query = "SELECT job_id FROM jobs WHERE completed_ns IS NOT NULL AND job_id NOT IN (SELECT job_id FROM original.jobs)"
    with _problems_with(copy), closing(sqlite3.connect(copy, uri=True, timeout=_BUSY_WAIT_SECONDS)) as connection:
        connection.execute("ATTACH DATABASE ? AS original", (_read_only(original),))
        return [job_id for (job_id,) in connection.execute(query)]


def raise_revision(path: Path, revision: int) -> None:
    """Let a database begin anew after a revision: it has no events, and nobody can resume after an earlier revision.

    Raises ConfigurationError if it is not later than all revisions of the database.
    """
    with _problems_with(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        newest = "SELECT max(oldest_revision, (SELECT ifnull(max(revision), 0) FROM journal)) FROM compaction"
        (head,) = connection.execute(newest).fetchone()
        if revision <= head:
            raise ConfigurationError(
                f"the backup has revision {head}, and this machine's clock allows {revision} at most: set the clock"
            )
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM journal")
        connection.execute("UPDATE compaction SET oldest_revision = ?", (revision,))
        connection.execute("COMMIT")


def connect_reader(path: Path, *, is_in_use: bool = False) -> sqlite3.Connection:
    """Open a database for reading only. Beside one that is not in use, no file is made."""
    name = _read_only(path) if is_in_use or _has_log(path) else f"{_read_only(path)}&immutable=1"
    return sqlite3.connect(name, uri=True, timeout=_BUSY_WAIT_SECONDS)


def _read_only(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _has_log(path: Path) -> bool:
    """Whether changes are in a write-ahead log, which an immutable database would do without."""
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


@contextmanager
def _problems_with(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigurationError(f"the database {path} can't be copied or read: {error}") from error
