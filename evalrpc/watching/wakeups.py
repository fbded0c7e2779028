"""Waiting on the event loop: a watcher waits for news and for its next heartbeat, a call for another thread."""

import asyncio
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(slots=True)
class Waiters:
    """Coroutines that wait for something new. Each has its own future, so that one that leaves does not disturb the others."""

    futures: set[asyncio.Future[None]] = field(default_factory=set)

    def wake(self) -> None:
        """Wake all waiters."""
        for future in self.futures:
            _resolve(future)
        self.futures.clear()

    async def wait(self, timeout_seconds: float | None) -> None:
        """Wait until woken, or until the timeout expires."""
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
    """Decides when nothing was sent for so long that a BOOKMARK is due."""

    __slots__ = ("_interval_seconds", "_last", "_loop")

    def __init__(self, interval_seconds: float | None) -> None:
        self._interval_seconds = interval_seconds
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def sent(self) -> None:
        """Record that something was sent."""
        self._last = self._loop.time()

    def seconds_left(self) -> float | None:
        """Return how long to wait; None if no heartbeat was requested."""
        if self._interval_seconds is None:
            return None
        return max(0.0, self._last + self._interval_seconds - self._loop.time())

    def is_due(self) -> bool:
        """Return whether a heartbeat is due."""
        return self.seconds_left() == 0.0


class Results:
    """Delivers the results of another thread to the coroutines that wait for them. However many come at once, the loop is woken
    once, where `asyncio.wrap_future` would wake it for each. Created on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._waking = False

    def of(self, future: Future[_T]) -> asyncio.Future[_T]:
        """Return a future to await for the result. Cancelling it does not affect the work."""
        waiter: asyncio.Future[_T] = self._loop.create_future()
        future.add_done_callback(lambda done: self._take(done, waiter))
        return waiter

    def _take(self, future: Future[Any], waiter: asyncio.Future[Any]) -> None:
        """Run on the other thread. Append first, then read the flag: either `_hand_out` sees the entry, or it is called."""
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
