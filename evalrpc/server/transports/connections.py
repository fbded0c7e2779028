"""The TCP connections that gRPC has accepted, which it lets nobody close."""

import os
import socket
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_DESCRIPTORS: Final = Path("/proc/self/fd")
_MAPPED: Final = "::ffff:"


def close_connections(peers: Collection[str]) -> None:
    """Shut down the connections of these peers, as gRPC names them. Every call on them ends.

    Peers of other kinds, such as Unix sockets, have no name of their own and are left alone: among them are those by which the
    event loop and gRPC wake themselves. Nor is a client without a name one of them. Blocks for as long as it takes to look at
    every open file.
    """
    wanted = {unquote(peer) for peer in peers}
    for descriptor in [int(path.name) for path in _DESCRIPTORS.iterdir()]:
        with suppress(OSError):  # it was closed meanwhile, or its peer has gone
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                _close(descriptor, wanted)


def _close(descriptor: int, peers: Collection[str]) -> None:
    """Shut down a socket if it leads to one of the peers. Raises OSError."""
    # A descriptor of our own: gRPC may close its own at any moment, and another file may get the number.
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        if _peer_of(ours) in peers:
            ours.shutdown(socket.SHUT_RDWR)


def _peer_of(connection: socket.socket) -> str | None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host, port = connection.getpeername()[:2]
    if connection.family == socket.AF_INET or host.startswith(_MAPPED):
        return f"ipv4:{host.removeprefix(_MAPPED)}:{port}"
    return f"ipv6:[{host}]:{port}"
