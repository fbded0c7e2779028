"""Which of several servers runs the jobs: the one that has the lease, until it lets it expire.

The lease expires by the database's clock. Its holder trusts it by its own, from before it asked for it, and for less long: so
it has stopped to trust it before anybody else gets it. Each holder gets a higher fence, with which it writes: what a former
holder writes, since it stood still meanwhile, is refused.

Runs belong to their machine. So a lease passes to a server of another machine only while no job is RUNNING, or once an operator
has said that the machine is lost.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

import psycopg

from evalrpc.clock import Clock
from evalrpc.store.postgres.connecting import Connection, brief, connect_writer
from evalrpc.v1 import jobs_pb2 as pb

TRUSTED_PART: Final = 0.8
"""How much of its time a lease is trusted by its holder."""

_RENEWALS: Final = 4
"""How often a lease is renewed while it would hold."""

_TAKE: Final = f"""
UPDATE head SET runner = %(server)s, runner_host = %(host)s, fence = fence + CASE WHEN runner = %(server)s THEN 0 ELSE 1 END,
    lease_until = clock_timestamp() + %(seconds)s * interval '1 second'
WHERE (runner = %(server)s AND lease_until > clock_timestamp()) OR (lease_until < clock_timestamp() AND (
    runner_host IN ('', %(host)s) OR NOT EXISTS (SELECT FROM jobs WHERE status = {pb.JOB_STATUS_RUNNING})
)) RETURNING fence
"""
_GIVE_BACK: Final = "UPDATE head SET lease_until = clock_timestamp() WHERE runner = %s"
_HOLDER: Final = "SELECT runner_host, lease_until < clock_timestamp() FROM head"

_log = logging.getLogger(__name__)


class Lease:
    """Tries to get the lease, and keeps it. `on_taken` is called once with the fence, and `on_lost` once after that, should it
    be lost; both on the thread of the lease."""

    def __init__(
        self,
        conninfo: str,
        clock: Clock,
        server_id: str,
        host: str,
        seconds: float,
        on_taken: Callable[[int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._conninfo = conninfo
        self._clock = clock
        self._asked = {"server": server_id, "host": host, "seconds": seconds}
        self._seconds = seconds
        self._on_taken = on_taken
        self._on_lost = on_lost
        self._fence: int | None = None
        self._trusted_until_seconds = 0.0
        self._connection: Connection | None = None
        self._said = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Renew it no more. May be called again."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def close(self) -> None:
        """Give the lease back, if it is held, and wait for that. The caller runs nothing any more."""
        self.stop()
        try:
            if self._fence is not None:
                self._connected().execute(_GIVE_BACK, (self._asked["server"],))
        except psycopg.Error as error:
            _log.warning("the lease can't be given back, so it expires: %s", brief(error))
        self._disconnect()

    def _run(self) -> None:
        while not self._stopping.is_set():
            asked_seconds = self._clock.monotonic()
            fence = self._take()
            if fence is not None:
                self._trusted_until_seconds = asked_seconds + TRUSTED_PART * self._seconds
            if fence is not None and self._fence is None:
                self._fence = fence
                _log.info("this server runs the jobs from now on")
                self._on_taken(fence)
            elif self._fence is not None and (
                fence not in (None, self._fence) or self._clock.monotonic() >= self._trusted_until_seconds
            ):
                self._fence = None
                _log.error("this server could not keep its lease, so that another one may run the jobs")
                self._on_lost()
                return
            self._stopping.wait(self._seconds / _RENEWALS)

    def _take(self) -> int | None:
        """Get the lease, or keep it. Return the fence; None if that was not possible."""
        try:
            row = self._connected().execute(_TAKE, self._asked).fetchone()
            if row is None:
                self._say_why_not()
        except psycopg.Error as error:
            self._disconnect()
            _log.warning("the database can't be asked for the lease: %s", brief(error))
            return None
        return int(row[0]) if row is not None else None

    def _say_why_not(self) -> None:
        """Log that the runs of another machine keep this server from running jobs. Raises psycopg.Error."""
        row = self._connected().execute(_HOLDER).fetchone()
        host, is_expired = row or ("", False)
        why = host if is_expired else ""
        if why and why != self._said:
            _log.warning("host %s is out of reach: its jobs stay RUNNING until it is back, or `evalrpc node lost %s`", why, why)
        self._said = why

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect_writer(self._conninfo)
            self._connection.execute(f"SET statement_timeout = '{max(1, int(self._seconds * 500))}ms'")
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
