"""The answers of a job, in a file of its own: what was answered is not asked again.

An answer has the key of its question. Several with one key are the answers to a body that was asked several times, in the order
of their ids. `taken_by` is the last attempt that was given the answer. So the next answer for an attempt is the first that it
has not taken, and an attempt that starts over gets all of them again, in the same order. One that no client took, since it had
gone, is the next one's.

Everything happens on the event loop: a commit costs less than handing it to a thread. There is one for each answer, before that
is sent. It survives a kill, but not the end of the machine, since nothing here waits for the disk (`synchronous=OFF`). What is
left then is read with care: each row has a checksum.

A recording never fails a request. What can't be written is counted, and a file that is no recording is set aside.
"""

import contextlib
import logging
import os
import sqlite3
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalrpc.engines.gateway.counting import Facts

_LOGGER: Final = logging.getLogger(__name__)
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS attempts (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS answers (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL, taken_by INTEGER NOT NULL, asked_by INTEGER NOT NULL,
        truncated INTEGER NOT NULL, empty INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        size INTEGER NOT NULL, content_type TEXT NOT NULL, compressed INTEGER NOT NULL, checksum INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX IF NOT EXISTS answers_by_key ON answers (key, taken_by);
    CREATE TABLE IF NOT EXISTS failures (attempt INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY (attempt, key)) WITHOUT ROWID;
"""
_FIRST_ATTEMPT: Final = 1
_NEXT_OF_FIRST_ATTEMPT: Final = """
    SELECT id, asked_by, truncated, empty, prompt_tokens, completion_tokens, size, content_type FROM answers
    WHERE key = ? AND taken_by = 0 ORDER BY id LIMIT 1
"""
# A search in the index for each earlier attempt, so that it makes no difference how often a body was asked.
_NEXT: Final = """
    SELECT id, asked_by, truncated, empty, prompt_tokens, completion_tokens, size, content_type FROM answers WHERE id = (
        SELECT min((SELECT min(id) FROM answers WHERE key = ?1 AND taken_by = number))
        FROM (SELECT 0 AS number UNION ALL SELECT number FROM attempts WHERE number < ?2)
    )
"""
_FIRST: Final = """
    SELECT id, asked_by, truncated, empty, prompt_tokens, completion_tokens, size, content_type FROM answers WHERE key = ?
    ORDER BY id LIMIT 1
"""
_INSERT: Final = """
    INSERT INTO answers (key, taken_by, asked_by, truncated, empty, prompt_tokens, completion_tokens, size, content_type,
        compressed, checksum, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_TAKEN: Final = """
    SELECT count(*), count(*) FILTER (WHERE asked_by <> taken_by), ifnull(sum(truncated), 0), ifnull(sum(empty), 0),
        ifnull(sum(prompt_tokens), 0), ifnull(sum(completion_tokens), 0) FROM answers WHERE taken_by = ?
"""
_NOBODY: Final = 0
_BUSY_SECONDS: Final = 0.1
_MIN_COMPRESSED_BYTES: Final = 2048
_ROW_BYTES: Final = 200
"""What a row takes beside the body, with its place in the index: about, and rather more."""


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer in the file. Its body is read later, when there is room for it."""

    row: int
    replayed: bool
    """Whether another attempt, or another job, asked the question."""
    facts: Facts
    size: int
    content_type: str


class Resumed(NamedTuple):
    """An attempt, and what it was given so far."""

    attempt: int
    """Its number, which is higher than those of earlier ones."""
    failed: set[bytes]
    """The keys of the questions that have failed, and were not answered since."""
    answered: int
    replayed: int
    truncated: int
    empty: int
    prompt_tokens: int
    completion_tokens: int


class UnusableRecordingError(Exception):
    """A recording can't be used, so the attempt goes on without."""


class Recording:
    """A file of answers."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises OSError, sqlite3.Error if that is impossible."""
        self.max_bytes = 0
        """Nothing more is recorded beyond this size."""
        self._database = _open_or_set_aside(path)
        self._bytes = self._number("PRAGMA page_count") * self._number("PRAGMA page_size")
        self._full = False
        self.error = ""
        """Why answers can't be recorded; empty: they can, as far as is known."""

    def resume(self, name: str) -> "Resumed":
        """Begin an attempt, or go on with it after this gateway was started again. Raises UnusableRecordingError."""
        try:
            self._database.execute("INSERT OR IGNORE INTO attempts (name) VALUES (?)", (name,))
            attempt = self._number("SELECT number FROM attempts WHERE name = ?", name)
            counts = self._database.execute(_TAKEN, (attempt,)).fetchone()
            failed = self._database.execute("SELECT key FROM failures WHERE attempt = ?", (attempt,)).fetchall()
        except sqlite3.Error as error:
            raise UnusableRecordingError(str(error)) from error
        return Resumed(attempt, {key for (key,) in failed}, *counts)

    def next(self, key: bytes, attempt: int) -> RecordedAnswer | None:
        """Return the next answer to a question in the attempt; None: it has to be asked."""
        first = attempt == _FIRST_ATTEMPT  # as most are, so that this search is as short as it can be
        row = self._read(_NEXT_OF_FIRST_ATTEMPT, key) if first else self._read(_NEXT, key, attempt)
        return _recorded(row, attempt) if row else None

    def first(self, key: bytes) -> RecordedAnswer | None:
        """Return the first answer to a question, for another job."""
        row = self._read(_FIRST, key)
        return _recorded(row, _NOBODY) if row else None

    def body(self, row: int) -> bytes | None:
        """Return the body of an answer; None: it is damaged, and is never found again."""
        found = self._read("SELECT key, compressed, checksum, body FROM answers WHERE id = ?", row)
        if found is not None:
            key, compressed, checksum, body = found
            if checksum == zlib.crc32(body, zlib.crc32(key)):
                return zlib.decompress(body) if compressed else body
        self._write("DELETE FROM answers WHERE id = ?", row)
        return None

    def take(self, row: int, attempt: int) -> bool:
        """Note that the attempt is given an answer, and return whether that was possible."""
        return self._write("UPDATE answers SET taken_by = ? WHERE id = ?", attempt, row) is not None

    def give_back(self, row: int) -> None:
        """Note that the client did not take an answer, so that it is the next one's."""
        self.take(row, _NOBODY)

    def add(
        self, key: bytes, attempt: int, body: bytes, content_type: str, facts: Facts, *, taken: bool, own: bool = True
    ) -> int:
        """Record an answer, and return its row; 0: that was impossible.

        `taken`: the attempt is given it at once. `own`: it asked for it.
        """
        kept = zlib.compress(body, 1) if len(body) >= _MIN_COMPRESSED_BYTES else body
        size = len(kept) + _ROW_BYTES
        if self._full or self._bytes + size > self.max_bytes:
            self._fails(f"the recording has reached its {self.max_bytes} bytes")
            self._full = True
            return 0
        taken_by, asked_by = (attempt if taken else _NOBODY), (attempt if own else _NOBODY)
        checksum = zlib.crc32(kept, zlib.crc32(key))
        row = self._write(_INSERT, key, taken_by, asked_by, *facts, len(body), content_type, kept is not body, checksum, kept)
        self._bytes += size
        return row or 0

    def note_failure(self, key: bytes, attempt: int) -> None:
        """Note that a question has failed."""
        self._write("INSERT OR IGNORE INTO failures VALUES (?, ?)", attempt, key)

    def clear_failure(self, key: bytes, attempt: int) -> None:
        """Note that a question that had failed was answered."""
        self._write("DELETE FROM failures WHERE attempt = ? AND key = ?", attempt, key)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _read(self, query: str, *arguments: object) -> Any:
        """Return a row; None: there is none, or it can't be read."""
        try:
            return self._database.execute(query, arguments).fetchone()
        except sqlite3.Error as error:
            self._fails(str(error))
            return None

    def _write(self, statement: str, *arguments: object) -> int | None:
        """Write and commit. Return the row that was inserted, if any; None: it was impossible."""
        try:
            row = self._database.execute(statement, arguments).lastrowid or 0
        except sqlite3.Error as error:
            self._fails(str(error))
            return None
        self.error = self.error if self._full else ""
        return row

    def _fails(self, reason: str) -> None:
        if not self.error:
            _LOGGER.error("answers can't be recorded", extra={"reason": reason})
        self.error = reason

    def _number(self, query: str, *arguments: str) -> int:
        return int(self._database.execute(query, arguments).fetchone()[0])


class Recordings:
    """The recordings in use, each opened once: two attempts of a job may overlap, and jobs lend each other answers."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[Recording, int]] = {}

    def acquire(self, path: Path) -> Recording | None:
        """Return the recording of a path; None, with an entry in the log, if it can't be opened."""
        recording, users = self._open.get(path, (None, 0))
        try:
            recording = recording or Recording(path)
        except (OSError, sqlite3.Error) as error:
            _LOGGER.error("a recording can't be opened", extra={"path": str(path), "reason": str(error)})  # noqa: TRY400
            return None
        self._open[path] = recording, users + 1
        return recording

    def acquire_existing(self, path: Path) -> Recording | None:
        """Return the recording of a path, or None if there is none, or none that can be opened."""
        return self.acquire(path) if path.is_file() else None

    def release(self, path: Path) -> None:
        """Say that one user less needs the recording. The last one closes it."""
        recording, users = self._open.pop(path)
        if users > 1:
            self._open[path] = recording, users - 1
        else:
            recording.close()


def _open_or_set_aside(path: Path) -> sqlite3.Connection:
    _require_regular(path)
    try:
        return _open(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # it can't be opened now, which says nothing of what is in it
            raise
        _LOGGER.error("a recording is damaged, and set aside", extra={"path": str(path), "reason": str(error)})  # noqa: TRY400
        path.rename(path.with_name(f"{path.name}.damaged"))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=OFF")
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _require_regular(path: Path) -> None:
    """Raise OSError if something else than a file, such as a link, is in the place of the recording."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(f"{path} is no regular file")


def _recorded(row: tuple[int, int, int, int, int, int, int, str], attempt: int) -> RecordedAnswer:
    number, asked_by, truncated, empty, prompt_tokens, completion_tokens, size, content_type = row
    facts = Facts(bool(truncated), bool(empty), prompt_tokens, completion_tokens)
    return RecordedAnswer(number, asked_by != attempt, facts, size, content_type)
