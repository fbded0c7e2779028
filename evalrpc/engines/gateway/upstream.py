"""What the gateway needs of a connection to an engine: requests and answers of HTTP, over plain sockets or over TLS."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias
from urllib.parse import SplitResult, urlsplit

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values."""


class UpstreamError(Exception):
    """An engine gave no whole answer."""


class NotConnectedError(UpstreamError):
    """An engine can't be reached, so it has not seen the request."""


class OutgoingRequest(NamedTuple):
    """A request to an engine."""

    method: bytes
    target: str
    """As the harness sees it: below its token, with the query."""
    headers: Headers
    body: bytes


class UpstreamAnswer(Protocol):
    """An answer that has begun: its head is there, its body comes."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Headers:
        """Names in lower case, and values."""

    async def chunk(self) -> bytes:
        """Return the next piece of the body; empty: it is whole. Raises UpstreamError if it breaks off, or is silent for
        long."""

    def close(self) -> None:
        """Say that no more of it is needed. Before its end that closes the connection."""


class Upstream(Protocol):
    """The connections to one replica."""

    async def ask(self, request: OutgoingRequest, silence_seconds: float) -> UpstreamAnswer:
        """Send a request, and return its answer as soon as its head is there. Raises UpstreamError."""

    def close(self) -> None:
        """Close the connections that are idle; others when their answer ends."""


_SCHEMES: Final = ("http", "https")


class Address(NamedTuple):
    """The address of a replica."""

    secure: bool
    host: str
    port: int
    v1: str
    """The path that `/v1` stands for, without a slash at its end."""
    root: str
    """The path that `/` stands for, without a slash at its end."""

    def target(self, target: str) -> bytes:
        """Return what to ask for at this address."""
        beside = target.removeprefix("/v1")
        return (self.root + target if beside == target else self.v1 + beside).encode()

    def url(self, target: str) -> str:
        """Return the whole URL of it."""
        return f"https://{self.host_header.decode()}{self.target(target).decode()}"

    @property
    def host_header(self) -> bytes:
        """The value of `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host.encode("idna" if not host.isascii() else "ascii") + b":%d" % self.port


def parse_address(url: str) -> Address:
    """Return the address that a URL stands for. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{_without_password(parts)} is no URL of an engine, such as http://127.0.0.1:8000/v1")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("the URL of an engine has characters that no URL has")
    secure = parts.scheme == "https"
    v1 = parts.path.rstrip("/")
    return Address(secure, parts.hostname, parts.port or (443 if secure else 80), v1, v1.removesuffix("/v1"))


def _without_password(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def is_listened_at(address: Address, within_seconds: float) -> bool:
    """Return whether a new connection to an address is accepted."""
    try:
        async with asyncio.timeout(within_seconds):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError:  # TimeoutError, too
        return False
    writer.close()
    return True


def header(headers: Headers, wanted: bytes) -> bytes:
    """Return the value of a header; empty: it is absent."""
    for name, value in headers:
        if name == wanted:
            return value
    return b""
