"""The server's pools of threads. All their threads are started with the server, so that a shortage of threads later on, as with
`pids.max` or `ulimit -u`, keeps no call and no stop from being carried out."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from evalrpc.errors import ConfigurationError


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
