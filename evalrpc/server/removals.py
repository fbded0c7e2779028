"""Removal of the files of deleted jobs, until they are gone.

Nothing has to be remembered for it: what has the id of a job in the folder of jobs, and belongs to none, is to be removed, and
the store knows the folders outside of the data directory, since the commit that deleted the job. So what could not be removed,
or was not yet when the server died, is found again.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from evalrpc.errors import StoreUnavailableError
from evalrpc.files.trees import remove_tree
from evalrpc.jobs.ids import is_job_id
from evalrpc.jobs.paths import JOBS_DIR, job_dir
from evalrpc.server.problems import Problems
from evalrpc.store.base import Store

_PAGE: Final = 500

_log = logging.getLogger(__name__)


class Removals:
    """Removes what deleted jobs have on the disk. Blocks: all its methods but `stop` run on one thread."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        self._store = store
        self._data_dir = data_dir
        self._stopping = threading.Event()
        self._problems = Problems(_log, "remove all files of a deleted job", "job_id")

    @property
    def stopping(self) -> bool:
        """Whether it is to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Break off what is being removed; the next server goes on with it. May be called from any thread."""
        self._stopping.set()

    def remove(self, job_id: str) -> None:
        """Remove all that the server itself created on the disk for a job, once no job refers to it any more.

        What can't be removed is logged, and tried again by `retry`.
        """
        try:
            elsewhere = [removal.path for removal in self._store.pending_removals() if removal.job_id == job_id]
        except StoreUnavailableError as error:
            self._problems.report_error(job_id, error)
        else:
            self._remove(job_id, elsewhere)

    def retry(self) -> None:
        """Try again to remove what could not be removed before. Raises StoreUnavailableError."""
        elsewhere: dict[str, list[Path]] = {job_id: [] for job_id in self._problems.names}
        for removal in self._store.pending_removals():
            elsewhere.setdefault(removal.job_id, []).append(removal.path)
        for job_id, paths in elsewhere.items():
            self._remove(job_id, paths)

    def remove_orphans(self) -> int:
        """Remove the folders that no job refers to. Return how many are gone. Raises StoreUnavailableError, OSError."""
        return sum(self._remove(name, []) for name in self._orphans())

    def _remove(self, job_id: str, elsewhere: list[Path]) -> bool:
        """Remove the folders of a job. Return whether nothing is left."""
        tried = [*map(self._remove_elsewhere, elsewhere), self._remove_tree(job_dir(self._data_dir, job_id))]
        problem = "; ".join(filter(None, tried))
        if not problem:
            self._problems.solve(job_id)
        elif not self.stopping:
            self._problems.report(job_id, problem)
        return not problem

    def _remove_elsewhere(self, path: Path) -> str:
        problem = self._remove_tree(path)
        if not problem:
            try:
                self._store.forget_removal(str(path)).result()
            except StoreUnavailableError as error:
                return error.message
        return problem

    def _remove_tree(self, folder: Path) -> str:
        """Remove a folder. Return what is wrong, if it can't be removed as a whole."""
        remains = remove_tree(folder, self._stopping.is_set)
        return f"{remains.entry_count} files or folders in {folder}, the first one: {remains.problem}" if remains else ""

    def _orphans(self) -> Iterator[str]:
        with suppress(FileNotFoundError), os.scandir(self._data_dir / JOBS_DIR) as entries:
            names = (entry.name for entry in entries if is_job_id(entry.name))  # a disk for runs alone has a `lost+found`
            while page := list(islice(names, _PAGE)):  # in batches, since there may be very many
                for name in sorted(set(page) - self._store.jobs_with_files(page)):
                    if self.stopping:
                        return
                    yield name
