"""What clients may compress. Answers are never compressed, as over gRPC."""

import zlib
from typing import Final

from evalrpc.errors import InvalidRequestError, RequestTooLargeError, UnimplementedError

ACCEPTED: Final = "gzip"

_GZIP: Final = 31  # for zlib: with the head and the checksum of gzip


def require_known(encoding: str) -> None:
    """Raise UnimplementedError for a compression that the server does not have."""
    if encoding not in ("", "identity", ACCEPTED):
        raise UnimplementedError(f"the server does not have this compression; it has: {ACCEPTED}, identity")


def decompress(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the data as it was. Raises UnimplementedError, InvalidRequestError, RequestTooLargeError."""
    require_known(encoding)
    if encoding != ACCEPTED or not data:
        return data
    decompressor = zlib.decompressobj(_GZIP)
    try:
        plain = decompressor.decompress(data, max_bytes + 1)
    except zlib.error:
        raise InvalidRequestError("the body is not compressed as gzip, as its headers say") from None
    if len(plain) > max_bytes:
        raise RequestTooLargeError(
            f"the request has more than {max_bytes} bytes once decompressed (setting max_request_bytes, and less for JSON)",
            metadata={"setting": "max_request_bytes", "limit": str(max_bytes)},
        )
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequestError("the compressed body is cut off, or goes on after its end: it must be one member of gzip")
    return plain
