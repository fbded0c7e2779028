"""Room for large answers that their clients have not read yet, shared by all calls.

gRPC keeps a message until its client takes it, so thousands of clients that don't read would fill the memory. Here a call takes
room before it hands over a large message, and gives it back when the client has taken it. A call that finds no room waits in
line, single answers before streams. While any waits, a client that has not taken its message for long is disconnected, so that
none can keep others from reading; if it still lives, it resumes. How long the server takes to make a message does not count.

Used on the event loop only.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from evalrpc.errors import TooMuchUnreadError

STALL_SECONDS: Final = 10.0
"""How long a client may take for one message while others wait."""

_RETRY_SECONDS: Final = 1.0
_MIN_PAUSE_SECONDS: Final = 1.0

Disconnect = Callable[[Collection[str]], object]
"""Ends the connections of these peers."""


@dataclass(eq=False, slots=True)
class Hold:
    """Room that a message takes."""

    size_bytes: int
    since: float
    """Since when its client may take the message, in the time of the event loop; infinite before that."""
    peer: str
    """The client. Asked for at once: gRPC may crash when it is asked for the peer of a call that has ended."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A call that waits for room."""

    size_bytes: int
    line: "_Line"
    keeps_message: bool
    future: asyncio.Future[None]


_Line = deque[_Waiter]


class UnreadBytes:
    """The room, as a number of bytes. What is larger than all of it takes all of it."""

    def __init__(self, max_bytes: int, disconnect: Disconnect, stall_seconds: float = STALL_SECONDS) -> None:
        self._max_bytes = max_bytes
        self._disconnect = disconnect
        self._stall_seconds = stall_seconds
        self._free_bytes = max_bytes
        self._holds: dict[Hold, None] = {}  # of those that clients may take, the oldest first
        self._answers, self._streams = self._lines = _Line(), _Line()
        self._kept_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held_bytes(self) -> int:
        """How much of the room is taken."""
        return self._max_bytes - self._free_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Return whether a message of this size needs not wait."""
        return not any(self._lines) and min(size_bytes, self._max_bytes) <= self._free_bytes

    async def take(self, size_bytes: int, peer: Callable[[], str]) -> Hold:
        """Take room for a message of a stream that exists already, in turn.

        Raises TooMuchUnreadError if the messages that wait would take as much memory as those that are unread.
        """
        if not self.has_room(size_bytes) and self._kept_bytes + size_bytes > self._max_bytes:
            raise TooMuchUnreadError(
                f"answers of {self._max_bytes} bytes are not read by their clients (setting max_unread_bytes)",
                metadata={"setting": "max_unread_bytes", "limit": str(self._max_bytes)},
                retry_delay_seconds=_RETRY_SECONDS,
            )
        return await self._take(size_bytes, peer, self._streams, keeps_message=True)

    def try_reserve(self, size_bytes: int, peer: Callable[[], str]) -> Hold | None:
        """Take room for a message, if that needs no waiting."""
        if not self.has_room(size_bytes):
            return None
        size_bytes = min(size_bytes, self._max_bytes)
        self._free_bytes -= size_bytes
        return self._hold(size_bytes, peer)

    async def reserve(self, size_bytes: int, peer: Callable[[], str], *, for_stream: bool = False) -> Hold:
        """Take room for a message that does not exist yet, or that is not to be lost, in turn."""
        return await self._take(size_bytes, peer, self._streams if for_stream else self._answers)

    def shrink(self, hold: Hold, size_bytes: int) -> None:
        """Give back what a message does not need of the room that was reserved for it."""
        if size_bytes < hold.size_bytes:
            self._free_bytes += hold.size_bytes - size_bytes
            hold.size_bytes = size_bytes
            self._let_in()

    def begin(self, hold: Hold) -> None:
        """Note that it is for the client to take the message from now on. Until then it was for the server to make it."""
        hold.since = asyncio.get_running_loop().time()
        self._holds[hold] = self._holds.pop(hold)
        self._watch_holds()

    def pause(self, hold: Hold) -> None:
        """Note that the client has taken what it was sent, and that it is for the server to go on."""
        hold.since = math.inf

    def give_back(self, hold: Hold) -> None:
        """Give all of it back."""
        del self._holds[hold]
        self._free_bytes += hold.size_bytes
        self._let_in()

    async def _take(self, size_bytes: int, peer: Callable[[], str], line: _Line, *, keeps_message: bool = False) -> Hold:
        if hold := self.try_reserve(size_bytes, peer):
            return hold
        size_bytes = min(size_bytes, self._max_bytes)
        await self._wait(_Waiter(size_bytes, line, keeps_message, asyncio.get_running_loop().create_future()))
        return self._hold(size_bytes, peer)

    def _hold(self, size_bytes: int, peer: Callable[[], str]) -> Hold:
        """Record that room was taken."""
        hold = Hold(size_bytes, math.inf, peer())
        self._holds[hold] = None
        return hold

    async def _wait(self, waiter: _Waiter) -> None:
        """Wait until the room was taken for this one."""
        waiter.line.append(waiter)
        self._kept_bytes += waiter.size_bytes * waiter.keeps_message
        self._watch_holds()
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter in waiter.line:
                self._leave(waiter)
            elif not waiter.future.cancelled():  # it was let in just before
                self._free_bytes += waiter.size_bytes
            self._let_in()
            raise

    def _leave(self, waiter: _Waiter) -> None:
        waiter.line.remove(waiter)
        self._kept_bytes -= waiter.size_bytes * waiter.keeps_message

    def _let_in(self) -> None:
        """Give the free room to those first in line."""
        while (line := self._answers or self._streams) and line[0].size_bytes <= self._free_bytes:
            waiter = line[0]
            self._leave(waiter)
            if not waiter.future.cancelled():
                self._free_bytes -= waiter.size_bytes
                waiter.future.set_result(None)

    def _watch_holds(self) -> None:
        """See to it that the clients are looked at when the oldest hold is too old."""
        if self._timer is not None or not any(self._lines):
            return
        since = next((hold.since for hold in self._holds if hold.since < math.inf), None)
        if since is not None:
            loop = asyncio.get_running_loop()
            due = since + self._stall_seconds
            self._timer = loop.call_at(max(due, loop.time() + _MIN_PAUSE_SECONDS), self._disconnect_stalled)

    def _disconnect_stalled(self) -> None:
        self._timer = None
        if not any(self._lines):
            return
        now = asyncio.get_running_loop().time()
        stalled = [hold for hold in self._holds if hold.since + self._stall_seconds <= now]
        for hold in stalled:
            hold.since = now  # they are the youngest again: where that ends no call, it is tried again
            self._holds[hold] = self._holds.pop(hold)
        self._disconnect({hold.peer for hold in stalled})
        self._watch_holds()
