"""Servers of several hosts in processes of their own, each started again when it has ended by itself, as systemd does."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from server_process import ServerProcess
from waiting import eventually

from evalrpc.store.postgres.lease_rows import read_leases


class ServerGroup:
    """The servers by host. Threads: any."""

    def __init__(self, by_host: Mapping[str, ServerProcess]) -> None:
        self.by_host = by_host
        self.restarts = 0
        """How often a server was started again that had ended by itself."""
        self._locks = {host: threading.Lock() for host in by_host}  # held while a server is started, or ended by a fault
        self._is_over = threading.Event()
        self._keeper = threading.Thread(target=self._keep_running, daemon=True)

    @property
    def any(self) -> ServerProcess:
        """One of them, for what is the same at all: where the files are."""
        return next(iter(self.by_host.values()))

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.by_host.values()]

    @property
    def address(self) -> str:
        """All addresses as one."""
        return f"ipv4:{','.join(self.addresses)}"

    @property
    def logs(self) -> str:
        return "".join(server.log_path.read_text() for server in self.by_host.values())

    def start(self) -> None:
        for server in self.by_host.values():
            _start(server)
        self._keeper.start()

    @contextmanager
    def down(self, host: str) -> Iterator[None]:
        """Kill a server, and start it again at the end."""
        with self._locks[host]:
            self.by_host[host].kill()
            yield
            _start(self.by_host[host])

    @contextmanager
    def kept_as_it_is(self, host: str) -> Iterator[ServerProcess]:
        """Start a server again only at the end, should it have ended meanwhile."""
        with self._locks[host]:
            yield self.by_host[host]

    def close(self) -> None:
        """End them, with all that runs."""
        self._is_over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for server in self.by_host.values():
            server.clean_up()

    def _keep_running(self) -> None:
        while not self._is_over.wait(0.1):
            for host, server in self.by_host.items():
                if self._locks[host].acquire(blocking=False):
                    try:
                        if server.has_ended:
                            self.restarts += 1
                            _start(server)
                    finally:
                        self._locks[host].release()


def scheduler_of(conninfo: str) -> str:
    """Return the host whose server is the scheduler; empty if none is just now."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        leases = read_leases(connection)
    return next((name for name, row in leases.rows.items() if name and leases.is_scheduler(row.server)), "")


def _start(server: ServerProcess) -> None:
    """Start a server, again where the database is not there."""

    def is_started() -> bool:
        try:
            server.start()
        except AssertionError:
            return False
        return True

    eventually(is_started, "for the server to start")
