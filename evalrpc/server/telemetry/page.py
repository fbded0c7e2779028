"""The page with the metrics, over HTTP, as Prometheus asks for it: `GET /metrics`.

On threads of its own, so that it answers while the event loop lags.
"""

import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from evalrpc.config.addresses import PortAddress
from evalrpc.errors import ConfigurationError

_MAX_CONNECTIONS: Final = 8
_IDLE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.1


class MetricsPage:
    """Serves the metrics of a registry at an address. Raises ConfigurationError where nobody can listen there."""

    def __init__(self, address: PortAddress, registry: CollectorRegistry) -> None:
        host = address.host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server((host, address.port), _Handler, family)
        except OSError as error:
            text = f"setting metrics_listen: can't listen on {address}: {error.strerror or error}"
            raise ConfigurationError(text) from error
        self._server.set_app(make_wsgi_app(registry))
        self.address: Final = address._replace(port=self._server.server_port)
        """Where it listens, with the port that it got."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Serve no more. Blocks for a moment."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """A few connections at once; further ones are closed, so that nobody can have it start thousands of threads."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler], family: socket.AddressFamily) -> None:
        self.address_family = family
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without a look into the name service, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - as socketserver calls it
        """Take a connection if there is room for one."""
        return self._room.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        try:
            super().process_request(request, client_address)
        except (RuntimeError, MemoryError):  # there can be no thread at present
            self._room.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone or is silent."""


class _Handler(WSGIRequestHandler):
    """One that does not wait long for a client, nor writes a log of its own."""

    timeout = _IDLE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server names it
        """Say nothing."""
