"""Engines over plain HTTP/1.1: a pool of connections for each replica, on asyncio's transports and httptools' parser."""

import asyncio
from collections import deque
from typing import Final, cast

import httptools

from evalrpc.engines.gateway.upstream import Address, NotConnectedError, OutgoingRequest, UpstreamError

_CONNECT_SECONDS: Final = 10.0
_MAX_BARE_BYTES: Final = 256 << 10  # of a head, of trailers, or of the framing between two parts of a body
_MAX_UNREAD_BYTES: Final = 256 << 10
"""Beyond this much of an answer that nobody has read yet, no more is taken from the engine."""


class PlainUpstream:
    """The connections to one replica. As many are kept as were needed at once."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[_Connection] = []
        self._closed = False

    async def ask(self, request: OutgoingRequest, silence_seconds: float) -> "_Connection":
        """Send a request, and return its answer as soon as its head is there.

        A connection that was idle may have been closed by the engine just now: then the request is sent again. Raises
        UpstreamError.
        """
        while self._idle:
            connection = self._idle.pop()
            try:
                return await connection.ask(request, silence_seconds)
            except _StaleError:
                continue
        return await (await self._connect()).ask(request, silence_seconds)

    def close(self) -> None:
        """Close the connections that are idle; others when their answer ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, self._address), self._address.host, self._address.port
                )
        except TimeoutError as error:
            raise NotConnectedError("the engine accepts no connection") from error
        except OSError as error:
            raise NotConnectedError(f"the engine can't be reached: {error.strerror or error}") from error
        return connection

    def take_back(self, connection: "_Connection") -> None:
        """Keep a connection whose answer has ended."""
        if self._closed:
            connection.abort()
        else:
            self._idle.append(connection)

    def forget(self, connection: "_Connection") -> None:
        """Forget an idle connection that the engine has closed."""
        if connection in self._idle:
            self._idle.remove(connection)


class _StaleError(UpstreamError):
    """A connection that had been idle was closed before any byte of an answer."""


class _Connection(asyncio.Protocol):
    """A connection, and the answer that is on it."""

    def __init__(self, pool: PlainUpstream, address: Address) -> None:
        self._pool = pool
        self._address = address
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._changed: asyncio.Future[None] | None = None
        self._answers = 0
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._chunks: deque[bytes] = deque()
        self._unread_bytes = 0
        self._bare_bytes = 0
        self._has_come = False
        self._has_head = False
        self._is_whole = False
        self._keep_alive = False
        self._without_body = False
        self._is_paused = False
        self._failure = ""
        self._silence_seconds = 0.0

    # What the pool and the reader of an answer call.

    async def ask(self, request: OutgoingRequest, silence_seconds: float) -> "_Connection":
        self._begin()
        self._silence_seconds = silence_seconds
        self._without_body = request.method == b"HEAD"
        self._answers += 1
        self._transport.writelines([self._head_of(request), request.body])
        try:
            while not self._has_head:
                self._raise_failure()
                await self._change()
        except BaseException:  # a cancel, too: the engine would answer nobody
            self.abort()
            raise
        return self

    def _head_of(self, request: OutgoingRequest) -> bytes:
        target, host = self._address.target(request.target), self._address.host_header
        lines = [b"%s %s HTTP/1.1\r\nhost: %s\r\naccept-encoding: identity\r\n" % (request.method, target, host)]
        lines += [b"%s: %s\r\n" % header for header in request.headers]
        if request.body or request.method == b"POST":
            lines.append(b"content-length: %d\r\n" % len(request.body))
        return b"".join((*lines, b"\r\n"))

    async def chunk(self) -> bytes:
        while not self._chunks:
            if self._is_whole:
                return b""
            self._raise_failure()
            await self._change()
        if len(self._chunks) == 1:
            data = self._chunks.popleft()
        else:
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        written = not self._transport.get_write_buffer_size()  # an engine may refuse a body before it has read all of it
        if self._is_whole and self._keep_alive and not self._failure and written and not self._transport.is_closing():
            self._begin()
            self._pool.take_back(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._transport.abort()

    def _raise_failure(self) -> None:
        if self._failure:
            is_stale = self._answers > 1 and not self._has_come
            raise (_StaleError if is_stale else UpstreamError)(self._failure)

    async def _change(self) -> None:
        """Wait until something has come, or nothing for too long."""
        loop = asyncio.get_running_loop()
        self._changed = loop.create_future()
        timer = loop.call_later(self._silence_seconds, self._is_silent)
        try:
            await self._changed
        finally:
            timer.cancel()
            self._changed = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._has_come = True
        self._bare_bytes += len(data)
        if self._is_whole or not self._silence_seconds:
            self._fail("the engine sent more than its answer")
        else:
            self._parse(data)
        self._wake()

    def eof_received(self) -> None:
        self._ends()

    def connection_lost(self, _error: Exception | None) -> None:
        self._ends()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the engine does not speak HTTP: {error}")
        if self._bare_bytes > _MAX_BARE_BYTES:
            self._fail("the engine sends headers without end")
        if self._unread_bytes > _MAX_UNREAD_BYTES and not self._is_paused and not self._is_whole:
            self._is_paused = True
            self._transport.pause_reading()

    def _ends(self) -> None:
        """Note that nothing more comes. Where the engine did not say how long its answer is, that is its end."""
        if self._has_head and not self._is_whole and not self._has_length():
            self._is_whole = True
        elif not self._is_whole:
            self._fail("the engine closed the connection before its answer was whole")
        self._keep_alive = False
        self._pool.forget(self)
        self._wake()

    def _has_length(self) -> bool:
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._pool.forget(self)
        self._transport.abort()

    def _is_silent(self) -> None:
        self._fail(f"the engine was silent for {self._silence_seconds:g} s")
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._is_whole:
            self._fail("the engine sent more than its answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._has_head:
            return
        status = self._parser.get_status_code()
        if status < 200:  # a 100 Continue; the answer follows
            self.headers.clear()
            return
        self.status = status
        self._has_head = True
        if self._without_body:
            self._is_whole = True  # the parser would wait for a body; `close` drops the connection

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        if not self._is_whole:
            self._chunks.append(body)
            self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._has_head and not self._is_whole:
            self._is_whole = True
            self._keep_alive = self._parser.should_keep_alive()
