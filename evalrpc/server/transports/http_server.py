"""All that is served over HTTP, at each of its addresses. Loaded only where there is one."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Final

from google.protobuf.descriptor import ServiceDescriptor

from evalrpc.clock import Clock
from evalrpc.config import LMMS_EVAL, Settings
from evalrpc.config.listeners import Listener
from evalrpc.server.audit import Audit
from evalrpc.server.auth.authenticator import Authenticator
from evalrpc.server.auth.presented import Presented
from evalrpc.server.call import ANONYMOUS, Principal
from evalrpc.server.certificates import Certificate
from evalrpc.server.handlers import Handler
from evalrpc.server.metering import Meters
from evalrpc.server.threads import start_pool
from evalrpc.server.transports.connect.endpoints import ConnectCodec, endpoints_of, unknown_calls
from evalrpc.server.transports.http.application import MAX_BODIES_BYTES, HttpApplication
from evalrpc.server.transports.http.codec import JsonCodec
from evalrpc.server.transports.http.gate import Gate
from evalrpc.server.transports.http.listener import HttpListener
from evalrpc.server.transports.http.methods import HttpMethod, methods_of
from evalrpc.server.transports.lmms_eval.endpoints import LmmsEvalEndpoints
from evalrpc.server.transports.page.files import PageFiles
from evalrpc.server.transports.page.session import PATH as SESSION_PATH
from evalrpc.server.transports.page.session import SessionEndpoint
from evalrpc.server.transports.plain.events import PATH as EVENTS_PATH
from evalrpc.server.transports.plain.events import EventsEndpoint
from evalrpc.server.transports.plain.files import FilesEndpoint
from evalrpc.server.unread import Disconnect, UnreadBytes

_CONVERTERS: Final = 2

Service = tuple[ServiceDescriptor, Mapping[str, Handler]]
"""A service, and the handlers of its methods."""


class HttpServer:
    """The addresses for HTTP of one server. Created within the event loop that it belongs to."""

    def __init__(
        self,
        listeners: Sequence[tuple[Listener, Certificate | None]],
        settings: Settings,
        evaluation: Service,
        health: Service,
        authenticator: Authenticator,
        audit: Audit,
        meters: Meters | None,
        readers: Executor,
        gpu_count: int,
        clock: Clock,
        disconnect: Disconnect,
    ) -> None:
        """`evaluation` asks who calls, `health` does not. `disconnect` ends the connections of clients. Raises
        ConfigurationError."""
        self._settings = settings
        self._clock = clock
        self._page = PageFiles() if settings.page else None
        self._evaluation = evaluation
        self._health = health
        self._authenticator = authenticator
        self._audit = audit
        self._meters = meters
        self._readers = readers
        self._gpu_count = gpu_count
        self._bodies = UnreadBytes(MAX_BODIES_BYTES, disconnect)
        self._converters = start_pool(_CONVERTERS, "converter")
        self._codec = ConnectCodec(JsonCodec(self._converters), settings.max_request_bytes)
        self.listeners: Final = [
            HttpListener(listener, certificate, settings, self._application(listener), readers)
            for listener, certificate in listeners
        ]
        """Where it listens, and how."""

    def close(self) -> None:
        """End what converts messages. To be called when all listeners have stopped."""
        self._converters.shutdown(wait=False, cancel_futures=True)

    def _application(self, listener: Listener) -> HttpApplication:
        service, handlers = self._evaluation
        authenticate = self._authenticator.for_listener(requires_sign_in=listener.requires_sign_in, owner=listener.owner)
        methods = methods_of(service, handlers, authenticate, self._audit, self._meters)
        health, health_handlers = self._health
        events = EventsEndpoint(methods["WatchJob"], methods["WatchJobs"], self._codec.events)
        endpoints = {
            **endpoints_of(service.full_name, methods, self._codec),
            **endpoints_of(health.full_name, methods_of(health, health_handlers, _anonymous), self._codec),
            EVENTS_PATH: events.answer,
        }
        if self._settings.page:
            endpoints[SESSION_PATH] = SessionEndpoint(authenticate, self._clock, is_tls=listener.tls is not None).answer
        gate, most = Gate(listener, self._settings), self._settings.max_request_bytes
        finders = [FilesEndpoint(methods).find, unknown_calls(service, health)]
        if self._page is not None:
            finders.append(self._page.find_for_browsers if listener.lmms_eval_paths else self._page.find)
        if listener.lmms_eval_paths:
            finders.append(self._lmms_eval_paths(methods).find)
        return HttpApplication(
            gate, most, endpoints, *finders, bodies=self._bodies, proxy_token_header=listener.proxy_token_header
        )

    def _lmms_eval_paths(self, methods: Mapping[str, HttpMethod]) -> LmmsEvalEndpoints:
        harnesses = self._settings.harnesses
        harness = next((name for name in sorted(harnesses) if harnesses[name].kind == LMMS_EVAL), "")
        return LmmsEvalEndpoints(methods, harness, self._gpu_count, self._settings.preparations, self._readers)


def _anonymous(presented: Presented) -> Principal:  # noqa: ARG001 - the shape of Authenticate
    return ANONYMOUS
