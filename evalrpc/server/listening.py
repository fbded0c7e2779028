"""What a server needs to listen.

Checked before gRPC tries: without file descriptors it crashes, and it does not say why it can't listen at an address.
"""

import errno
import os
import resource
import socket
from contextlib import ExitStack

from evalrpc.config import parse_listen
from evalrpc.errors import ConfigurationError


def require_descriptors(count: int) -> None:
    """Raise ConfigurationError unless this many file descriptors are free."""
    with ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise ConfigurationError(
                f"{error.strerror}: a server needs {count} free file descriptors to start; raise ulimit -n, now {limit}"
            ) from error


def require_free(listen: str) -> None:
    """Raise ConfigurationError, with the reason, if the system would let nobody listen on HOST:PORT."""
    refusal = find_refusal(listen)
    if refusal is None:
        return
    if refusal.errno == errno.EADDRINUSE:
        raise ConfigurationError(
            f"setting listen: {listen} is not free: another program listens there; port 0 takes a free one"
        )
    raise ConfigurationError(f"setting listen: can't listen on {listen}: {refusal.strerror}")


def find_refusal(listen: str) -> OSError | None:
    """Return why the system refuses every address of HOST:PORT, or None if one is free. Raises ConfigurationError."""
    host, port = parse_listen(listen)
    name = None if host == "[::]" else host.strip("[]")  # for [::], gRPC takes IPv4 on a machine without IPv6
    refusal: OSError | None = None
    try:
        addresses = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError(errno.EINVAL, "this can't be the name of a host")
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a past connection does not count
                probe.bind(address)
        except OSError as error:
            refusal = error
        else:
            return None
    return refusal
