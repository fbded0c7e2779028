"""Connections to the database: how long anything may take, and what is said where there is none."""

import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from evalrpc.errors import ConfigurationError, StoreUnavailableError
from evalrpc.store.base import RETRY_DELAY_SECONDS

Connection = psycopg.Connection[Any]

_CONNECT_SECONDS: Final = 5
_SILENCE_MS: Final = 10_000
"""How long what was sent may stay without an answer of the other host before a connection is taken for cut."""

_READER: Final = "-c default_transaction_read_only=on -c statement_timeout=60s"
_WRITER: Final = (
    "-c synchronous_commit=on -c lock_timeout=10s -c statement_timeout=60s"
    " -c idle_in_transaction_session_timeout=10s"  # a server that is stopped within a commit must not hold up the others
)


def connect_writer(conninfo: str) -> Connection:
    """Connect to write. Raises psycopg.Error."""
    return _connect(conninfo, _WRITER)


def connect_reader(conninfo: str) -> Connection:
    """Connect to read only. Raises psycopg.Error."""
    return _connect(conninfo, _READER)


def shown(conninfo: str) -> str:
    """Return which database this is, without a secret: `NAME at HOST`."""
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.Error:
        return "the database"
    return f"the database {given.get('dbname', '')} at {given.get('host', 'the local socket')}".replace("  ", " ")


def unreachable(conninfo: str, error: Exception) -> StoreUnavailableError:
    """Return the error for calls, where the database can't be reached."""
    return unavailable(f"{shown(conninfo)} can't be reached: {brief(error)}; see that it runs, and try again")


def unavailable(message: str) -> StoreUnavailableError:
    """Return an error after which a client may try again."""
    return StoreUnavailableError(message, retry_delay_seconds=RETRY_DELAY_SECONDS)


def brief(error: Exception) -> str:
    """Return the first line of what the database has said."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_cut(error: psycopg.Error) -> bool:
    """Tell whether an error means that the connection is gone: without a word, or since the database ended the session."""
    state = error.sqlstate or ""
    return (not state and isinstance(error, psycopg.OperationalError)) or state.startswith(("08", "57P")) or state == "25P03"


def require_valid(conninfo: str) -> None:
    """Raise ConfigurationError for what does not say where a database is. The text may have a password, so it is not shown."""
    try:
        conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        raise ConfigurationError("setting store: must be as in postgresql://USER@HOST/DATABASE") from error


class Readers:
    """A connection for each thread that reads, made anew where it was cut."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._is_closed = False

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection, on which every statement is a transaction of its own. Raises StoreUnavailableError."""
        try:
            yield self._connection()
        except psycopg.Error as error:
            raise unavailable(f"{shown(self._conninfo)} can't be read: {brief(error)}; try again") from error

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection within a transaction, so that all queries see the same state. Raises StoreUnavailableError."""
        with self.reading() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            try:
                yield connection
            finally:
                with suppress(psycopg.Error):
                    connection.execute("COMMIT")

    def close(self) -> None:
        """Close all."""
        with self._lock:
            self._is_closed = True
            connections, self._connections = self._connections, set()
        for connection in connections:
            connection.close()

    def _connection(self) -> Connection:
        if self._is_closed:
            raise unavailable("the store is closed")
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None and not connection.closed and _is_idle(connection):
            return connection
        if connection is not None:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
        try:
            connection = self._local.connection = connect_reader(self._conninfo)
        except psycopg.Error as error:
            raise unreachable(self._conninfo, error) from error
        with self._lock:
            self._connections.add(connection)
        return connection


def _is_idle(connection: Connection) -> bool:
    """Tell whether a connection can be used: it is in no transaction, and was not cut. One that was cut while nobody used it
    shows that by having something to read."""
    is_idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    return is_idle and not readable([connection.pgconn.socket], 0)


def readable(descriptors: Sequence[int], timeout_seconds: float) -> list[int]:
    """Wait until there is something to read, and return where; nothing, once the time is up. Raises OSError."""
    poll = select.poll()  # as `select.select`, for any number of open files
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(timeout_seconds * 1000)]


def _connect(conninfo: str, options: str) -> Connection:
    given = conninfo_to_dict(conninfo)
    options = f"{given.pop('options', '') or ''} {options}".strip()
    more: dict[str, Any] = {
        "application_name": "evalrpc",
        "client_encoding": "utf8",  # of a database without an encoding of its own, texts are bytes otherwise
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": _SILENCE_MS,
    }
    return psycopg.connect(**{**more, **given}, options=options, autocommit=True)
