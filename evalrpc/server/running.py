"""When a server runs jobs: at once, where it is the only one on its store; else once it has the lease, until it loses that."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

from evalrpc.config import Settings
from evalrpc.executors.base import Executor
from evalrpc.scheduling.scheduler import Scheduler
from evalrpc.store.base import FollowedStore


@runtime_checkable
class LeasingStore(Protocol):
    """What a store has that several servers share."""

    def run_for(self, host: str, lease_seconds: float, on_taken: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Try to be the server that runs the jobs."""

    def stop_trying(self) -> None:
        """Try no more, and keep what there is, for as long as it holds by itself."""

    def stop_running(self) -> None:
        """Leave that to another server."""


def host_name(settings: Settings) -> str:
    """Return by what name the runs of this machine are known to the servers of others."""
    return settings.host_name or socket.gethostname()


class Running:
    """Runs the jobs of a server, and keeps house, from `begin` on or later. Created on the event loop."""

    def __init__(
        self,
        settings: Settings,
        store: FollowedStore,
        executor: Executor,
        scheduler: Scheduler,
        keep_house: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._settings = settings
        self._leasing: LeasingStore | None = store if isinstance(store, LeasingStore) else None
        self._executor = executor
        self._scheduler = scheduler
        self._keep_house = keep_house
        self._loop = asyncio.get_running_loop()
        self._housekeeping: asyncio.Task[None] | None = None
        self._takeover: threading.Thread | None = None
        self._is_begun = False
        self._has_ceased = False
        self._decided = threading.Event()
        self.has_lost_lease = False
        """Whether it ran jobs and may do so no more: it has let go of its runs, and the server should stop."""

    def begin(self) -> None:
        """Run jobs, at once or when it is this server's turn. Raises what `Executor.prepare` raises."""
        self._executor.prepare()
        if self._leasing is None:
            self._run_jobs()
        else:
            host, seconds = host_name(self._settings), self._settings.lease_seconds
            self._leasing.run_for(host, seconds, self._take_over, self._let_go)

    def wait_over(self) -> None:
        """Block until no job is started any more: after `stop`, because of a bug, or because the lease is lost."""
        self._decided.wait()
        if self._is_begun:
            self._scheduler.wait_stopped()

    def cease(self) -> None:
        """Keep no house any more. Called on the event loop."""
        self._has_ceased = True
        if self._housekeeping is not None:
            self._housekeeping.cancel()

    def stop(self) -> None:
        """Let go of all runs, which go on, for the next server. Blocks."""
        if self._leasing is not None:
            self._leasing.stop_trying()
        if self._takeover is not None:
            self._takeover.join()
        self._decided.set()
        self._scheduler.stop()
        if self._leasing is not None:
            self._leasing.stop_running()

    def _take_over(self) -> None:
        """Begin in a thread, since the lease must be renewed meanwhile."""
        self._takeover = threading.Thread(target=self._run_jobs, name="takeover", daemon=True)
        self._takeover.start()

    def _run_jobs(self) -> None:
        try:
            self._scheduler.start()
            self._is_begun = True
            self._loop.call_soon_threadsafe(self._begin_housekeeping)
        finally:
            self._decided.set()

    def _begin_housekeeping(self) -> None:
        if not self._has_ceased:
            self._housekeeping = self._loop.create_task(self._keep_house())

    def _let_go(self) -> None:
        self.has_lost_lease = True
        self._scheduler.let_go()
