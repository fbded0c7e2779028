"""A raw HTTP/2 server that breaks streams in every way that proxies and networks do.

Each call gets the next act of a script. Only what gRPC clients need is spoken: no flow control, and headers that are only sent,
not read.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Self

from google.protobuf.message import Message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR = range(5, 11)
ENHANCE_YOUR_CALM, INADEQUATE_SECURITY, HTTP_1_1_REQUIRED = range(11, 14)


class Exchange:
    """One call: its request, and what may be sent back."""

    def __init__(self, connection: socket.socket, stream: int, request: bytes) -> None:
        self.request = request
        self._connection = connection
        self._stream = stream
        self._begun = False

    def message(self, message: Message) -> None:
        """Send a message, after gRPC's headers."""
        if not self._begun:
            self.headers({":status": "200", "content-type": "application/grpc"})
        serialized = message.SerializeToString()
        self.data(b"\0" + len(serialized).to_bytes(4) + serialized)

    def end(self, code: int = 0, text: str = "") -> None:
        """End the call with gRPC's trailers."""
        status = {"grpc-status": str(code), "grpc-message": text}
        first = {} if self._begun else {":status": "200", "content-type": "application/grpc"}
        self.headers(first | status, last=True)

    def html(self, status: int) -> None:
        """Answer as a proxy does that knows nothing of gRPC."""
        self.headers({":status": str(status), "content-type": "text/html"})
        self.data(f"<html><h1>{status}</h1></html>".encode(), last=True)

    def headers(self, fields: dict[str, str], *, last: bool = False) -> None:
        """Send headers or trailers, each a literal without an index."""
        self._frame(HEADERS, END_HEADERS | (END_STREAM if last else 0), literals(fields))
        self._begun = True

    def data(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes of the body."""
        self._frame(DATA, END_STREAM if last else 0, data)

    def reset(self, code: int) -> None:
        """Reset the stream."""
        self._frame(RST_STREAM, 0, code.to_bytes(4))

    def go_away(self, code: int) -> None:
        """Say that no further calls are taken, and close the connection before this one has ended."""
        self._connection.sendall(frame(GOAWAY, 0, 0, self._stream.to_bytes(4) + code.to_bytes(4)))
        self.drop()

    def drop(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        self._connection.sendall(frame(kind, flags, self._stream, payload))


Act = Callable[[Exchange], None]


class Http2Stub:
    """Listens on a free port of the loopback interface, and plays one act for each call; the last one again and again."""

    def __init__(self, acts: Iterable[Act]) -> None:
        self._acts = list(acts)
        self.requests: list[bytes] = []
        """The messages of the calls, one each."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, name="http2-stub", daemon=True)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        """Serve one connection after the other: a client opens the next one when it has lost the last."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            _read(connection, len(PREFACE))
            connection.sendall(frame(SETTINGS, 0, 0))
            bodies: dict[int, bytes] = {}
            for kind, flags, stream, payload in _frames(connection):
                if kind == SETTINGS and not flags & ACK:
                    connection.sendall(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    connection.sendall(frame(PING, ACK, 0, payload))
                elif kind == DATA:
                    bodies[stream] = bodies.get(stream, b"") + payload
                    if flags & END_STREAM:
                        self._play(Exchange(connection, stream, bodies.pop(stream)[5:]))

    def _play(self, exchange: Exchange) -> None:
        act = self._acts[min(len(self.requests), len(self._acts) - 1)]
        self.requests.append(exchange.request)
        act(exchange)


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    while True:
        head = _read(connection, 9)
        yield head[3], head[4], int.from_bytes(head[5:]), _read(connection, int.from_bytes(head[:3]))


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame as it is sent."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def literals(fields: dict[str, str]) -> bytes:
    """Return headers as HPACK has them, each a literal without an index."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    """Return a short text as HPACK has it, without Huffman's code."""
    return bytes((len(text.encode()),)) + text.encode()
