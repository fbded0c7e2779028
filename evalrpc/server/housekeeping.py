"""Periodic background work: compact the journal, and remove what need not be kept."""

import asyncio
import logging
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.errors import StoreUnavailableError
from evalrpc.server.retention import Retention
from evalrpc.store.base import Store

INTERVAL_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class Housekeeper:
    """Runs on the event loop; blocking work goes to `executor`."""

    def __init__(self, store: Store, clock: Clock, data_dir: Path, settings: Settings, executor: Executor) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._executor = executor
        self._retention = Retention(store, clock, data_dir, settings.retention_max_age_seconds, settings.retention_max_jobs)
        self._orphans_removed = False

    async def run(self) -> None:
        """Run at once, then periodically, until cancelled. Disk errors are retried: a full disk may have room later."""
        while True:
            try:
                await self._clean_up()
            except (StoreUnavailableError, OSError) as error:
                _log.warning("can't clean up yet: %s", error)
            await asyncio.sleep(INTERVAL_SECONDS)

    def stop(self) -> None:
        """Interrupt a removal in progress; the next server continues it."""
        self._retention.stop()

    async def _clean_up(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._orphans_removed:
            await loop.run_in_executor(self._executor, self._retention.remove_orphans)
            self._orphans_removed = True
        await self._compact_journal()
        await loop.run_in_executor(self._executor, self._retention.sweep)

    async def _compact_journal(self) -> None:
        """Drop what exceeds the settings, a bounded number of events at a time."""
        cutoff = self._clock.now()
        cutoff.FromNanoseconds(max(0, cutoff.ToNanoseconds() - int(self._settings.journal_max_age_seconds * 1e9)))
        before = -1
        while before != self._store.oldest_revision:
            before = self._store.oldest_revision
            await asyncio.wrap_future(self._store.compact(self._settings.journal_max_events, cutoff))
