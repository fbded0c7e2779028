"""Which requests are let in over HTTP: by their Host, their Origin, what browsers say of where they come from, and proxies."""

from types import SimpleNamespace
from typing import Any

import pytest

from evalrpc.config import Settings
from evalrpc.config.addresses import PortAddress, SocketAddress
from evalrpc.config.listeners import Listener, TlsFiles
from evalrpc.errors import PermissionDeniedError
from evalrpc.server.transports.http.connection import SCOPE_KEY
from evalrpc.server.transports.http.gate import Gate
from evalrpc.server.transports.http.request import HttpRequest
from evalrpc.server.unread import UnreadBytes

HOST = "127.0.0.1:8080"
HERE = PortAddress("127.0.0.1", 8080)
FOREIGN = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


async def nothing(*_: object) -> Any:
    return None


def request(method: str = "POST", **headers: str) -> HttpRequest:
    given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"method": method, "path": "/", "raw_path": b"/", "query_string": b"", "headers": pairs}
    return HttpRequest({**scope, SCOPE_KEY: SimpleNamespace()}, nothing, nothing, 1000, UnreadBytes(1, lambda peers: None))


def gate(listener: Listener | None = None, **settings: Any) -> Gate:
    return Gate(listener or Listener(HERE, None, requires_sign_in=False), Settings(**settings))


def is_admitted(to: Gate, of: HttpRequest) -> bool:
    try:
        to.admit(of)
    except PermissionDeniedError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8080", True),
        ("127.0.0.1", True),
        ("localhost:9999", True),
        ("LOCALHOST", True),
        ("eval.localhost:1", True),
        ("[::1]:8080", True),
        ("10.9.8.7", True),  # no name, so nobody can have pointed it here
        ("evals.example.org", True),
        ("evals.example.org:443", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example,127.0.0.1", False),
        ("[::1", False),
        ("2130706433", False),
        ("::1", False),
        ("", False),
    ],
)
def test_a_name_that_the_server_does_not_have_is_refused(host: str, expected: bool) -> None:
    assert is_admitted(gate(http_hosts=("evals.example.org",)), request(host=host)) is expected


def test_the_host_in_the_setting_is_one_of_its_names() -> None:
    listener = Listener(PortAddress("evals.internal", 8080), None, requires_sign_in=True)
    assert is_admitted(gate(listener), request(host="evals.internal:8080"))


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("https://127.0.0.1:8080", True),  # a proxy before it speaks TLS
        ("http://127.0.0.1:8081", False),
        ("http://localhost:8080", False),  # another origin than the one that the browser calls
        ("http://evil.example", False),
        ("null", False),
        ("ftp://127.0.0.1:8080", False),
        ("https://dashboard.example", True),
        ("https://dashboard.example.evil", False),
        ("http://dashboard.example", False),
    ],
)
def test_a_page_may_call_if_it_is_the_servers_own_or_named(origin: str, expected: bool) -> None:
    assert is_admitted(gate(http_origins=("https://dashboard.example",)), request(origin=origin)) is expected


def test_with_tls_a_page_without_it_is_foreign() -> None:
    tls = Listener(HERE, TlsFiles(*3 * [None]), requires_sign_in=True)  # type: ignore[arg-type]
    assert is_admitted(gate(tls), request(origin=f"https://{HOST}"))
    assert not is_admitted(gate(tls), request(origin=f"http://{HOST}"))


def test_the_default_port_may_be_left_out() -> None:
    assert is_admitted(gate(), request(host="localhost", origin="http://localhost:80"))
    assert is_admitted(gate(), request(host="localhost:443", origin="https://localhost"))


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_foreign_page_embeds_is_refused_even_without_an_origin(site: str) -> None:
    assert not is_admitted(gate(), request("GET", **FOREIGN | {"sec-fetch-site": site}))


def test_a_link_on_a_foreign_page_may_be_followed() -> None:
    assert is_admitted(gate(), request("GET", **LINK))
    assert not is_admitted(gate(), request("POST", **LINK))
    assert not is_admitted(gate(), request("GET", **LINK | {"sec-fetch-dest": "iframe"}))


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_what_a_person_or_the_servers_own_page_asks_for_is_let_in(site: str) -> None:
    assert is_admitted(gate(), request("GET", **FOREIGN | {"sec-fetch-site": site}))


@pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_forwarded_proto", "x_forwarded_anything", "x_real_ip"])
def test_what_comes_through_a_proxy_is_refused_only_where_nobody_signs_in(header: str) -> None:
    signed_in = Listener(HERE, None, requires_sign_in=True)
    assert not is_admitted(gate(), request(**{header: "192.0.2.1"}))
    assert is_admitted(gate(signed_in), request(**{header: "192.0.2.1"}))
    socket = Listener(SocketAddress(HERE), None, requires_sign_in=False)  # type: ignore[arg-type]
    assert not is_admitted(gate(socket), request(**{header: "192.0.2.1"}))


def test_only_a_named_origin_is_told_that_it_may_read() -> None:
    named = request(origin="https://dashboard.example")
    own = request(origin=f"http://{HOST}")
    rules = gate(http_origins=("https://dashboard.example",))
    rules.admit(named)
    rules.admit(own)
    assert dict(named.answer_headers)[b"access-control-allow-origin"] == b"https://dashboard.example"
    assert b"access-control-allow-origin" not in dict(own.answer_headers)
