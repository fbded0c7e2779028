"""What callers may take of the server: streams, calls per second, and memory for answers that they have not read.

The wrapper around every handler asks here, so the limits hold for each transport. Used on the event loop only.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, Self

from evalrpc.config import Settings
from evalrpc.errors import RequestTooLargeError, TooManyCallsError, TooManyStreamsError
from evalrpc.reading.turns import Turns
from evalrpc.server.call import Call
from evalrpc.server.unread import Disconnect, Hold, UnreadBytes

SMALL_BYTES: Final = 16 * 1024
"""A message up to this size is sent without a look at the room for unread ones: ten thousand watchers get such events."""

_STREAM_RETRY_SECONDS: Final = 1.0
_MAX_BUCKETS: Final = 10_000


class BoundedStream:
    """An open stream, which counts until its `with` block ends. Sends large messages when there is room for them."""

    __slots__ = ("_limits", "_owner", "_peer", "_reserved", "_send")

    def __init__(self, limits: "Limits", call: Call) -> None:
        self._limits = limits
        self._owner = call.principal.owner
        self._send = call.send
        self._peer = call.peer
        self._reserved: Hold | None = None

    def __enter__(self) -> Self:
        self._limits.count_stream(self._owner, 1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._limits.count_stream(self._owner, -1)
        if self._reserved is not None:
            self._limits.unread.give_back(self._reserved)

    def send(self, message: bytes) -> Awaitable[object]:
        """Send a message. Raises TooMuchUnreadError for a large one without reserved room, if too many wait already."""
        return self._send(message) if len(message) <= SMALL_BYTES else self._send_large(message)

    def reserve(self, size_bytes: int) -> Awaitable[None] | None:
        """Take room for the next message, before it is made. Return what waits for it, or None if there was some at once."""
        if self._reserved is None:
            self._reserved = self._limits.unread.try_reserve(size_bytes, self._peer)
        return None if self._reserved is not None else self._wait_for_room(size_bytes)

    async def _wait_for_room(self, size_bytes: int) -> None:
        self._reserved = await self._limits.unread.reserve(size_bytes, self._peer, for_stream=True)

    async def _send_large(self, message: bytes) -> None:
        unread = self._limits.unread
        hold = self._reserved or await unread.take(len(message), self._peer)
        self._reserved = None
        unread.begin(hold)
        try:
            await self._send(message)
        finally:
            unread.give_back(hold)


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
        self.large_requests = Turns(1)
        """Who has a request over SMALL_BYTES decoded."""

    def admit(self, owner: str, request_bytes: int) -> None:
        """Count a call. Raises RequestTooLargeError, TooManyCallsError."""
        most = self._settings.max_request_bytes
        if request_bytes > most:
            raise RequestTooLargeError(
                f"the request has {request_bytes} bytes; the server accepts at most {most} (setting max_request_bytes)",
                metadata={"setting": "max_request_bytes", "limit": str(most)},
            )
        self._rates.count(owner)

    def open_stream(self, call: Call) -> BoundedStream:
        """Return what sends the messages of a stream, for a `with` block at once. Raises TooManyStreamsError."""
        settings, owner = self._settings, call.principal.owner
        if self._streams_of[owner] >= settings.max_streams_per_owner:
            raise _too_many_streams("max_streams_per_owner", settings.max_streams_per_owner, owner)
        if self.stream_count >= settings.max_streams:
            raise _too_many_streams("max_streams", settings.max_streams)
        return BoundedStream(self, call)

    def count_stream(self, owner: str, change: int) -> None:
        """Count one stream more or less."""
        self.stream_count += change
        self._streams_of[owner] += change
        if not self._streams_of[owner]:
            del self._streams_of[owner]

    def hold_until_taken(self, hold: Hold) -> None:
        """Give room back when the current task ends. A transport ends it when the client has taken the answer, which it may
        from now on."""
        self.unread.begin(hold)
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
