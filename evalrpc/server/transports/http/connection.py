"""One connection of an HTTP client: uvicorn's, with bounds on its head, its age and its idleness, and with an end for the call
of a client that has left.

uvicorn itself lets a client take for ever to send a head of any size, keeps all trailers and all requests that a client sends
before it has its answer, and goes on with a call whose client has gone.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from evalrpc.server.transports.http.peers import auth_context_of, peer_of

SCOPE_KEY: Final = "evalrpc.connection"
"""Where the application finds the connection in a scope."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""The most that a client may send before the body of a request, or after it, or of its framing between two parts."""

MAX_PIPELINED: Final = 16
"""How many requests of a client may wait for the answer to the one before them."""

HEAD_SECONDS: Final = 20.0
"""How long a client may take for that, and for its first request after it has connected."""

_GRACE_SECONDS: Final = 60.0
_FOR_EVER: Final = 365 * 24 * 3600
_WRITE_BUFFER_BYTES: Final = 64 * 1024


class ConnectionBounds(NamedTuple):
    """What connections may take. None: any number, or for ever."""

    max_connections: int | None
    max_idle_seconds: float | None
    max_age_seconds: float | None


class HttpConnections(ServerState):
    """All connections of a listener."""

    def __init__(self, bounds: ConnectionBounds) -> None:
        super().__init__()
        self.bounds: Final = bounds
        self.are_gone = asyncio.Event()
        """Set while there is none."""
        self.are_gone.set()


class HttpConnection(HttpToolsProtocol):
    """Made by the event loop for each client."""

    def __init__(self, config: Config, connections: HttpConnections) -> None:
        super().__init__(config, connections, {})
        self._all = connections
        self._is_head = True
        self._bare_bytes = 0  # since the begin of a head, or the last of a body
        self._timers: list[asyncio.TimerHandle] = []
        self._head_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._peer: str | None = None
        self.timeout_keep_alive = max(1, round(connections.bounds.max_idle_seconds or _FOR_EVER))

    # What the application uses.

    @property
    def peer(self) -> str:
        """The other end, as gRPC writes it."""
        if self._peer is None:
            self._peer = peer_of(self.transport)
        return self._peer

    @property
    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS has verified of the client's certificate, as gRPC names it."""
        return auth_context_of(self.transport)

    def begin_call(self) -> None:
        """Have the current task cancelled if the client leaves."""
        self._task = asyncio.current_task()

    def end_call(self) -> None:
        """Leave the task alone from now on."""
        self._task = None

    def cut_off(self) -> None:
        """End the connection at once, in the middle of an answer, too."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # it hears that later, and would log meanwhile that an answer has no end
        self.transport.abort()

    async def wait_until_taken(self) -> None:
        """Wait until the client has taken all but the last few kilobytes of what was sent, or has left."""
        await self.flow.drain()

    # What the event loop and uvicorn's parser call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Take the connection, unless there are too many."""
        bounds = self._all.bounds
        if bounds.max_connections is not None and len(self.connections) >= bounds.max_connections:
            self.transport = transport
            transport.abort()
            return
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        super().connection_made(transport)
        self._all.are_gone.clear()
        self._expect_head()
        if bounds.max_age_seconds is not None:
            self._later(bounds.max_age_seconds, self.shutdown)
            self._later(bounds.max_age_seconds + _GRACE_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call that is in progress."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unset_head_timer()
        for timer in self._timers:
            timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if not self.connections:
            self._all.are_gone.set()

    def data_received(self, data: bytes) -> None:
        """Parse it, as long as what is no body has an end."""
        self._bare_bytes += len(data)
        super().data_received(data)
        if self._bare_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:  # else it would stand within another answer
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin with a head."""
        super().on_message_begin()
        self.scope[SCOPE_KEY] = self  # type: ignore[typeddict-unknown-key]
        if not self._is_head:
            self._is_head, self._bare_bytes = True, 0
            self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. What comes after a body is passed over, so that it changes no request which is let in already."""
        if self._is_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin with the call, or have it wait for those before it."""
        self._is_head = False
        self._unset_head_timer()
        if len(self.pipeline) < MAX_PIPELINED:
            super().on_headers_complete()
        else:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._bare_bytes = 0
        super().on_body(body)

    def _expect_head(self) -> None:
        self._unset_head_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unset_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _later(self, seconds: float, action: Any) -> None:
        self._timers.append(self.loop.call_later(seconds, action))
