"""The ports at which engines listen.

An engine gets its port on its command line, and binds it only when it has been loaded, which may take minutes. Until then the
server holds the port: bound, so that the system gives it to nobody and no second server chooses it, but not listened at, and
with the options with which nearly all programs bind a port at which nobody listens. What binds it nevertheless is found out by
`RunHandle.owns_port`.
"""

import errno
import random
import socket
from collections.abc import Container
from contextlib import suppress
from typing import Final

from evalrpc.engines.definition import HOST

_PORTS: Final = range(20_000, 30_000)  # below those that Linux gives to connections


def hold_port(taken: Container[int]) -> socket.socket:
    """Return a socket that holds a port which is free, and is none of those taken, until it is closed. Raises OSError."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port not in taken and (held := _hold(port)) is not None:
            return held
    raise OSError(errno.EADDRINUSE, "no port is free for an engine")


def _hold(port: int) -> socket.socket | None:
    """Return a socket that is bound to a port; None if another one is."""
    held = socket.socket()
    with suppress(OSError):
        held.bind((HOST, port))  # without the options, so that it fails where anybody has bound it
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # Linux looks at those that it has when the next one binds
            held.setsockopt(socket.SOL_SOCKET, option, 1)
        return held
    held.close()
    return None
