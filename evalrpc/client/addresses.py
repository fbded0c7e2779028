"""Where a server is: gRPC's own addresses, and URLs as people write them.

HOST, HOST:PORT, [IPV6]:PORT               a name or an address; the port is 50051 unless given
dns:///HOST:PORT                           the same, as gRPC spells it
ipv4:A:PORT,B:PORT  ipv6:[A]:PORT,[B]:PORT several addresses of one server
unix:PATH  unix:///PATH                    a socket of this machine
http://HOST:PORT  https://HOST:PORT        without or with TLS; the port of https is 443 unless given
"""

import ipaddress
import os
import re
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 50051
HTTPS_PORT: Final = 443

_FORMS: Final = "write HOST:PORT, https://HOST:PORT, dns:///HOST:PORT, ipv4:A:PORT,B:PORT, ipv6:[A]:PORT or unix:PATH"
_SCHEME: Final = re.compile(r"(?P<scheme>https?|dns|ipv4|ipv6|unix|unix-abstract):(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?", re.DOTALL)
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_ONLY_NUMBERS: Final = re.compile(r"[0-9.]+")
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY: Final = ("no_grpc_proxy", "no_proxy")
_USER_INFO: Final = re.compile(r"(^|//)[^/]*@")  # may have a password, which no message repeats
_PORT: Final = re.compile(r"[0-9]{1,5}")


class Address(NamedTuple):
    """A server's address, ready for gRPC."""

    target: str
    """What gRPC connects to."""
    uses_tls: bool = False
    is_local: bool = False
    """Whether it is on this machine: a loopback address or a socket, to which no proxy leads."""


class _Endpoint(NamedTuple):
    host: str
    """Without the brackets of an IPv6 address."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        if self.host.rstrip(".").lower() == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified


def parse_address(text: str) -> Address:
    """Parse an address in any of the forms above. Connects to nothing. Raises ValueError that says what is wrong with it."""
    try:
        return _parse(text)
    except ValueError as error:
        shown = _USER_INFO.sub(r"\1***@", text)
        raise ValueError(f"the address {shown!r} {error}") from None


def proxy_variable(text: str) -> str:
    """Return the environment variable that sends gRPC to a proxy on the way to this address; empty if none does."""
    try:
        address = parse_address(text)
    except ValueError:
        return ""
    excepted = next(filter(None, map(os.environ.get, _NO_PROXY)), "")
    host = address.target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if address.is_local or any(host.endswith(name) for each in excepted.split(",") if (name := each.strip())):
        return ""
    return next((name for name in _PROXIES if os.environ.get(name)), "")


def _parse(text: str) -> Address:
    match = _SCHEME.fullmatch(text)
    if match is None:
        if "://" in text:
            raise ValueError(f"has a scheme that is not known: {_FORMS}")
        return _single("", _endpoint(text))
    scheme, rest = match["scheme"].lower(), match["rest"]
    match scheme:
        case "http" | "https":
            return _url(scheme, rest)
        case "dns":
            authority = re.match(r"(?://[^/]*/)?", rest)
            prefix = authority[0] if authority else ""
            return _single(f"dns:{prefix}", _endpoint(rest.removeprefix(prefix)))
        case "ipv4" | "ipv6":
            return _several(scheme, rest)
    return _socket(scheme, rest)


def _single(prefix: str, endpoint: _Endpoint) -> Address:
    return Address(f"{prefix}{endpoint}", is_local=endpoint.is_local)


def _url(scheme: str, rest: str) -> Address:
    match = re.fullmatch(r"//([^/?#]*)(.*)", rest, re.DOTALL)
    if match is None:
        raise ValueError(f"is no URL: write {scheme}://HOST:PORT")
    authority, path = match.groups()
    if path not in ("", "/"):
        raise ValueError(f"has a path, which gRPC can't use: write {scheme}://{authority.rpartition('@')[2]}")
    endpoint = _endpoint(authority, HTTPS_PORT if scheme == "https" else DEFAULT_PORT)
    return Address(str(endpoint), uses_tls=scheme == "https", is_local=endpoint.is_local)


def _several(scheme: str, rest: str) -> Address:
    endpoints = [_endpoint(part) for part in rest.split(",")]
    for endpoint in endpoints:
        if not _is_ip(endpoint.host, 6 if scheme == "ipv6" else 4):
            raise ValueError(f"names {endpoint.host!r}, which is no {scheme.replace('ip', 'IP')} address")
    return Address(f"{scheme}:{','.join(map(str, endpoints))}", is_local=all(endpoint.is_local for endpoint in endpoints))


def _socket(scheme: str, rest: str) -> Address:
    if not rest.strip("/") or "\0" in rest:
        raise ValueError(f"names no socket: write {scheme}:PATH")
    if scheme == "unix" and rest.startswith("//") and not rest.startswith("///"):
        raise ValueError("has two slashes: write unix:PATH, or unix:///PATH for a path from the root")
    return Address(f"{scheme}:{rest}", is_local=True)


def _endpoint(text: str, default_port: int = DEFAULT_PORT) -> _Endpoint:
    if "@" in text:
        raise ValueError("has a user name or a password, which nothing here reads: leave it out")
    if _is_ip(text, 6):
        return _Endpoint(text, default_port)
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"is not understood: {_FORMS}")
    host, port = match["host"], match["port"]
    return _Endpoint(_host(host), default_port if port is None else _port(port))


def _host(host: str) -> str:
    if host.startswith("["):
        if not _is_ip(host[1:-1], 6):
            raise ValueError(f"has {host!r}, which is no IPv6 address in brackets")
        return host[1:-1]
    if not host:
        raise ValueError("names no host: write HOST:PORT, such as 127.0.0.1:50051")
    if _ONLY_NUMBERS.fullmatch(host) and not _is_ip(host, 4):
        only_port = " (a port needs a host: write 127.0.0.1:PORT)" if host.isdecimal() else ""
        raise ValueError(f"has {host!r}, which is neither an IPv4 address nor the name of a host{only_port}")
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise ValueError(f"has {host[:80]!r}, which can't be the name of a host: {_FORMS}")
    return host


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"has the port {text[:80]!r}, which is no number from 1 to 65535")
    return int(text)


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
