"""A bound on the bytes that are in memory at once."""

import asyncio
from collections import deque


class ByteBudget:
    """Bytes that may be in use at once. Who comes first gets them first."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_reserve(self, size: int) -> bool:
        """Take bytes if they are free and nobody waits for them, and return whether they were."""
        if self._waiting or self.used + size > self.total:
            return False
        self.used += size
        return True

    async def reserve(self, size: int) -> None:
        """Wait for bytes, and take them. There must be as many in all."""
        if self.try_reserve(size):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            self.release(0 if future.cancelled() else size)
            raise

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size
        while self._waiting:
            wanted, future = self._waiting[0]
            if not future.done():
                if self.used + wanted > self.total:
                    return
                self.used += wanted
                future.set_result(None)
            self._waiting.popleft()


class Reservation:
    """Bytes of a budget that belong together."""

    def __init__(self, budget: ByteBudget, size: int = 0) -> None:
        """`size` bytes have been taken from the budget already."""
        self._budget = budget
        self.size = size
        """How many bytes there are."""

    def grow_to(self, size: int) -> bool:
        """Take bytes up to this size if they are free, and return whether they were."""
        if not self._budget.try_reserve(size - self.size):
            return False
        self.size = size
        return True

    def shrink(self, size: int) -> None:
        """Give back what is above this size."""
        if size < self.size:
            self._budget.release(self.size - size)
            self.size = size

    def release(self) -> None:
        """Give all of them back."""
        self.shrink(0)
