"""Ports for servers that are started again at the same address."""

import random
import socket

_PORTS = range(11_000, 20_000)
"""Below those of engines, and of those that Linux gives to connections and to whoever asks for any port: one of these would be
given to somebody while its server is down. No browser refuses to open one of them, as it does with 10080."""
_given: set[int] = set()


def lasting_port() -> int:
    """Return a port of loopback that is free, and was not given to anybody in this process."""
    dice = random.SystemRandom()  # so that no two processes try the same ones
    while True:
        port = dice.choice(_PORTS)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def lasting_address() -> str:
    """Return a free address of loopback."""
    return f"127.0.0.1:{lasting_port()}"
