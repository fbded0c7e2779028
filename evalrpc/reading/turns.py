"""Who goes on next, where only few can at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets few callers go on at a time. The owners of those that wait take turns, so whoever asks for much holds up itself more
    than others. Used on the event loop."""

    def __init__(self, max_count: int) -> None:
        self._free = max_count
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the owner whose turn is next comes first

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it until the end of the block."""
        await self._take(owner)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, owner: str) -> None:
        if self._free:  # so nobody waits
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(mine)
        try:
            await mine
        except BaseException:  # whoever waited has gone
            if not mine.cancelled():  # and has just got its turn
                self._give_back()
            raise

    def _give_back(self) -> None:
        for owner in list(self._waiting):
            line = self._waiting.pop(owner)
            while line:
                first = line.popleft()
                if not first.done():
                    if line:
                        self._waiting[owner] = line  # behind the others
                    first.set_result(None)
                    return
        self._free += 1
