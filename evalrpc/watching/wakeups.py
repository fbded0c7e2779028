"""Waiting on the event loop: a watcher waits for news and for its next heartbeat."""

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

DEFAULT_HEARTBEAT_SECONDS: Final = 20.0
"""A third of the minute after which nginx, by default, cuts a stream that is quiet."""

Intervals = Callable[[], float]
"""Returns how many seconds of silence the next heartbeat comes after. Called anew for each."""


def default_interval() -> float:
    """Return a random interval up to the default, so that watchers that came at once are not served at once for ever."""
    return DEFAULT_HEARTBEAT_SECONDS * random.uniform(0.75, 1.0)  # noqa: S311 - nothing secret


@dataclass(slots=True)
class Waiters:
    """Coroutines that wait for something new. Each has its own future, so that one that leaves does not disturb the others."""

    futures: set[asyncio.Future[None]] = field(default_factory=set)

    def wake(self) -> None:
        """Wake all waiters."""
        for future in self.futures:
            _resolve(future)
        self.futures.clear()

    def join(self) -> asyncio.Future[None]:
        """Return a new future, which is resolved when all are woken. Whoever awaits it discards it afterwards."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.futures.add(future)
        return future

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until woken, or until the timeout expires."""
        future = self.join()
        timer = asyncio.get_running_loop().call_later(timeout_seconds, _resolve, future)
        try:
            await future
        finally:
            self.futures.discard(future)
            timer.cancel()


class Heartbeat:
    """Decides when nothing was sent for so long that a heartbeat is due, and wakes the one watcher that it belongs to.

    Ten thousand watchers may be woken at once, again and again. So whatever is sent only moves the time when the heartbeat is
    due; the timer stays, and when it fires too early, it is set anew. Leaving the `with` block cancels it.
    """

    __slots__ = ("_due", "_future", "_intervals", "_loop", "_timer")

    def __init__(self, intervals: Intervals | None) -> None:
        """Begin an interval now; None means no heartbeats."""
        self._intervals = intervals
        self._loop = asyncio.get_running_loop()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._future: asyncio.Future[None] | None = None
        self.sent()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def sent(self) -> None:
        """Record that something was sent: the next interval begins."""
        if self._intervals is not None:
            self._due = self._loop.time() + self._intervals()

    def seconds_left(self) -> float:
        """Return how long it is until the next heartbeat; `math.inf` if there are none."""
        return max(0.0, self._due - self._loop.time())

    def is_due(self) -> bool:
        """Return whether a heartbeat is due."""
        return self.seconds_left() == 0.0

    async def wait(self, waiters: Waiters) -> None:
        """Wait until woken with the others, or until a heartbeat is due."""
        if self._timer is None and self._intervals is not None:
            self._timer = self._loop.call_at(self._due, self._ring)
        self._future = waiters.join()
        try:
            await self._future
        finally:
            waiters.futures.discard(self._future)

    def _ring(self) -> None:
        if self.is_due():
            self._timer = None
            _resolve(self._future)
        else:
            self._timer = self._loop.call_at(self._due, self._ring)


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
