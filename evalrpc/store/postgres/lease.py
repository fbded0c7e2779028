"""The leases of one server: that of its machine, with which it sees to the runs there, and then, if it can get it, that of the
scheduler, with which it places jobs on all machines.

A lease expires by the database's clock. Its holder trusts it by its own, from before it asked for it, and for less long: so it
has stopped to trust it before anybody else gets it, and starts nothing from then on. Once it hears that another server has a
lease of its own, it lets go of everything, for good. What it writes is refused by the fence, whatever it believes.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import psycopg

from evalrpc.clock import Clock
from evalrpc.store.postgres import lease_rows
from evalrpc.store.postgres.connecting import Connection, brief, connect_writer
from evalrpc.store.postgres.lease_rows import NO_LEASES, SCHEDULER, LeaseTable

TRUSTED_PART: Final = 0.8
"""How much of its time a lease is trusted by its holder."""

_RENEWALS: Final = 4
"""How often a lease is renewed while it would hold."""
_SLACK_SECONDS: Final = 0.02

_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What a server does of what several do together. All is called on the thread of the leases, and must be quick."""

    host: str
    """The name of its machine."""
    describe: Callable[[], str]
    """Returns what the machine has."""
    on_host: Callable[[], None]
    """Is called once, when it may see to the runs of its machine."""
    on_scheduler: Callable[[], None]
    """Is called once after that, when it may place jobs."""
    on_lost: Callable[[], None]
    """Is called once at most, when another server has taken over."""


class Leases:
    """A thread that tries to get the leases, and keeps them. `see` gets all leases whenever they were read."""

    def __init__(
        self, conninfo: str, clock: Clock, server_id: str, seconds: float, part: Part, see: Callable[[LeaseTable], None]
    ) -> None:
        self._conninfo = conninfo
        self._clock = clock
        self._server_id = server_id
        self._seconds = seconds
        self._part = part
        self._see = see
        self.held: Mapping[str, int] = {}
        """The fences of the leases that this server has, or had until it heard otherwise, by name."""
        self._trusted_until_seconds = 0.0
        self._known = NO_LEASES
        self._connection: Connection | None = None
        self._is_cut = False
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def is_trusted(self) -> bool:
        """Return whether no other server can have the leases of this one yet."""
        return bool(self.held) and self._clock.monotonic() < self._trusted_until_seconds

    def wake(self) -> None:
        """Look at once, since something may have changed."""
        self._woken.set()

    def stop(self) -> None:
        """Renew them no more. May be called again."""
        self._stopping = True
        self._woken.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def close(self, *, has_runs: bool) -> None:
        """Give them back, and wait for that. The caller runs nothing any more. `has_runs`: whether its machine does."""
        self.stop()
        held, self.held = self.held, {}
        try:
            if held:
                lease_rows.give_back(self._connected(), self._server_id, () if has_runs else (self._part.host,))
        except psycopg.Error as error:
            _log.warning("the lease can't be given back, so it expires: %s", brief(error))
        self._disconnect()

    def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                if not self._look():
                    return
                self._note_cut(None)
            except psycopg.Error as error:
                self._disconnect()
                self._note_cut(error)
            self._woken.wait(self._patience_seconds())

    def _look(self) -> bool:
        """Renew what there is, and take what can be had. Return False once another server has taken over. Raises
        psycopg.Error."""
        asked_seconds = self._clock.monotonic()
        connection, before = self._connected(), self.held
        renewed = lease_rows.renew(connection, self._server_id, self._seconds)
        if any(renewed.get(name) != fence for name, fence in before.items()):
            self._trusted_until_seconds = 0.0
            _log.error("another server has taken over from this one, which could not keep its lease")
            self._part.on_lost()
            return False
        self._trusted_until_seconds = asked_seconds + TRUSTED_PART * self._seconds
        self._read(connection)
        for name, fence in renewed.items():  # a commit that took it, and was cut off
            self._note_taken(name, fence)
        self._publish(connection)
        self._take(connection)
        return True

    def _publish(self, connection: Connection) -> None:
        host, description = self._part.host, self._part.describe()
        if host in self.held and host in self._known.rows and self._known.rows[host].description != description:
            lease_rows.describe_now(connection, host, self._server_id, description)
            self._read(connection)

    def _take(self, connection: Connection) -> None:
        while (name := self._wanted()) is not None and self._remaining_seconds(name) <= 0:
            asked_seconds = self._clock.monotonic()
            description = self._part.describe() if name == self._part.host else ""
            fence = lease_rows.take(connection, name, self._server_id, self._seconds, description)
            self._read(connection)
            if fence is None:
                return
            if not self.held:
                self._trusted_until_seconds = asked_seconds + TRUSTED_PART * self._seconds
            self._note_taken(name, fence)

    def _wanted(self) -> str | None:
        """Return which lease this server still lacks."""
        return next((name for name in (self._part.host, SCHEDULER) if name not in self.held), None)

    def _remaining_seconds(self, name: str) -> float:
        row = self._known.rows.get(name)
        return row.remaining_seconds if row is not None else 0.0

    def _note_taken(self, name: str, fence: int) -> None:
        if name in self.held:
            return
        self.held = {**self.held, name: fence}
        if name == SCHEDULER:
            _log.info("this server is the scheduler from now on")
            self._part.on_scheduler()
        else:
            _log.info("this server sees to the runs of host %s from now on", name)
            self._part.on_host()

    def _read(self, connection: Connection) -> None:
        self._known = lease_rows.read_leases(connection)
        self._see(self._known)

    def _patience_seconds(self) -> float:
        """Return when to look again: in time for what is held, and as soon as what is wanted may have expired."""
        name = self._wanted()
        renewal = self._seconds / _RENEWALS
        if name is None or self._is_cut or name not in self._known.rows:
            return renewal
        return min(renewal, max(0.0, self._remaining_seconds(name)) + _SLACK_SECONDS)

    def _note_cut(self, error: psycopg.Error | None) -> None:
        if error is not None and not self._is_cut:
            _log.warning("the database can't be asked for the lease: %s", brief(error))
        elif error is None and self._is_cut:
            _log.info("the database can be asked for the lease again")
        self._is_cut = error is not None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect_writer(self._conninfo)
            self._connection.execute(f"SET statement_timeout = '{max(1, int(self._seconds * 500))}ms'")
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
