"""What the gateway answers a harness with."""

import json
from http import HTTPStatus
from typing import Final, NamedTuple

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    content_type: bytes
    body: bytes
    retry_after: bytes = b""


def error_reply(status: int, message: str) -> Reply:
    """Return an error in the form of OpenAI's API."""
    document = {"error": {"message": f"evalrpc gateway: {message}", "type": _PHRASES[status], "code": status}}
    return Reply(status, b"application/json", json.dumps(document).encode())


def head(status: int, content_type: bytes, *headers: bytes) -> bytes:
    """Return the head of an answer. `headers` are whole lines, without their ends."""
    lines = [b"HTTP/1.1 %d %s" % (status, _PHRASES.get(status, "Unknown").encode())]
    if content_type:
        lines.append(b"content-type: " + content_type)
    return b"\r\n".join((*lines, *headers, b"", b""))
