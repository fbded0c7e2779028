"""The part of HTTP/1.1 that a load client needs: the equally lean counterpart of `http2` for the peer, driven by the same loop.

As in real clients, a connection carries one request at a time, so there is one connection per request in flight.
"""

import select
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from benchmarks.http2 import Piece

_RECEIVE_BYTES: Final = 1024 * 1024
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length: "


@dataclass(frozen=True)
class Request:
    """A request as bytes. `path` is `/jobs/...`, `message` a JSON document or empty."""

    method: str
    path: str
    message: bytes = b""

    def connect(self, address: str, in_flight: int) -> "Connections":
        """Return connections that can make requests like this one, `in_flight` at a time."""
        return Connections(address, in_flight)

    @cached_property
    def whole(self) -> bytes:
        """Head and body."""
        head = f"{self.method} {self.path} HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n"
        if self.message:
            head += f"content-type: application/json\r\ncontent-length: {len(self.message)}\r\n"
        return head.encode() + b"\r\n" + self.message


class Connections:
    """Connections to a server, with one request in flight on each. A stream number is that of a request."""

    def __init__(self, address: str, count: int) -> None:
        host, _, port = address.rpartition(":")
        self._sockets: dict[int, socket.socket] = {}
        self._idle: list[int] = []
        self._streams: dict[int, int] = {}
        self._partial: dict[int, bytes] = {}
        self._last_stream = 0
        self._poll = select.epoll()
        for _ in range(count):
            connection = socket.create_connection((host, int(port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(connection, select.EPOLLIN)
            self._sockets[connection.fileno()] = connection
            self._idle.append(connection.fileno())

    def call(self, request: Request) -> int:
        """Send a request on an idle connection and return its number."""
        descriptor = self._idle.pop()
        self._last_stream += 1
        self._streams[descriptor] = self._last_stream
        self._sockets[descriptor].sendall(request.whole)
        return self._last_stream

    def flush(self) -> None:
        """Do nothing: `call` has already sent its request."""

    def receive(self) -> list[Piece]:
        """Wait for bytes and return the answers that are complete. Raises ConnectionError if the server closes a connection."""
        pieces = []
        for descriptor, _ in self._poll.poll():
            received = self._sockets[descriptor].recv(_RECEIVE_BYTES)
            if not received:
                raise ConnectionError("the server closed the connection")
            answer = self._partial.pop(descriptor, b"") + received
            if _is_complete(answer):
                self._idle.append(descriptor)
                pieces.append(Piece(self._streams.pop(descriptor), _body(answer), True))
            else:
                self._partial[descriptor] = answer
        return pieces

    def close(self) -> None:
        """Close the connections."""
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()


def _is_complete(answer: bytes) -> bool:
    head = answer.find(_HEAD_END)
    if head < 0:
        return False
    begin = answer.index(_LENGTH, 0, head) + len(_LENGTH)
    length = int(answer[begin : answer.index(b"\r\n", begin)])
    return len(answer) >= head + len(_HEAD_END) + length


def _body(answer: bytes) -> memoryview:
    """Return the body of a 200 answer; empty for any other, so that it counts as failed."""
    begin = answer.index(_HEAD_END) + len(_HEAD_END) if answer.startswith(b"HTTP/1.1 200 ") else len(answer)
    return memoryview(answer)[begin:]
