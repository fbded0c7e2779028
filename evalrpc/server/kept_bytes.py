"""How much of the disk the jobs of each owner take, for the quotas on it."""

import os
import threading
from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from evalrpc.errors import JobNotFoundError
from evalrpc.files.trees import disk_bytes
from evalrpc.jobs import lifecycle
from evalrpc.jobs.paths import JOBS_DIR, job_dir, output_folders
from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import Store


class _Size(NamedTuple):
    owner: str
    size_bytes: int
    is_final: bool
    """Whether the job has ended, so that it is not measured again."""


class KeptBytes:
    """Measures the folders of jobs: those that have ended once, live ones each time. It starts anew with every server.

    Blocks: runs on a thread.
    """

    def __init__(self, store: Store, data_dir: Path, entitlements: Entitlements) -> None:
        self._store = store
        self._data_dir = data_dir
        self._entitlements = entitlements
        self._sizes: dict[str, _Size] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Make `measure` return after the current folder. May be called from any thread."""
        self._stopping.set()

    def measure(self) -> None:
        """Measure what may have changed, and pass it on, if there is any quota on it. Raises StoreUnavailableError, and OSError
        for a shortage."""
        policy = self._entitlements.policy
        if all(quota.max_bytes is None for quota in policy.quotas.values()):
            return
        folders = _names(self._data_dir / JOBS_DIR)
        for job_id in self._sizes.keys() - folders:
            del self._sizes[job_id]
        for job_id in folders:
            if self._stopping.is_set():
                return
            known = self._sizes.get(job_id)
            if known is None or not known.is_final:
                self._measure(job_id)
        kept_bytes: Counter[str] = Counter()
        for size in self._sizes.values():
            kept_bytes[size.owner] += size.size_bytes
        self._entitlements.kept_bytes = kept_bytes

    def _measure(self, job_id: str) -> None:
        try:
            job = self._store.job(job_id).parse()
        except JobNotFoundError:
            return  # it was deleted, and its files are about to be, unless other jobs share them
        is_final = job.status in lifecycle.TERMINAL
        folders = {job_dir(self._data_dir, job_id), *output_folders(job)}
        size_bytes = sum(disk_bytes(folder, should_stop=self._stopping.is_set) for folder in folders)
        self._sizes[job_id] = _Size(job.owner, size_bytes, is_final)


def _names(folder: Path) -> Set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except FileNotFoundError:
        return set()
