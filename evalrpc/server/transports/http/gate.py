"""Which requests are let in at an address for HTTP, before anybody looks at who calls.

A browser sends requests to any server that it reaches, for any page that it shows, and where nobody has to sign in that is all
it takes to submit. So a page of another server is kept out in three ways: by its name in `Host`, which it may have had pointed
here; by its `Origin`, and what the browser says of the site that a request comes from; and by the types that bodies must have,
which no page may send without asking first (OPTIONS).
"""

import ipaddress
import socket
from collections.abc import Iterator
from typing import Final

from evalrpc.config import Settings
from evalrpc.config.addresses import PortAddress
from evalrpc.config.listeners import Listener
from evalrpc.errors import PermissionDeniedError
from evalrpc.printable import printable
from evalrpc.server.transports.http.request import Headers, HttpRequest

_FORWARDED: Final = "x-forwarded-"
_PROXIES: Final = frozenset({"forwarded", "x-real-ip"})
_READING: Final = ("GET", "HEAD", "OPTIONS")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_PREFLIGHT_SECONDS: Final = 7200

_REQUEST_HEADERS: Final = (
    "authorization, content-type, content-encoding, connect-protocol-version, connect-timeout-ms, connect-content-encoding, "
    "connect-accept-encoding, last-event-id, traceparent, tracestate, x-user-agent"
)
_ANSWER_HEADERS: Final = "content-encoding, content-disposition, retry-after"


class Gate:
    """The rules of one address."""

    def __init__(self, listener: Listener, settings: Settings) -> None:
        self._requires_sign_in = listener.requires_sign_in
        self._schemes = ("https",) if listener.tls else ("http", "https")  # a proxy before it may speak TLS
        self._hosts = {host.lower() for host in _hosts(listener, settings)}
        self._origins = frozenset(origin.lower() for origin in settings.http_origins)

    def admit(self, request: HttpRequest) -> None:
        """Let a request in; if a page of a named origin sends it, its browser is told. Raises PermissionDeniedError."""
        headers = request.headers
        self._check_host(headers.get("host", ""))
        if not self._requires_sign_in:
            _check_not_forwarded(request)
        origin = headers.get("origin", "").lower()
        if request.proxy_token and request.method not in _READING and not self._is_own(origin, headers.get("host", "").lower()):
            raise PermissionDeniedError(
                "a browser that a proxy signs in may only call from the server's own page; a program sends `Authorization`"
            )
        if origin in self._origins:
            request.answer_headers.extend(_allowing(origin))
        elif origin and not self._is_own(origin, headers.get("host", "").lower()):
            raise PermissionDeniedError(
                f"a page of {printable(origin)[:200]} may not call this server; if it should, the operator names it in "
                "http_origins"
            )
        elif not origin and headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_link(request):
            raise PermissionDeniedError(
                "a page of another server may not call this one; if it should, the operator names it in http_origins"
            )

    def is_preflight(self, request: HttpRequest) -> bool:
        """Return whether a browser asks what a page may do."""
        return request.method == "OPTIONS" and "access-control-request-method" in request.headers

    async def answer_preflight(self, request: HttpRequest) -> None:
        """Say what it may do, if anything: a request that is let in without leave to do more gets none here."""
        allowed = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", _REQUEST_HEADERS.encode()),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_SECONDS),
        ]
        await request.respond(204, allowed)

    def _check_host(self, host: str) -> None:
        name = _without_port(host.lower())
        if name in self._hosts or name.endswith(".localhost") or _is_address(name):
            return
        raise PermissionDeniedError(
            f"this server is not called {printable(name)[:200]!r}; if it should be, the operator names it in http_hosts"
            if name
            else "the request must say in `Host` which server it is for"
        )

    def _is_own(self, origin: str, host: str) -> bool:
        """Return whether an origin is that of this server's own pages."""
        scheme, _, place = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme, "")
        return scheme in self._schemes and place.removesuffix(port) == host.removesuffix(port)


def _hosts(listener: Listener, settings: Settings) -> Iterator[str]:
    yield "localhost"
    yield socket.gethostname()
    yield from settings.http_hosts
    if isinstance(listener.address, PortAddress):
        yield listener.address.host


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (name.endswith("]") or ":" not in name) else host


def _is_address(name: str) -> bool:
    """Return whether it is an address in numbers, which nobody can point to another server."""
    is_bracketed = name.startswith("[") and name.endswith("]")
    try:
        return ipaddress.ip_address(name[1:-1] if is_bracketed else name).version == (6 if is_bracketed else 4)
    except ValueError:
        return False


def _check_not_forwarded(request: HttpRequest) -> None:
    for name in request.headers:
        if name in _PROXIES or name.startswith(_FORWARDED):
            raise PermissionDeniedError(
                f"the request came through a proxy (it has the header {printable(name)[:100]}), and this address asks nobody "
                "to sign in: so anybody could be behind it; the operator has to require sign-in here (setting auth)"
            )


def _is_link(request: HttpRequest) -> bool:
    """Return whether somebody follows a link to here, which shows nothing to the page with the link."""
    headers = request.headers
    is_navigation = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return request.method == "GET" and is_navigation


def _allowing(origin: str) -> Headers:
    return (
        (b"access-control-allow-origin", origin.encode()),
        (b"access-control-expose-headers", _ANSWER_HEADERS.encode()),
        (b"vary", b"origin"),
    )
