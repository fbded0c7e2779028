"""Waiting on the event loop: a watcher waits for news and for its next heartbeat."""

import asyncio
from dataclasses import dataclass, field


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


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
