"""An HTTP server at one address, with the rules of that address: uvicorn's protocol on the server's own event loop.

uvicorn's own server is not used: it takes the signals of the process for itself, and ends the process where it can't start.
"""

import asyncio
import socket
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from uvicorn.config import Config

from evalrpc.config import Settings
from evalrpc.config.addresses import PortAddress, SocketAddress
from evalrpc.config.listeners import Listener
from evalrpc.server.certificates import Certificate
from evalrpc.server.listening import most_connections
from evalrpc.server.transports.http.application import HttpApplication
from evalrpc.server.transports.http.connection import ConnectionBounds, HttpConnection, HttpConnections
from evalrpc.server.transports.http.sockets import bind
from evalrpc.server.transports.http.tls import ChangingContext

_BACKLOG: Final = 2048


class HttpListener:
    """Created within the event loop that it belongs to."""

    def __init__(
        self,
        listener: Listener,
        certificate: Certificate | None,
        settings: Settings,
        application: HttpApplication,
        readers: Executor,
    ) -> None:
        self.listener = listener
        """Its rules, with the port that it got once it is bound."""
        self.certificate = certificate
        """None: it has no TLS."""
        self._config = _config(application)
        self._connections = HttpConnections(_bounds(settings))
        self._context = ChangingContext(certificate) if certificate else None
        self._readers = readers
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, as a URL; of a socket, as http+unix:PATH."""
        scheme = "https" if self.certificate else "http"
        address = self.listener.address
        return f"{scheme}://{address}" if isinstance(address, PortAddress) else f"{scheme}+{address}"

    def bind(self) -> None:
        """Take the port, or the socket. Raises ConfigurationError, with the reason, if that is impossible."""
        address, self._sockets = bind(self.listener)
        self.listener = self.listener._replace(address=address)

    async def start(self) -> None:
        """Begin to serve."""
        loop, context = asyncio.get_running_loop(), self._context.context if self._context else None
        for one in self._sockets:
            create = loop.create_unix_server if one.family == socket.AF_UNIX else loop.create_server
            make = lambda: HttpConnection(self._config, self._connections)  # noqa: E731
            self._servers.append(await create(make, sock=one, ssl=context, backlog=_BACKLOG))
        if self._context is not None:
            self._refreshing = asyncio.create_task(self._context.run(self._readers))

    async def stop(self, grace_seconds: float) -> None:
        """Take no new requests, and break off those that are left after this time."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for server in self._servers:
            server.close()
        for one in self._sockets:
            one.close()
        if isinstance(self.listener.address, SocketAddress):
            self.listener.address.path.unlink(missing_ok=True)
        for connection in list(self._connections.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._connections.are_gone.wait()
        for connection in list(self._connections.connections):
            connection.transport.abort()
        await self._connections.are_gone.wait()
        if tasks := self._connections.tasks:
            await asyncio.wait(tasks)


def _config(application: HttpApplication) -> Config:
    config = Config(
        application,
        loop="none",
        http=HttpConnection,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    return config


def _bounds(settings: Settings) -> ConnectionBounds:
    return ConnectionBounds(
        settings.max_connections or most_connections(),
        settings.max_connection_idle_seconds or None,
        settings.max_connection_age_seconds or None,
    )
