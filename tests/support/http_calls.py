"""Plain requests over HTTP, as any script makes them."""

import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from serving import SECONDS, ServerHere

from evalrpc.server.app import SERVICE

JSON: Final = {"content-type": "application/json"}
_HEAD_BYTES: Final = 5
_END: Final = 2


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


class HttpApi:
    """The calls at a URL, or at http+unix:PATH. Each request has a connection of its own."""

    def __init__(self, url: str, *, token: str = "", context: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._context = context

    def connect(self) -> http.client.HTTPConnection:
        if self.url.startswith("http+unix:"):
            return _SocketConnection(self.url.removeprefix("http+unix:"))
        parts = urlsplit(self.url)
        assert parts.hostname
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=SECONDS, context=self._context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)

    @contextmanager
    def opened(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Make a request, and yield the answer before its body is read."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            yield connection.getresponse()
        finally:
            connection.close()

    def request(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        with self.opened(method, path, body, headers) as answer:
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def call(self, method: str, message: Mapping[str, Any] | None = None, **headers: str) -> Answer:
        """Make a unary call with JSON."""
        return self.request("POST", path_of(method), json.dumps(message or {}).encode(), JSON | headers)

    @contextmanager
    def stream(self, method: str, message: Mapping[str, Any] | None = None, **headers: str) -> Iterator[Iterator[Any]]:
        """Make a streaming call with JSON. Yields its messages, the last of which is `{"end": …}`."""
        text = json.dumps(message or {}).encode()
        body = b"\0" + len(text).to_bytes(4) + text
        with self.opened("POST", path_of(method), body, {"content-type": "application/connect+json"} | headers) as answer:
            assert answer.status == 200, answer.read()
            yield _messages(answer)


def path_of(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def http_of(server: ServerHere, **options: Any) -> HttpApi:
    """Return the calls at the first address for HTTP of a server."""
    return HttpApi(server.server.http_listeners[0].address, **options)


def curl(*arguments: str, check: bool = True) -> str:
    """Run curl, and return what it prints."""
    command = ("curl", "--silent", "--show-error", "--max-time", f"{SECONDS:g}", *arguments)
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout


def _messages(answer: http.client.HTTPResponse) -> Iterator[Any]:
    while head := answer.read(_HEAD_BYTES):
        message = json.loads(answer.read(int.from_bytes(head[1:])))
        yield {"end": message} if head[0] == _END else message
