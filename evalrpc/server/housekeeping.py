"""Periodic background work: keep what is kept small, erase what was deleted, measure the rest, and give memory back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final

from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.preparations.prepared_models import PreparedModels
from evalrpc.scheduling.shares import KEPT_HALF_LIVES
from evalrpc.server.job_files import JobFiles
from evalrpc.server.kept_bytes import KeptBytes
from evalrpc.server.memory import Memory
from evalrpc.server.problems import Problems
from evalrpc.server.removals import Removals
from evalrpc.server.retention import Retention
from evalrpc.store.base import Store

INTERVAL_SECONDS: Final = 60.0

_ORPHANS_EVERY: Final = 60  # rounds

_log = logging.getLogger(__name__)

_Step = Callable[[], Awaitable[object]]


class Housekeeper:
    """Runs on the event loop. `remover` has one thread, on which all files are removed.

    Each step is done for itself: whatever goes wrong in one is logged, once for as long as it is the same, and tried again in
    the next round, without a consequence for the others.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        data_dir: Path,
        settings: Settings,
        remover: Executor,
        entitlements: Entitlements,
        prepared_models: PreparedModels,
        memory: Memory,
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._remover = remover
        self._removals = Removals(store, data_dir)
        files = JobFiles(store, data_dir, lambda: self._removals.stopping)
        self._retention = Retention(store, clock, settings, self._removals, files)
        self._kept_bytes = KeptBytes(files, entitlements)
        self._prepared_models = prepared_models
        self._problems = Problems(_log, "do a step of housekeeping", "step")
        self._memory = memory
        self._round = 0

    async def run(self) -> None:
        """Run at once, then periodically, until cancelled. The files, which may take long, hold up nothing else."""
        await asyncio.gather(
            self._repeat(
                {
                    "compact the journal": self._compact_journal,
                    "erase deleted jobs": self._erase,
                    "forget old attempts": self._forget_uses,
                }
            ),
            self._repeat(
                {
                    "empty the caches of the store": partial(self._on_remover, self._store.shrink),
                    "give memory back": partial(self._on_remover, self._memory.give_back),
                    "remove folders of no job": self._remove_orphans,
                    "remove the rest of deleted jobs": partial(self._on_remover, self._removals.retry),
                    "delete old jobs": partial(self._on_remover, self._retention.sweep),
                    "delete jobs that are too large together": partial(self._on_remover, self._retention.sweep_bytes),
                    "remove prepared models": partial(self._on_remover, self._evict_models),
                    "measure the files of owners": partial(self._on_remover, self._kept_bytes.measure),
                }
            ),
        )

    def stop(self) -> None:
        """Interrupt a removal in progress; the next server continues it."""
        self._removals.stop()

    def remove_files_of(self, job_id: str) -> None:
        """Have the files of a deleted job removed, to which no other job refers. Does not wait for it."""
        self._remover.submit(self._remove_files, job_id)

    async def _repeat(self, steps: Mapping[str, _Step]) -> None:
        while True:
            for name, step in steps.items():
                await self._try(name, step)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _try(self, name: str, step: _Step) -> None:
        try:
            await step()
        except Exception as error:  # noqa: BLE001 - whatever fails in one step, the others and the next round go on
            self._problems.report_error(name, error)
        else:
            self._problems.solve(name)

    async def _on_remover(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._remover, work)

    def _remove_files(self, job_id: str) -> None:
        try:
            self._removals.remove(job_id)
        except Exception:  # noqa: BLE001 - nobody waits for it; the folder stays, so it is found again
            _log.exception("a bug keeps the files of a deleted job", extra={"job_id": job_id})

    def _evict_models(self) -> None:
        """Remove the prepared models that are too old, or too large together. Raises OSError where some can't be removed."""
        settings = self._settings
        left = self._prepared_models.evict(
            settings.preparation_max_age_seconds, settings.preparation_max_bytes, lambda: self._removals.stopping
        )
        if left and not self._removals.stopping:
            raise OSError(f"{left[0].entry_count} files of a prepared model are left, the first one: {left[0].problem}")

    async def _remove_orphans(self) -> None:
        """Look at all folders at the start, and now and then."""
        if self._round % _ORPHANS_EVERY == 0:
            await self._on_remover(self._removals.remove_orphans)
        self._round += 1

    async def _forget_uses(self) -> None:
        """Drop what attempts used so long ago that it counts no more."""
        kept_seconds = KEPT_HALF_LIVES * self._settings.share_half_life_seconds
        before_ns = max(0, self._clock.now().ToNanoseconds() - int(kept_seconds * 1e9))
        await asyncio.wrap_future(self._store.forget_uses(before_ns))

    async def _compact_journal(self) -> None:
        """Drop what exceeds the settings, a bounded number of events at a time."""
        cutoff = self._clock.now()
        cutoff.FromNanoseconds(max(0, cutoff.ToNanoseconds() - int(self._settings.journal_max_age_seconds * 1e9)))
        max_events, max_bytes = self._settings.journal_max_events, self._settings.journal_max_bytes
        before = -1
        while before != self._store.oldest_revision:
            before = self._store.oldest_revision
            await asyncio.wrap_future(self._store.compact(max_events, cutoff, max_bytes))

    async def _erase(self) -> None:
        await asyncio.wrap_future(self._store.erase())
