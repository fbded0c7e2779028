"""The file with the server's tokens, `data_dir/tokens.sqlite3`.

The command line writes it while the server reads it, so it is a database, with a rollback journal: it is one file, and a
reader never waits for long. It has no secret, only digests of secrets, and is private to the server's account even so.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.config.callers import ROLES, is_owner
from evalrpc.errors import ConfigurationError, SignInUnavailableError
from evalrpc.files.private import make_private_folder
from evalrpc.server.auth.token_format import ID_CHARACTERS

FILE_NAME: Final = "tokens.sqlite3"

_VERSION: Final = 1
_WRITE_TIMEOUT_SECONDS: Final = 10.0
_READ_TIMEOUT_SECONDS: Final = 0.4
_DIGEST_BYTES: Final = 32
_CREATE: Final = """
CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    owner TEXT NOT NULL,
    role TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER,
    revoked_ns INTEGER
) STRICT, WITHOUT ROWID
"""


class StoredToken(NamedTuple):
    """A token as it is kept. Times are in nanoseconds since 1970."""

    token_id: str
    digest: bytes
    """The SHA-256 of its secret."""
    owner: str
    role: str
    created_ns: int
    expires_ns: int | None = None
    """None: it does not expire."""
    revoked_ns: int | None = None
    """None: it was not revoked."""


class TokenStore:
    """The tokens, for the command line, which changes them."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / FILE_NAME

    def add(self, token: StoredToken) -> None:
        """Add a token. It is on disk once this returns. Raises ConfigurationError."""
        with self._writing() as connection:
            connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", token)

    def revoke(self, token_id: str, now_ns: int) -> bool:
        """Revoke a token, and return whether there is one of this id. Raises ConfigurationError."""
        if not self._path.exists():
            return False
        with self._writing() as connection:
            revoke = "UPDATE tokens SET revoked_ns = ifnull(revoked_ns, ?) WHERE token_id = ?"
            return connection.execute(revoke, (now_ns, token_id)).rowcount == 1

    def tokens(self) -> list[StoredToken]:
        """Return all tokens, the oldest first. Raises ConfigurationError."""
        try:
            with closing(TokenReader(self._data_dir)) as reader:
                return sorted(reader.read_if_changed() or (), key=lambda token: (token.created_ns, token.token_id))
        except SignInUnavailableError as error:
            raise ConfigurationError(error.message) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self._create()
            with closing(_connect(self._path, _WRITE_TIMEOUT_SECONDS)) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                if _version(connection) == 0:
                    connection.execute(_CREATE)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                _require_version(connection)
                yield connection
        except (sqlite3.Error, OSError, ValueError) as error:
            raise ConfigurationError(f"setting data_dir: can't change the tokens in {self._path}: {error}") from error

    def _create(self) -> None:
        """Make the file unless it is there, for the account that the data folder belongs to, also if root does it."""
        make_private_folder(self._data_dir)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        try:
            if os.geteuid() == 0:
                folder = self._data_dir.stat()
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
        finally:
            os.close(descriptor)


class TokenReader:
    """The tokens, for the server, which only reads them. Its calls may come from one thread after another."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._connection: sqlite3.Connection | None = None
        self._state: object = None

    def read_if_changed(self) -> Sequence[StoredToken] | None:
        """Return all tokens if they may have changed since the last call, else None. Without a file there are none.

        Raises SignInUnavailableError if they can't be read; the next call then reads all.
        """
        try:
            return self._read_if_changed()
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:  # TypeError: a damaged row
            self.close()
            raise SignInUnavailableError(f"can't read the tokens in {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file. The next call reads all."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._state = None, None

    def _read_if_changed(self) -> Sequence[StoredToken] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            is_news = self._state != "none"
            self.close()
            self._state = "none"
            return () if is_news else None
        file = status.st_dev, status.st_ino  # another file may have taken its place
        if self._connection is None or not isinstance(self._state, tuple) or self._state[0] != file:
            self.close()
            self._connection = _connect(self._path, _READ_TIMEOUT_SECONDS)
        state = file, self._connection.execute("PRAGMA data_version").fetchone()
        if state == self._state:
            return None
        tokens = _read_all(self._connection)  # after the version: what is committed in between is read again
        self._state = state
        return tokens


def _connect(path: Path, timeout_seconds: float) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?mode=rw"  # also to read: the first to open it undoes what a killed writer left
    return sqlite3.connect(name, uri=True, timeout=timeout_seconds, isolation_level=None, check_same_thread=False)


def _read_all(connection: sqlite3.Connection) -> list[StoredToken]:
    """Return all tokens. Raises sqlite3.Error, and ValueError for a database that is no store of tokens."""
    connection.execute("BEGIN")
    try:
        if _version(connection) == 0:
            _require_empty(connection)
            return []
        _require_version(connection)
        tokens = [StoredToken(*row) for row in connection.execute("SELECT * FROM tokens")]
    finally:
        connection.rollback()
    for token in tokens:
        _require_sound(token)
    return tokens


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _require_version(connection: sqlite3.Connection) -> None:
    if (version := _version(connection)) != _VERSION:
        raise ValueError(f"it has version {version}, and this evalrpc knows version {_VERSION}")


def _require_empty(connection: sqlite3.Connection) -> None:
    """A file that was just made has nothing yet; another database of version 0 has tables."""
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
        raise ValueError("it is another database")


def _require_sound(token: StoredToken) -> None:
    times = token.created_ns, token.expires_ns or 0, token.revoked_ns or 0
    is_sound = isinstance(token.digest, bytes) and len(token.digest) == _DIGEST_BYTES and token.role in ROLES
    if not (is_sound and len(token.token_id) == ID_CHARACTERS and is_owner(token.owner) and min(times) >= 0):
        raise ValueError("a row is damaged")
