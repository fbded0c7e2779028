"""How a watcher waits on the event loop: for something new, and for its next heartbeat."""

import asyncio
from dataclasses import dataclass, field


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


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
