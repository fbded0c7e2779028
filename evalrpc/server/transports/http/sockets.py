"""The sockets of an address for HTTP. They are bound here: uvicorn would end the process where that fails."""

import socket
import stat
from contextlib import ExitStack, suppress
from typing import Final

from evalrpc.config.addresses import ListenAddress, PortAddress, SocketAddress
from evalrpc.config.listeners import Listener
from evalrpc.errors import ConfigurationError
from evalrpc.server.listening import make_private, require_free

_KEEPALIVE: Final = {"TCP_KEEPIDLE": 120, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}
"""The connections of a client whose machine has vanished end after these seconds, and so many probes."""


def bind(listener: Listener) -> tuple[ListenAddress, list[socket.socket]]:
    """Return the address, with its port if that was to be a free one, and sockets that are bound to it. Raises
    ConfigurationError, with the reason, if that is impossible."""
    address = listener.address
    require_free(address, listener.setting_name)
    try:
        return _bind_port(address) if isinstance(address, PortAddress) else (address, [_bind_socket(address)])
    except OSError as error:
        raise ConfigurationError(f"setting {listener.setting_name}: can't listen on {address}: {error.strerror}") from error


def _bind_port(address: PortAddress) -> tuple[PortAddress, list[socket.socket]]:
    """Bind all addresses that the host has, to the same port. Raises OSError."""
    host, port = address.host.strip("[]"), address.port
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    with ExitStack() as stack:
        for family, kind, protocol, _, place in dict.fromkeys(found):
            try:
                one = stack.enter_context(_bound(family, kind, protocol, (place[0], port, *place[2:])))
            except OSError:
                if not bound:
                    raise
                continue  # `localhost` may have an address of a family that the machine does not
            port = one.getsockname()[1]
            bound.append(one)
        stack.pop_all()
    return address._replace(port=port), bound


def _bound(family: int, kind: int, protocol: int, place: tuple[object, ...]) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            one.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if family == socket.AF_INET6 and place[0] != "::":
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(place)
        one.setblocking(False)
    except BaseException:  # whatever it is, nobody else would close the socket
        one.close()
        raise
    return one


def _bind_socket(address: SocketAddress) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(address.path.lstat().st_mode):
            address.path.unlink()  # nobody listens there
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.bind(str(address.path))
        make_private(address)
        one.setblocking(False)
    except BaseException:  # whatever it is, nobody else would close the socket
        one.close()
        raise
    return one
