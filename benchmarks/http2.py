"""The part of HTTP/2 that a client of many streams needs, and no more.

h2load makes the load of single calls, but it can't hold a stream open. This client sends precomputed frames and only counts
what comes back, at a few microseconds per call. Its traffic is ordinary gRPC: a HEADERS frame, a DATA frame with one message,
and a window as large as real clients grow theirs to.

It ignores the server's flow-control windows, since a load keeps only a few kilobytes of requests in flight.
"""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

WINDOW: Final = 4 * 1024 * 1024
"""Bytes that the server may send ahead, per stream and per connection."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MAX_FRAME: Final = 256 * 1024
_RECEIVE_BYTES: Final = 1024 * 1024
_CANCEL: Final = 8

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5


class Piece(NamedTuple):
    """What arrived on a stream: bytes of messages, its end, or both."""

    stream: int
    data: memoryview
    ended: bool


@dataclass(frozen=True)
class Request:
    """A call as bytes. `path` is `/package.Service/Method`, `message` the serialised request, `token` that of the caller."""

    path: str
    message: bytes
    token: str = ""

    def frames(self, stream: int) -> bytes:
        """Return the frames that make this call on a new stream."""
        before, between, after = self._parts
        number = stream.to_bytes(4)
        return b"".join((before, number, between, number, after))

    @property
    def body(self) -> bytes:
        """The message with gRPC's prefix: a zero for no compression, then its length."""
        return b"\0" + len(self.message).to_bytes(4) + self.message

    def answer_bytes(self, address: str) -> int:
        """Make the call once, and return the length of its answer. Raises RuntimeError if it fails."""
        with closing(Connection(address)) as connection:
            connection.call(self)
            connection.flush()
            size, ended = 0, False
            while not ended:
                for piece in connection.receive():
                    size += len(piece.data)
                    ended = ended or piece.ended
                connection.flush()
        if not size:
            raise RuntimeError(f"{self.path} failed")
        return size

    @cached_property
    def _parts(self) -> tuple[bytes, bytes, bytes]:
        """The bytes before, between and after the two stream ids."""
        headers = _frame(_HEADERS, _END_HEADERS, 0, self._headers())
        data = _frame(_DATA, _END_STREAM, 0, self.body)
        return headers[:5], headers[9:] + data[:5], data[9:]

    def _headers(self) -> bytes:
        """Return the header block: no Huffman code and no dynamic table, so it is the same on every stream."""
        path = b"\x04" + _text(self.path.encode())
        authority = b"\x01" + _text(b"localhost")
        content_type = b"\x0f\x10" + _text(b"application/grpc")
        te = b"\x00" + _text(b"te") + _text(b"trailers")
        sign_in = b"\x00" + _text(b"authorization") + _text(f"Bearer {self.token}".encode()) if self.token else b""
        return b"\x83\x86" + path + authority + content_type + te + sign_in


class Connection:
    """One connection to a server. With `window` 0 the server may send no message at all."""

    def __init__(self, address: str, window: int = WINDOW) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._next_stream = 1
        self._rest = b""
        self._owed: dict[int, int] = {}
        settings = _setting(_INITIAL_WINDOW_SIZE, window) + _setting(_MAX_FRAME_SIZE, _MAX_FRAME)
        self._outgoing = [_PREFACE, _frame(_SETTINGS, 0, 0, settings), _window_update(0, WINDOW)]

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket; the server cancels what is open."""
        self.socket.close()

    def call(self, request: Request) -> int:
        """Open a stream with a request, at the next flush, and return its number."""
        stream = self._next_stream
        self._next_stream += 2
        self._outgoing.append(request.frames(stream))
        return stream

    def cancel(self, stream: int) -> None:
        """Drop a stream, at the next flush."""
        self._owed.pop(stream, None)
        self._outgoing.append(_frame(_RST_STREAM, 0, stream, _CANCEL.to_bytes(4)))

    def flush(self) -> None:
        """Send all pending frames."""
        if self._outgoing:
            self.socket.sendall(b"".join(self._outgoing))
            self._outgoing.clear()

    def receive(self) -> list[Piece]:
        """Wait for bytes and return the pieces in them. Raises ConnectionError if the server closes the connection."""
        received = self.socket.recv(_RECEIVE_BYTES)
        if not received:
            raise ConnectionError("the server closed the connection")
        return list(self._pieces(self._rest + received if self._rest else received))

    def _pieces(self, buffer: bytes) -> Iterator[Piece]:
        view = memoryview(buffer)
        start, size = 0, len(buffer)
        while size - start >= 9:
            end = start + 9 + int.from_bytes(buffer[start : start + 3])
            if end > size:
                break
            kind, flags = buffer[start + 3], buffer[start + 4]
            stream = int.from_bytes(buffer[start + 5 : start + 9])
            if kind == _DATA:
                self._credit(stream, end - start - 9)
                yield Piece(stream, view[start + 9 : end], bool(flags & _END_STREAM))
            elif kind in (_HEADERS, _RST_STREAM):
                if kind == _RST_STREAM or flags & _END_STREAM:
                    self._owed.pop(stream, None)
                    yield Piece(stream, view[:0], True)
            else:
                self._answer(kind, flags, buffer[start + 9 : end])
            start = end
        self._rest = buffer[start:]

    def _answer(self, kind: int, flags: int, payload: bytes) -> None:
        """Handle a frame of the connection itself. Raises ConnectionError for a GOAWAY."""
        if kind == _GOAWAY:
            raise ConnectionError(f"the server hung up: {payload[8:].decode(errors='replace')}")
        if kind == _PING and not flags & _ACK:
            self._outgoing.append(_frame(_PING, _ACK, 0, payload))
        if kind == _SETTINGS and not flags & _ACK:
            self._outgoing.append(_frame(_SETTINGS, _ACK, 0, b""))

    def _credit(self, stream: int, size: int) -> None:
        """Extend the server's window once a quarter of it is used up."""
        for number in (0, stream):
            owed = self._owed.get(number, 0) + size
            if owed > WINDOW // 4:
                self._outgoing.append(_window_update(number, owed))
                owed = 0
            self._owed[number] = owed


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _window_update(stream: int, size: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, stream, size.to_bytes(4))


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2) + value.to_bytes(4)


def _text(text: bytes) -> bytes:
    """Encode a string of less than 127 bytes for HPACK."""
    return len(text).to_bytes(1) + text
