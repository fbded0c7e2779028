"""Page tokens: where the next page begins, opaque to clients, and valid only for the listing that issued them."""

import base64
import binascii
import hashlib

from google.protobuf.message import Message

from evalrpc.errors import FieldViolation, InvalidRequestError


def encode(position: int, listing: Message) -> str:
    """Return the token for `position` in the listing that the message describes."""
    return encode_text(str(position), listing)


def decode(token: str, listing: Message) -> int | None:
    """Return the position of a token; None for the empty one. Raises InvalidRequestError unless it is of this listing."""
    position = decode_text(token, listing)
    if position is None:
        return None
    if not (position.isascii() and position.isdecimal()) or len(position) > len(str(1 << 63)) or int(position) >= 1 << 63:
        raise invalid_token()
    return int(position)


def encode_text(position: str, listing: Message) -> str:
    """Return the token for a position that is no number."""
    return base64.urlsafe_b64encode(f"{_digest(listing)}.{position}".encode()).decode().rstrip("=")


def decode_text(token: str, listing: Message) -> str | None:
    """Return the position of a token that `encode_text` made; None for the empty one.

    Raises InvalidRequestError unless it is of this listing.
    """
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        digest, _, position = base64.b64decode(padded, b"-_", validate=True).decode().partition(".")
    except (binascii.Error, UnicodeError):
        raise invalid_token() from None
    if digest != _digest(listing):
        raise invalid_token()
    return position


def invalid_token() -> InvalidRequestError:
    """Return the error for a token that this listing has not issued."""
    problem = "is no token of this listing: take next_page_token of the page before, and keep the other fields as they were"
    return InvalidRequestError(violations=[FieldViolation("page_token", problem)])


def _digest(listing: Message) -> str:
    return hashlib.sha256(listing.SerializeToString(deterministic=True)).hexdigest()[:12]
