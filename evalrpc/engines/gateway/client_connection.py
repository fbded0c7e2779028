"""Connections of harnesses: requests are read, one at a time, and answered."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, cast

import httptools

from evalrpc.engines.gateway.budget import ByteBudget, Reservation
from evalrpc.engines.gateway.replies import Reply, error_reply, head
from evalrpc.engines.gateway.upstream import header

UNBUDGETED_BYTES: Final = 64 << 10
"""Bodies up to this size are read at once: the number of connections bounds them."""

_MAX_BARE_BYTES: Final = 64 << 10  # of a head, of trailers, or of the framing between two parts of a body
_MAX_NEXT_BYTES: Final = 256 << 10
_WRITE_BUFFER_BYTES: Final = 256 << 10

# How long a client may take for the head of a request, for the next piece of its body, for any of an answer, until its next
# request, and to notice that it was refused.
_HEAD_SECONDS: Final = 60.0
_BODY_SECONDS: Final = 120.0
_TAKE_SECONDS: Final = 300.0
_IDLE_SECONDS: Final = 600.0
_REFUSED_SECONDS: Final = 5.0
_NEVER: Final = float("inf")


class Limits(NamedTuple):
    """What requests may take."""

    max_body_bytes: int
    """A larger body is refused."""
    request_bytes: ByteBudget
    """For the bodies of all."""


class ClientRequest:
    """A request of a harness, and its answer."""

    def __init__(self, connection: "ClientConnection", held: Reservation) -> None:
        self._connection = connection
        self.held = held
        """The bytes of its body."""
        self.method = b""
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.has_begun = False
        """Whether its answer has begun."""
        self.takes_chunks = False
        """Whether the answer may come in chunks: to HTTP/1.0 it may not."""
        self.has_gone = False
        """Whether its client has gone. What is sent then goes nowhere."""
        self.outlives_client = False
        """Whether it goes on then."""

    def outlive(self) -> None:
        """Go on although the client goes, which would else cancel whoever answers."""
        self.outlives_client = True

    def body(self) -> bytes:
        """Return the body, once."""
        body = b"".join(self.chunks)
        self.chunks.clear()
        return body

    def reply(self, reply: Reply) -> None:
        """Answer it."""
        self.has_begun = True
        headers = [b"content-length: %d" % len(reply.body)]
        if reply.retry_after:
            headers.append(b"retry-after: " + reply.retry_after)
        if self._connection.is_last:
            headers.append(b"connection: close")
        self._connection.send(head(reply.status, reply.content_type, *headers), b"" if self.method == b"HEAD" else reply.body)
        self._connection.note_answered()

    def start(self, status: int, content_type: bytes) -> None:
        """Begin to answer it piece by piece."""
        self.has_begun = True
        self.takes_chunks = self.takes_chunks and self.method != b"HEAD"
        if not self.takes_chunks:
            self._connection.is_last = True
        framing = [b"transfer-encoding: chunked"] if self.takes_chunks else []
        if self._connection.is_last:
            framing.append(b"connection: close")
        self._connection.send(head(status, content_type, *framing))

    def write(self, data: bytes) -> None:
        """Send a piece."""
        if data:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data) if self.takes_chunks else data)

    async def drain(self) -> None:
        """Wait until the client has taken nearly all that was sent."""
        await self._connection.drain()

    def end(self) -> None:
        """Say that the answer is whole."""
        if self.takes_chunks:
            self._connection.send(b"0\r\n\r\n")
        self._connection.note_answered()

    def abort(self) -> None:
        """Break off the answer."""
        self._connection.abort()


Answer = Callable[[ClientRequest], Awaitable[None]]
"""Answers a request. Is cancelled when its client goes."""


class ClientConnection(asyncio.Protocol):
    """A connection of a harness.

    Its memory is bounded: a large body is read only when there is room for it, and what a client sends before it has its answer
    is not kept. Its time is, too: `check_time` breaks it off where the client is too slow.
    """

    def __init__(self, answer: Answer, limits: Limits, connections: "set[ClientConnection]") -> None:
        self._answer = answer
        self._limits = limits
        self._connections = connections
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._request: ClientRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Task[None] | None = None
        self._bare_bytes = 0
        self._body_bytes = 0
        self._has_head = False
        self._is_read = False
        self._is_refused = False
        self._is_answered = False
        self._next = bytearray()
        self._writable: asyncio.Future[None] | None = None
        self._idle_since = time.monotonic()
        self._deadline = self._idle_since + _HEAD_SECONDS
        self.is_last = False
        """Whether it is closed after its answer."""

    # What the gateway calls.

    def idle_seconds(self, now: float) -> float:
        """Return for how long there has been no request; 0: there is one. `now` is monotonic time."""
        return 0.0 if self._request is not None else now - self._idle_since

    def finish(self) -> None:
        """Close it, after the answer if there is a request."""
        self.is_last = True
        if self._request is None:
            self._transport.close()

    def check_time(self, now: float) -> None:
        """Break it off if its client is too slow. `now` is monotonic time."""
        if now >= self._deadline:
            self.abort()

    # What a request calls.

    def send(self, *data: bytes) -> None:
        """Send some of an answer."""
        if not self._transport.is_closing():
            self._transport.writelines(data)

    async def drain(self) -> None:
        """Wait until the client has taken nearly all that was sent."""
        if self._writable is not None:
            self._deadline = time.monotonic() + _TAKE_SECONDS
            await self._writable
            self._deadline = _NEVER

    def note_answered(self) -> None:
        """Note that the whole answer was sent, so that the next request may come."""
        self._is_answered = True

    def abort(self) -> None:
        """Break it off."""
        self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request."""
        if self._is_refused:
            return
        if self._task is None:
            self._parse(data)
        elif self._is_answered:  # the answer is on its way, so this is the next request
            self._next += data
            if len(self._next) > _MAX_NEXT_BYTES:
                self._transport.pause_reading()
        else:
            self.is_last = True  # what is sent before the answer is not read

    def eof_received(self) -> None:
        """Take the client for gone: none sends its end and waits for an answer."""
        self._end()

    def connection_lost(self, _error: Exception | None) -> None:
        """End."""
        self._connections.discard(self)
        self.resume_writing()
        self._end()

    def pause_writing(self) -> None:
        """Note that the client does not keep up."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Note that the client keeps up again."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _end(self) -> None:
        if self._room is not None:
            self._room.cancel()
        request = self._request
        if request is None or self._is_answered:
            return
        request.has_gone = True
        if self._task is None:
            request.held.release()
            self._request = None
        elif not request.outlives_client:
            self._task.cancel()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._is_deaf():
            return
        self._request = ClientRequest(self, Reservation(self._limits.request_bytes))
        self._body_bytes = 0
        self._has_head = self._is_read = False
        self._deadline = time.monotonic() + _HEAD_SECONDS

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if self._request is not None and not self._is_deaf():
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. What comes after the body is none."""
        if self._request is not None and not self._has_head and not self._is_deaf():
            self._request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Begin the body."""
        request = self._request
        if request is None or self._is_deaf():
            return
        self._has_head = True
        request.method = self._parser.get_method()
        request.takes_chunks = self._parser.get_http_version() == "1.1"
        length = header(request.headers, b"content-length")
        if self._parser.should_upgrade():
            self._refuse(501, "the gateway speaks only HTTP/1.1")
        elif header(request.headers, b"transfer-encoding").lower() not in (b"", b"chunked"):
            self._refuse(501, "the gateway knows only chunks as transfer encoding")
        elif header(request.headers, b"content-encoding").lower() not in (b"", b"identity"):
            self._refuse(415, "the gateway takes no compressed bodies: send it as it is, without Content-Encoding")
        elif length and int(length) > self._limits.max_body_bytes:
            self._refuse(413, f"the body is larger than {self._limits.max_body_bytes} bytes")
        else:
            self._deadline = time.monotonic() + _BODY_SECONDS
            if length and int(length) > UNBUDGETED_BYTES:
                self._make_room(request, int(length))
            if self._room is None:
                self._invite(request)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        request = self._request
        if request is None or self._is_deaf():
            return
        self._deadline = time.monotonic() + _BODY_SECONDS if self._room is None else _NEVER
        self._bare_bytes = 0
        self._body_bytes += len(data)
        request.chunks.append(data)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse(413, f"the body is larger than {self._limits.max_body_bytes} bytes")
        elif self._body_bytes > UNBUDGETED_BYTES and not request.held.size and self._room is None:
            self._make_room(request, self._limits.max_body_bytes)  # chunks don't say how many there will be

    def on_message_complete(self) -> None:
        """Begin to answer."""
        if self._request is None or self._is_deaf():
            return
        self._is_read = True
        self.is_last = self.is_last or not self._parser.should_keep_alive() or not self._request.takes_chunks
        if self._room is None:
            self._start(self._request)

    def _parse(self, data: bytes) -> None:
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(501, "the gateway speaks only HTTP/1.1")
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is no HTTP: {error}")
        if self._bare_bytes > _MAX_BARE_BYTES:
            self._refuse(431, "the request has too much before, between or after the parts of its body")

    def _is_deaf(self) -> bool:
        """Return whether the rest of what was read is not wanted. A request before the last one is answered is none."""
        self.is_last = self.is_last or self._task is not None
        return self._task is not None or self._is_refused

    def _refuse(self, status: int, message: str) -> None:
        """Refuse what comes, without reading it. The client gets a moment to notice that before the connection is closed."""
        if self._is_refused or self._task is not None:
            return
        self._is_refused = self.is_last = True
        reply = error_reply(status, message)
        length = b"content-length: %d" % len(reply.body)
        self.send(head(status, reply.content_type, length, b"connection: close"), reply.body)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadline = time.monotonic() + _REFUSED_SECONDS

    def _make_room(self, request: ClientRequest, size: int) -> None:
        """Take room for a body, and read no further until there is some."""
        if self._limits.request_bytes.try_reserve(size):
            request.held = Reservation(self._limits.request_bytes, size)
            return
        self._transport.pause_reading()
        self._deadline = _NEVER
        self._room = asyncio.get_running_loop().create_task(self._wait_for_room(request, size))

    async def _wait_for_room(self, request: ClientRequest, size: int) -> None:
        await self._limits.request_bytes.reserve(size)
        request.held = Reservation(self._limits.request_bytes, size)
        self._room = None
        if self._is_read:
            self._start(request)
        else:
            self._deadline = time.monotonic() + _BODY_SECONDS
            self._invite(request)
        self._transport.resume_reading()

    def _invite(self, request: ClientRequest) -> None:
        """Say that the body may come, to a client that waits for that."""
        if header(request.headers, b"expect").lower() == b"100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _start(self, request: ClientRequest) -> None:
        request.held.shrink(self._body_bytes)
        self._deadline = _NEVER
        self._task = asyncio.get_running_loop().create_task(self._run(request))

    async def _run(self, request: ClientRequest) -> None:
        try:
            await self._answer(request)
        finally:
            request.held.release()
            self._request = self._task = None
            if not self._is_answered:
                self.abort()
            elif self.is_last:
                self._transport.close()
            else:
                self._go_on()

    def _go_on(self) -> None:
        """Wait for the next request, which may have come already."""
        self._is_answered = False
        self._idle_since = time.monotonic()
        self._deadline = self._idle_since + _IDLE_SECONDS
        self._bare_bytes = 0
        if self._next:
            data = bytes(self._next)
            self._next.clear()
            if len(data) > _MAX_NEXT_BYTES:
                self._transport.resume_reading()
            self._parse(data)
