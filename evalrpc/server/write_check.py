"""Whether the server can write, found out by writing: so its health says when a disk of its data folder is full or fails."""

import asyncio
import logging
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from evalrpc.errors import StoreUnavailableError
from evalrpc.files.private import create_private_file
from evalrpc.jobs.paths import JOBS_DIR
from evalrpc.server.health import Health
from evalrpc.store.base import Store

INTERVAL_SECONDS: Final = 5.0

TIMEOUT_SECONDS: Final = 30.0
"""How long a write may take before the disk is taken for one that hangs."""

MIN_FREE_BYTES: Final = 1024 * 1024
"""How much has to fit on the disk of the data folder."""

_PROBE_NAME: Final = "write-check"

_log = logging.getLogger(__name__)


class WriteCheck:
    """Suspends the health while the store can't commit, or less than 1 MiB can be written to the data folder, or to that of the
    jobs' files where this is a disk of its own. Runs on the event loop; `readers` writes."""

    def __init__(self, store: Store, data_dir: Path, health: Health, readers: Executor) -> None:
        self._store = store
        self._data_dir = data_dir
        self._health = health
        self._readers = readers
        self._problem = ""
        self._writing: asyncio.Task[str] | None = None  # goes on where it takes too long, so that no second one hangs, too

    async def run(self) -> None:
        """Check at once, then periodically, until cancelled."""
        try:
            while True:
                self._note(await self._find_problem())
                await asyncio.sleep(INTERVAL_SECONDS)
        finally:
            if self._writing is not None:
                self._writing.cancel()

    async def _find_problem(self) -> str:
        """Return what keeps the server from writing; empty: nothing."""
        self._writing = self._writing or asyncio.create_task(self._write())
        done, _ = await asyncio.wait((self._writing,), timeout=TIMEOUT_SECONDS)
        if not done:
            return f"a write takes longer than {TIMEOUT_SECONDS:g} seconds"
        self._writing = None
        return done.pop().result()

    async def _write(self) -> str:
        """Write, and return what went wrong."""
        try:
            problem = await asyncio.get_running_loop().run_in_executor(self._readers, self._write_probes)
            await asyncio.wrap_future(self._store.check_writable())
        except StoreUnavailableError as error:
            return error.message
        return problem

    def _write_probes(self) -> str:
        """Take up room on each disk, and give it back. Return what went wrong."""
        folder = self._data_dir
        try:
            _write_probe(folder / _PROBE_NAME)
            if (folder := folder / JOBS_DIR).is_mount():
                _write_probe(folder / _PROBE_NAME)
        except OSError as error:
            return f"{folder} can't be written: {error.strerror}"
        return ""

    def _note(self, problem: str) -> None:
        """Change the health if the problem has come, or gone, and log what has changed."""
        if problem and problem != self._problem:
            _log.error("not serving, since the server can't write: %s", problem)
            self._health.suspend()
        elif self._problem and not problem:
            _log.info("serving again: the server can write")
            self._health.resume()
        self._problem = problem


def _write_probe(path: Path) -> None:
    """Raises OSError."""
    try:
        with create_private_file(path) as file:
            os.posix_fallocate(file.fileno(), 0, MIN_FREE_BYTES)
    finally:
        path.unlink(missing_ok=True)
