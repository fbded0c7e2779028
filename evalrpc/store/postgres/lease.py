"""The leases of one server: that of its machine, with which it sees to the runs there, and then, if it can get it, that of the
scheduler, with which it places jobs on all machines.

A lease expires by the database's clock. Its holder trusts it by its own, from before it asked for it, and for less long: so it
has stopped to trust it before anybody else gets it, and starts nothing from then on. Once it hears that another server has a
lease of its own, it lets go of everything, for good. What it writes is refused by the fence, whatever it believes.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

import psycopg

from evalrpc.clock import Clock
from evalrpc.errors import ConfigurationError
from evalrpc.store.postgres import lease_rows
from evalrpc.store.postgres.connecting import Connection, brief, connect_writer
from evalrpc.store.postgres.lease_rows import NO_LEASES, SCHEDULER, LeaseTable

TRUSTED_PART: Final = 0.8
"""How much of its time a lease is trusted by its holder."""

_RENEWALS: Final = 4
"""How often a lease is renewed while it would hold."""
_SLACK_SECONDS: Final = 0.02
_LOOK_SECONDS: Final = 0.1
_RENEWED_PART: Final = 0.1  # of its time, by which the end of a lease moves at least when it is renewed

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
    on_lost: Callable[[str], None]
    """Is called once at most with the reason, when another server has taken over."""
    is_elsewhere: Callable[[str], bool] = lambda _: False
    """Returns whether a description is of another machine than this one."""


def is_taken_elsewhere(leases: LeaseTable, host: str, is_elsewhere: Callable[[str], bool]) -> bool:
    """Return whether a server of another machine sees to the runs of a machine with the name of this one."""
    row = leases.rows.get(host)
    return row is not None and row.remaining_seconds > 0 and is_elsewhere(row.description)


def named_twice(host: str) -> str:
    """Say what is wrong then."""
    return (
        f"setting host_name: a server of another machine sees to the runs of {host}: give each machine a name of its own, as "
        f"in --host-name {host}-2"
    )


def require_own_name(
    conninfo: str, host: str, is_elsewhere: Callable[[str], bool], seconds: float, should_stop: Callable[[float], bool]
) -> None:
    """Wait until no other machine with the name of this one is there: a lease that one of an earlier start has left expires.
    `should_stop` waits so many seconds, and returns whether to give up waiting.

    Raises ConfigurationError if the lease of another one is renewed, psycopg.Error.
    """
    fence, until_seconds = None, 0.0
    with connect_writer(conninfo) as connection:
        while True:
            leases, now_seconds = lease_rows.read_leases(connection), time.monotonic()
            if not is_taken_elsewhere(leases, host, is_elsewhere):
                return
            row = leases.rows[host]
            if fence is None:
                fence, until_seconds = row.fence, now_seconds + row.remaining_seconds
            elif row.fence != fence or now_seconds + row.remaining_seconds > until_seconds + seconds * _RENEWED_PART:
                raise ConfigurationError(named_twice(host))
            if should_stop(_LOOK_SECONDS):
                return


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
            return self._lose("another server has taken over from this one, which could not keep its lease")
        self._trusted_until_seconds = asked_seconds + TRUSTED_PART * self._seconds
        self._read(connection)
        if self._part.host not in renewed and is_taken_elsewhere(self._known, self._part.host, self._part.is_elsewhere):
            return self._lose(named_twice(self._part.host))
        for name, fence in renewed.items():  # a commit that took it, and was cut off
            self._note_taken(name, fence)
        self._publish(connection)
        self._take(connection)
        return True

    def _lose(self, reason: str) -> Literal[False]:
        self._trusted_until_seconds = 0.0
        _log.error("%s", reason)
        self._part.on_lost(reason)
        return False

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
