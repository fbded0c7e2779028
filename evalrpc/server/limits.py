"""What callers may take of the server: streams, calls per second, and memory for answers that they have not read.

The wrapper around every handler asks here, so the limits hold for each transport. Used on the event loop only.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from evalrpc.config import Settings
from evalrpc.errors import RequestTooLargeError, TooManyCallsError, TooManyStreamsError
from evalrpc.server.call import Call
from evalrpc.server.unread import Disconnect, Hold, UnreadBytes

SMALL_BYTES: Final = 16 * 1024
"""A message up to this size is sent without a look at the room for unread ones: ten thousand watchers get such events."""

_STREAM_RETRY_SECONDS: Final = 1.0
_MAX_BUCKETS: Final = 10_000


class BoundedStream:
    """Sends the messages of a stream, large ones when there is room for them."""

    __slots__ = ("_call", "_reserved", "_unread")

    def __init__(self, call: Call, unread: UnreadBytes) -> None:
        self._call = call
        self._unread = unread
        self._reserved: Hold | None = None

    def send(self, message: bytes) -> Awaitable[object]:
        """Send a message. Raises TooMuchUnreadError for a large one without reserved room, if too many wait already."""
        return self._call.send(message) if len(message) <= SMALL_BYTES else self._send_large(message)

    async def reserve(self, size_bytes: int) -> None:
        """Wait for room for the next message, before it is made."""
        if self._reserved is None:
            self._reserved = await self._unread.reserve(size_bytes, self._call.peer, for_stream=True)

    def close(self) -> None:
        """Give back what was reserved and not used."""
        if self._reserved is not None:
            self._unread.give_back(self._reserved)
            self._reserved = None

    async def _send_large(self, message: bytes) -> None:
        hold = self._reserved or await self._unread.take(len(message), self._call.peer)
        self._reserved = None
        try:
            await self._call.send(message)
        finally:
            self._unread.give_back(hold)


class CallRates:
    """A token bucket per owner, which holds the calls of one second; a rate of 0 has no limit."""

    def __init__(self, per_second: int, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._buckets: dict[str, tuple[float, float]] = {}  # the tokens, and when there were so many

    def count(self, owner: str) -> None:
        """Count a call. Raises TooManyCallsError, with the time until the next one is accepted."""
        if not self._per_second:
            return
        tokens = self._tokens(owner)
        if tokens < 1:
            raise TooManyCallsError(
                f"{_called(owner)} makes more than {self._per_second} calls per second (setting max_calls_per_second)",
                metadata={"setting": "max_calls_per_second", "limit": str(self._per_second), "owner": owner},
                retry_delay_seconds=(1 - tokens) / self._per_second,
            )
        self._buckets[owner] = tokens - 1, self._monotonic()
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets = {each: bucket for each, bucket in self._buckets.items() if self._tokens(each) < self._per_second}

    def _tokens(self, owner: str) -> float:
        now = self._monotonic()
        tokens, since = self._buckets.get(owner, (float(self._per_second), now))
        return min(float(self._per_second), tokens + (now - since) * self._per_second)


class Limits:
    """The limits of one server. `monotonic` tells the seconds since some moment, `disconnect` ends the connections of peers."""

    def __init__(self, settings: Settings, monotonic: Callable[[], float], disconnect: Disconnect) -> None:
        self._settings = settings
        self._rates = CallRates(settings.max_calls_per_second, monotonic)
        self._streams_of: Counter[str] = Counter()
        self.stream_count = 0
        """How many streams are open."""
        self.unread = UnreadBytes(settings.max_unread_bytes, disconnect)
        """The room for large messages that clients have not read."""

    def admit(self, owner: str, request_bytes: int) -> None:
        """Count a call. Raises RequestTooLargeError, TooManyCallsError."""
        most = self._settings.max_request_bytes
        if request_bytes > most:
            raise RequestTooLargeError(
                f"the request has {request_bytes} bytes; the server accepts at most {most} (setting max_request_bytes)",
                metadata={"setting": "max_request_bytes", "limit": str(most)},
            )
        self._rates.count(owner)

    @contextmanager
    def stream(self, call: Call) -> Iterator[BoundedStream]:
        """Count a stream while it is open, and yield what sends its messages. Raises TooManyStreamsError."""
        owner = call.principal.owner
        settings = self._settings
        if self._streams_of[owner] >= settings.max_streams_per_owner:
            raise _too_many_streams("max_streams_per_owner", settings.max_streams_per_owner, owner)
        if self.stream_count >= settings.max_streams:
            raise _too_many_streams("max_streams", settings.max_streams)
        self.stream_count += 1
        self._streams_of[owner] += 1
        stream = BoundedStream(call, self.unread)
        try:
            yield stream
        finally:
            stream.close()
            self.stream_count -= 1
            self._streams_of[owner] -= 1
            if not self._streams_of[owner]:
                del self._streams_of[owner]

    def hold_until_taken(self, hold: Hold) -> None:
        """Give room back when the current task ends. A transport ends it when the client has taken the answer."""
        if task := asyncio.current_task():
            task.add_done_callback(lambda _: self.unread.give_back(hold))


def _too_many_streams(setting: str, limit: int, owner: str | None = None) -> TooManyStreamsError:
    who = "all callers together have" if owner is None else f"{_called(owner)} has"
    return TooManyStreamsError(
        f"{who} {limit} streams open, which is the most that the server allows (setting {setting})",
        metadata={"setting": setting, "limit": str(limit), **({} if owner is None else {"owner": owner})},
        retry_delay_seconds=_STREAM_RETRY_SECONDS,
    )


def _called(owner: str) -> str:
    return f"the owner {owner}" if owner else "whoever has not signed in"
