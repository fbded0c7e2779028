"""Hears that another server has committed. A notification only wakes: what has changed is read from the journal."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

import psycopg

from evalrpc.store.postgres.connecting import Connection, brief, connect_reader, readable

CHANNEL: Final = "evalrpc"
LEASES_CHANGED: Final = "0"
"""What is notified on it where leases have changed."""
PROGRESS_CHANNEL: Final = "evalrpc_progress"

POLL_SECONDS: Final = 2.0
"""How often one looks where no notification comes, since one may be lost with its connection."""

_RETRY_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


class Listening:
    """A thread that calls `wake` whenever something may have been committed, with the number of the change if that is known,
    and `wake_progress` when a server has said how far its runs have come."""

    def __init__(self, conninfo: str, wake: Callable[[int | None], None], wake_progress: Callable[[], None]) -> None:
        self._conninfo = conninfo
        self._wake = wake
        self._wake_progress = wake_progress
        self._stop_reader, self._stop_writer = os.pipe()
        self._is_stopped = False
        self._was_cut = False
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for that."""
        self._is_stopped = True
        os.write(self._stop_writer, b".")
        self._thread.join()
        os.close(self._stop_reader)
        os.close(self._stop_writer)

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                with closing(connect_reader(self._conninfo)) as connection:
                    connection.execute(f"LISTEN {CHANNEL}; LISTEN {PROGRESS_CHANNEL}")
                    self._note_cut(is_cut=False)
                    self._wake(None)  # what was committed before
                    self._hear(connection)
            except psycopg.Error as error:
                self._note_cut(is_cut=True, reason=brief(error))
                readable([self._stop_reader], _RETRY_SECONDS)

    def _hear(self, connection: Connection) -> None:
        """Wake for each notification, until stopped. Raises psycopg.Error."""
        pgconn = connection.pgconn
        while not self._is_stopped:
            ready = readable([pgconn.socket, self._stop_reader], POLL_SECONDS)
            heard: list[tuple[bytes, bytes]] = []
            if pgconn.socket in ready:
                pgconn.consume_input()
                while (notification := pgconn.notifies()) is not None:
                    heard.append((notification.relname, notification.extra))
                if not heard and pgconn.status != psycopg.pq.ConnStatus.OK:
                    raise psycopg.OperationalError("the connection was cut")
            numbers = [int(number) for channel, number in heard if channel == CHANNEL.encode()]
            if numbers or not ready:
                self._wake(None if 0 in numbers else max(numbers, default=None))
            if len(numbers) < len(heard) or not ready:
                self._wake_progress()

    def _note_cut(self, *, is_cut: bool, reason: str = "") -> None:
        if is_cut and not self._was_cut:
            _log.warning("the database can't be listened to, so it is asked instead once it is there: %s", reason)
        elif self._was_cut and not is_cut:
            _log.info("the database is listened to again")
        self._was_cut = is_cut
