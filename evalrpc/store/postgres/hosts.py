"""The machines of the servers on one database: as each server knows them, and those that an operator gives up."""

import threading
from collections.abc import Callable, Sequence

import psycopg

from evalrpc.errors import ConfigurationError
from evalrpc.store.base import HostState
from evalrpc.store.postgres import lease_rows
from evalrpc.store.postgres.connecting import brief, connect_writer, require_valid, shown
from evalrpc.store.postgres.lease_rows import SCHEDULER, LeaseTable


class HostsView:
    """The machines as of the latest reading, by whichever thread. `on_change` is called after each change, on that thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = -1
        self.hosts: Sequence[HostState] = ()
        """All machines, by name. The same object until something changes."""
        self.on_change: Callable[[], None] = lambda: None

    def take(self, leases: LeaseTable) -> None:
        """Take what was read, unless something newer is known."""
        hosts = tuple(
            HostState(row.name, row.description, row.remaining_seconds > 0, leases.is_scheduler(row.server))
            for row in leases.rows.values()
            if row.name != SCHEDULER
        )
        with self._lock:
            if leases.number < self._number or hosts == self.hosts:
                return
            self._number, self.hosts = leases.number, hosts
        self.on_change()

    def is_other_scheduling(self, host: str) -> bool:
        """Return whether the server of another machine places jobs."""
        return any(each.is_scheduler and each.name != host for each in self.hosts)


def give_up_host(conninfo: str, host: str) -> None:
    """Note that a machine is lost, with all its runs, so that these are tried again elsewhere.

    Raises ConfigurationError if there is no such machine, or a server there still sees to its runs.
    """
    require_valid(conninfo)
    try:
        with connect_writer(conninfo) as connection:
            if lease_rows.lose(connection, host):
                return
            known = lease_rows.read_leases(connection).rows
    except psycopg.Error as error:
        raise ConfigurationError(f"setting store: {shown(conninfo)} can't be used: {brief(error)}") from error
    if host in known and host != SCHEDULER:
        raise ConfigurationError(f"a server on {host} sees to its runs: stop it first, or wait until its lease expires")
    names = ", ".join(name for name in known if name != SCHEDULER) or "none"
    raise ConfigurationError(f"there is no host {host}, only: {names}; nothing was changed")
