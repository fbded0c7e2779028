"""The envelopes in which Connect sends the messages of streams: a byte of flags, four of length, then the message."""

import json
from typing import Final

from evalrpc.errors import EvalrpcError, InvalidRequestError
from evalrpc.server.transports.connect.compression import decompress
from evalrpc.server.transports.http.errors import error_json

_HEAD_BYTES: Final = 5
_COMPRESSED: Final = 1
_END: Final = 2


def enveloped(message: bytes, flags: int = 0) -> bytes:
    """Return a message in its envelope."""
    return bytes((flags,)) + len(message).to_bytes(4) + message


def end_of_stream(error: EvalrpcError | None) -> bytes:
    """Return the last envelope of a stream, which says how it has ended."""
    return enveloped(json.dumps({"error": error_json(error)} if error else {}, ensure_ascii=False).encode(), _END)


def only_message(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the message of a body that is one envelope. Raises InvalidRequestError, RequestTooLargeError."""
    size_bytes = int.from_bytes(body[1:_HEAD_BYTES])
    if len(body) < _HEAD_BYTES or len(body) != _HEAD_BYTES + size_bytes or body[0] & ~_COMPRESSED:
        raise InvalidRequestError(
            "the body must be one message in its envelope: a byte 0, its length in 4 bytes, the most significant first, then "
            "the message; for JSON without envelopes there is GET /v1/events"
        )
    message = body[_HEAD_BYTES:]
    return decompress(message, encoding, max_bytes) if body[0] & _COMPRESSED else message
