"""Page tokens: where the next page begins, opaque to clients, and valid only for the listing that issued them."""

import base64
import binascii
import hashlib

from google.protobuf.message import Message

from evalrpc.errors import FieldViolation, InvalidRequestError


def encode(position: int, listing: Message) -> str:
    """Return the token for `position` in the listing that the message describes."""
    return base64.urlsafe_b64encode(f"{position}.{_digest(listing)}".encode()).decode().rstrip("=")


def decode(token: str, listing: Message) -> int | None:
    """Return the position of a token; None for the empty one. Raises InvalidRequestError unless it is of this listing."""
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        position, _, digest = base64.b64decode(padded, b"-_", validate=True).decode("ascii").partition(".")
        if digest == _digest(listing) and 0 <= int(position) < 1 << 63:
            return int(position)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    problem = "is no token of this listing: take next_page_token of the page before, and keep the other fields as they were"
    raise InvalidRequestError(violations=[FieldViolation("page_token", problem)])


def _digest(listing: Message) -> str:
    return hashlib.sha256(listing.SerializeToString(deterministic=True)).hexdigest()[:12]
