"""The server's pools of threads. All their threads are started with the server, so that a shortage of threads later on, as with
`pids.max` or `ulimit -u`, keeps no call and no stop from being carried out."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from evalrpc.errors import ConfigurationError

MAX_COMPARISONS: Final = 3
"""How many comparisons are computed at a time, each in a process of its own, which takes 100 MB or more."""
MAX_LONG_COMPARISONS: Final = 2
"""How many of them may be long ones, so that there is a process for the others."""
MAX_PARSERS: Final = 2
"""How many pages are read in processes at a time."""

_THREADS: Final = {
    "readers": 4,
    "listers": 4,
    "parsers": MAX_PARSERS,
    "hashers": 2,
    "comparers": MAX_COMPARISONS,
    "catalogers": 2,
    "askers": 2,
    "removers": 1,
    "measurers": 1,
    "waiters": 4,
}


class Pools(NamedTuple):
    """One pool for each kind of work, so that what takes long, or hangs on a disk, holds up nothing but its own kind."""

    readers: ThreadPoolExecutor
    """Short reads: of the database, and of a chunk of a file."""
    listers: ThreadPoolExecutor
    """Pages of files, metrics and histories, and pages of samples with small rows; what a submission has to look up."""
    parsers: ThreadPoolExecutor
    """Pages of samples with large rows, each in a process of its own: so many processes at a time."""
    hashers: ThreadPoolExecutor
    """Checksums."""
    comparers: ThreadPoolExecutor
    """Comparisons."""
    catalogers: ThreadPoolExecutor
    """What harnesses list."""
    askers: ThreadPoolExecutor
    """What documents show, as harnesses say: so many processes of theirs at a time."""
    removers: ThreadPoolExecutor
    """Removal of files and of old jobs: one thread, so that nothing is removed twice at a time."""
    measurers: ThreadPoolExecutor
    """Sizes of the output folders of runs."""
    waiters: ThreadPoolExecutor
    """Waits for the end of the store, of the dispatcher, of a drain and of a stop."""

    def shut_down(self) -> None:
        """Wait for what runs, and drop what has not begun."""
        for pool in self:
            pool.shutdown(wait=pool is not self.waiters, cancel_futures=True)


def start_pools() -> Pools:
    """Start all pools. Raises ConfigurationError if there can't be so many threads."""
    with ExitStack() as stack:
        pools = {}
        for name, count in _THREADS.items():
            pools[name] = start_pool(count, name.removesuffix("s"))
            stack.callback(pools[name].shutdown, wait=False, cancel_futures=True)
        stack.pop_all()
    return Pools(**pools)


def require_threads(count: int) -> None:
    """Raise ConfigurationError unless so many threads can be started."""
    start_pool(count, "probe").shutdown()


def start_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose threads have all been started. Raises ConfigurationError if there can't be so many."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    together = threading.Barrier(count)  # a pool starts a thread only while none is idle
    try:
        for _ in range(count):
            pool.submit(_meet, together)
    except RuntimeError as error:
        together.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise ConfigurationError(
            f"the server needs more threads than this account may start ({error}); raise its limit: ulimit -u, or TasksMax of "
            "a unit of systemd, or pids.max of a container"
        ) from error
    return pool


def _meet(together: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        together.wait()
