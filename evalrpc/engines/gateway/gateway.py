"""The gateway itself: it accepts connections, finds the route of each request, and stops well."""

import asyncio
import errno
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, replace
from typing import Final

from evalrpc.engines.gateway.budget import ByteBudget
from evalrpc.engines.gateway.client_connection import ClientConnection, ClientRequest, Limits
from evalrpc.engines.gateway.contract import PROTOCOL, Status
from evalrpc.engines.gateway.replies import error_reply
from evalrpc.engines.gateway.routes import RouteHandler, Routes
from evalrpc.engines.gateway.upstream import Headers, header

_LOGGER: Final = logging.getLogger(__name__)
_PREFIX: Final = "/j/"
_BEARER: Final = b"Bearer "
_MAX_TARGET_CHARACTERS: Final = 8 << 10
_LOOK_SECONDS: Final = 1.0
_STOP_LOOK_SECONDS: Final = 0.02
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPTED_AT_ONCE: Final = 64


@dataclass(frozen=True)
class GatewayLimits:
    """What all connections together may take."""

    max_connections: int = 1024
    """Of harnesses. Further ones wait until others are closed; idle ones are closed for them."""
    max_body_bytes: int = 64 << 20
    """Of a request."""
    max_bytes_in_flight: int = 256 << 20
    """Of the bodies of requests, three quarters, and of answers, a quarter, above 64 kB each."""


class Gateway:
    """Serves on a socket that listens already."""

    def __init__(self, listener: socket.socket, limits: GatewayLimits) -> None:
        self._listener = listener
        self._limits = limits
        self._request_bytes = ByteBudget(limits.max_bytes_in_flight * 3 // 4)
        self._answer_bytes = ByteBudget(limits.max_bytes_in_flight // 4)
        self._connections: set[ClientConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_accepting = False
        self._is_stopping = False
        self._ticker: asyncio.TimerHandle | None = None
        self.instance = secrets.token_hex(8)
        self.routes = Routes(self._answer_bytes)

    def start(self) -> None:
        """Begin to accept connections."""
        self._listener.setblocking(False)
        self._tick()

    async def stop(self, seconds: float) -> None:
        """Accept nothing more, let requests end for some seconds, break off the rest, and close the recordings."""
        self._is_stopping = True
        self._stop_accepting()
        for connection in tuple(self._connections):
            connection.finish()
        deadline = time.monotonic() + seconds
        while self._connections and time.monotonic() < deadline:  # noqa: ASYNC110 - once, and not for long
            await asyncio.sleep(_STOP_LOOK_SECONDS)
        if self._ticker is not None:
            self._ticker.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        await self.routes.close()

    def status(self) -> Status:
        """Return what the gateway is and has. The keys of engines are left out."""
        host, port = self._listener.getsockname()[:2]
        return Status(
            instance=self.instance,
            protocol=PROTOCOL,
            pid=os.getpid(),
            address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            declared=self.routes.declared,
            engines=tuple(replace(each, key="") for each in self.routes.engines),
            routes=self.routes.statuses(),
            connections=len(self._connections),
            bytes_in_flight=self._request_bytes.used + self._answer_bytes.used,
        )

    async def _answer(self, request: ClientRequest) -> None:
        """Answer a request. What goes wrong here is the gateway's fault."""
        handler: RouteHandler | None = None
        try:
            token, target = _parse_target(request.target, request.headers)
            handler = await self.routes.find(token) if token else None
            if handler is None:
                request.reply(error_reply(404, "there is no such route: the attempt that it belonged to has ended"))
            else:
                await handler.handle(request, request.method, target, request.headers, request.body())
        except (
            Exception
        ):  # the last resort: a bug is counted, so that the attempt is made again, and the harness gets an answer
            job_id = handler.route.job_id if handler else ""
            _LOGGER.exception("a request failed through a fault of the gateway", extra={"job_id": job_id})
            if handler is not None:
                handler.note_gateway_failure()
            if request.has_begun:
                request.abort()
            else:
                request.reply(error_reply(500, "a fault of the gateway"))

    # Connections.

    def _tick(self) -> None:
        """Close what is too slow, and accept connections again where that had to stop."""
        now = time.monotonic()
        for connection in tuple(self._connections):
            connection.check_time(now)
        if not self._has_room():
            self._close_idle(now)
        self._accept_if_room()
        self._ticker = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._tick)

    def _accept_if_room(self) -> None:
        if not self._is_accepting and not self._is_stopping and self._has_room():
            self._is_accepting = True
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            asyncio.get_running_loop().remove_reader(self._listener)

    def _has_room(self) -> bool:
        return len(self._connections) + len(self._opening) < self._limits.max_connections

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if not self._has_room():
                self._stop_accepting()  # until the next tick
                return
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                _LOGGER.warning("no connection can be accepted: %s", error.strerror)
                self._stop_accepting()  # until the next tick
                return
            self._open(accepted)

    def _open(self, accepted: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limits = Limits(self._limits.max_body_bytes, self._request_bytes)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: ClientConnection(self._answer, limits, self._connections), accepted
        )

    def _close_idle(self, now: float) -> None:
        """Make room for connections that wait: harnesses open another one where an idle one was closed."""
        for connection in tuple(self._connections):
            if connection.idle_seconds(now) >= _LOOK_SECONDS:
                connection.finish()


def _parse_target(target: bytes, headers: Headers) -> tuple[str, str]:
    """Return the token of a request, and what its target is below that; empty: it has none. The token is part of the target, or
    else the bearer token, as of clients whose address stands on a command line."""
    text = target.decode("ascii", "replace")
    if len(text) > _MAX_TARGET_CHARACTERS or not text.isprintable():
        return "", ""
    if not text.startswith(_PREFIX):
        return header(headers, b"authorization").removeprefix(_BEARER).decode("ascii", "replace"), text
    token, slash, below = text.removeprefix(_PREFIX).partition("/")
    return (token, f"/{below}") if slash else ("", "")
