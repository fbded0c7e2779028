"""When a server runs jobs: at once, where it is the only one on its store. Else it sees to the runs of its machine once it has
the lease for that, and places jobs once it has that of the scheduler, until it loses one of them."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from evalrpc.errors import StoreUnavailableError
from evalrpc.executors.base import Executor
from evalrpc.scheduling.duty import Duty
from evalrpc.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from evalrpc.store.postgres.store import PostgresStore

_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Running:
    """Runs the jobs of a server, and keeps house, from `begin` on or later. Created on the event loop.

    `sharing`: the store, where several servers share it, with the name of this machine, and what describes that.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        duty: Duty,
        keep_house: Callable[[], Coroutine[Any, Any, None]],
        sharing: "Sharing | None" = None,
    ) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._duty = duty
        self._keep_house = keep_house
        self._sharing = sharing
        self._loop = asyncio.get_running_loop()
        self._housekeeping: asyncio.Task[None] | None = None
        self._takeovers: list[threading.Thread] = []
        self._is_begun = False
        self._has_ceased = False
        self._stopping = threading.Event()
        self._decided = threading.Event()
        self.lost = ""
        """Why it may run no jobs any more: it has let go of its runs, and the server should stop."""

    def require_own_name(self) -> None:
        """Wait until no other machine has the name of this one. Blocks. Raises ConfigurationError if one keeps it."""
        if self._sharing is not None:
            self._sharing.require_own_name(self._stopping.wait)

    def begin(self) -> None:
        """Run jobs, at once or when it is this server's turn. Raises what `Executor.prepare` raises."""
        self._executor.prepare()
        if self._sharing is None:
            self._run_jobs()
            self._loop.call_soon_threadsafe(self._begin_housekeeping)
            if self._scheduler.may_have_leftovers:
                self._begin_thread(self._look_for_leftovers)
        else:
            self._sharing.take_part(self._take_over_host, self._take_over_scheduling, self._let_go)

    def wait_over(self) -> None:
        """Block until no job is started any more: after `stop`, because of a bug, or because a lease is lost."""
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
        self._stopping.set()
        if self._sharing is not None:
            self._sharing.store.stop_trying()
        for takeover in self._takeovers:
            takeover.join()
        self._decided.set()
        self._scheduler.stop()
        if self._sharing is not None:
            self._sharing.store.stop_running(has_runs=self._scheduler.has_runs_on(self._sharing.host))

    def _take_over_host(self) -> None:
        self._begin_thread(self._run_jobs)

    def _take_over_scheduling(self) -> None:
        self._begin_thread(self._place_jobs)

    def _begin_thread(self, work: Callable[[], None]) -> None:
        """Do something in a thread, behind what was begun before, since the leases must be renewed meanwhile."""
        before = list(self._takeovers)

        def run() -> None:
            for thread in before:
                thread.join()
            work()

        thread = threading.Thread(target=run, name="takeover", daemon=True)
        self._takeovers.append(thread)
        thread.start()

    def _run_jobs(self) -> None:
        try:
            if self._catch_up():
                self._scheduler.start()
                self._is_begun = True
        finally:
            self._decided.set()

    def _place_jobs(self) -> None:
        if self._is_begun and self._catch_up():
            self._duty.places_jobs = True
            self._scheduler.begin_placing()
            self._loop.call_soon_threadsafe(self._begin_housekeeping)
            self._look_for_leftovers()

    def _look_for_leftovers(self) -> None:
        """Do so until it is known what is left: Slurm may not answer."""
        while self._scheduler.may_have_leftovers and not self._stopping.is_set():
            self._scheduler.look_for_leftovers()
            self._stopping.wait(_LOOK_SECONDS if self._scheduler.may_have_leftovers else 0)

    def _catch_up(self) -> bool:
        """Wait until this server knows what those before it have committed. Return False if it stops first."""
        while self._sharing is not None and not self._stopping.is_set():
            try:
                self._sharing.store.catch_up()
            except StoreUnavailableError as error:
                _log.warning("can't take over yet: %s", error)
                self._stopping.wait(_RETRY_SECONDS)
            else:
                break
        return not self._stopping.is_set()

    def _begin_housekeeping(self) -> None:
        if not self._has_ceased:
            self._housekeeping = self._loop.create_task(self._keep_house())

    def _let_go(self, reason: str) -> None:
        self.lost = reason
        self._stopping.set()
        self._decided.set()
        self._scheduler.let_go()


class Sharing:
    """A store of several servers, with what this one says of its machine."""

    def __init__(
        self,
        store: "PostgresStore",
        host: str,
        describe: Callable[[], str],
        is_elsewhere: Callable[[str], bool],
        lease_seconds: float,
    ) -> None:
        self.store = store
        self.host = host
        self._describe = describe
        self._is_elsewhere = is_elsewhere
        self._lease_seconds = lease_seconds

    def require_own_name(self, wait: Callable[[float], bool]) -> None:
        """Wait until no other machine has the name of this one; or until `wait`, for so many seconds, returns True. Raises
        ConfigurationError."""
        self.store.require_own_name(self.host, self._is_elsewhere, self._lease_seconds, wait)

    def take_part(self, on_host: Callable[[], None], on_scheduler: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """Try to get the leases."""
        from evalrpc.store.postgres.lease import Part

        part = Part(self.host, self._describe, on_host, on_scheduler, on_lost, self._is_elsewhere)
        self.store.take_part(part, self._lease_seconds)
