"""How coroutines wait on the event loop: a watcher for something new and for its next heartbeat, a call for another thread."""

import asyncio
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(slots=True)
class Waiters:
    """Those who wait for something new. Each has a future of its own, so that one who leaves disturbs no other."""

    futures: set[asyncio.Future[None]] = field(default_factory=set)

    def wake(self) -> None:
        """Wake all who wait."""
        for future in self.futures:
            _resolve(future)
        self.futures.clear()

    async def wait(self, timeout_seconds: float | None) -> None:
        """Wait to be woken, or until the time is up."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self.futures.add(future)
        timer = loop.call_later(timeout_seconds, _resolve, future) if timeout_seconds is not None else None
        try:
            await future
        finally:
            self.futures.discard(future)
            if timer is not None:
                timer.cancel()


class Heartbeat:
    """Tells when nothing was sent for so long that a BOOKMARK is due."""

    __slots__ = ("_interval_seconds", "_last", "_loop")

    def __init__(self, interval_seconds: float | None) -> None:
        self._interval_seconds = interval_seconds
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def sent(self) -> None:
        """Note that something was sent."""
        self._last = self._loop.time()

    def seconds_left(self) -> float | None:
        """Return how long to wait; None where no heartbeat was asked for."""
        if self._interval_seconds is None:
            return None
        return max(0.0, self._last + self._interval_seconds - self._loop.time())

    def is_due(self) -> bool:
        """Tell whether it is time for one."""
        return self.seconds_left() == 0.0


class Results:
    """Brings the results of another thread to the coroutines that wait for them. However many come at once, the loop is woken
    once, where `asyncio.wrap_future` would wake it for each. Made on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._waking = False

    def of(self, future: Future[_T]) -> asyncio.Future[_T]:
        """Return what to await for the result. Whoever stops waiting does not touch the work."""
        waiter: asyncio.Future[_T] = self._loop.create_future()
        future.add_done_callback(lambda done: self._take(done, waiter))
        return waiter

    def _take(self, future: Future[Any], waiter: asyncio.Future[Any]) -> None:
        """Run on the other thread. The entry comes before the look at the flag: either `_hand_out` sees it, or is called."""
        self._done.append((future, waiter))
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._waking = False
        while self._done:
            future, waiter = self._done.popleft()
            if waiter.done():
                continue
            if error := future.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(future.result())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
