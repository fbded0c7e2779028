"""Page tokens: where the next page begins, opaque to clients, and valid only for the listing that issued them."""

import base64
import binascii
import hashlib
import re
from typing import Final, NamedTuple

from google.protobuf.message import Message

from evalrpc.errors import FieldViolation, InvalidRequestError

_NUMBER: Final = re.compile("[0-9]{1,19}")
_MAX_NUMBER: Final = (1 << 63) - 1


class Place(NamedTuple):
    """Where a page begins. `revision` is that of the first page, in a listing that has one."""

    position: int
    revision: int = 0


def encode(position: int, listing: Message, revision: int = 0) -> str:
    """Return the token for a place in the listing that the message describes."""
    return encode_text(f"{position}.{revision}", listing)


def decode(token: str, listing: Message) -> int | None:
    """Return the position of a token; None for the empty one. Raises InvalidRequestError unless it is of this listing."""
    place = decode_place(token, listing)
    return None if place is None else place.position


def decode_place(token: str, listing: Message) -> Place | None:
    """Return the place of a token; None for the empty one. Raises InvalidRequestError unless it is of this listing."""
    text = decode_text(token, listing)
    if text is None:
        return None
    numbers = text.split(".")
    if len(numbers) != len(Place._fields) or not all(map(_NUMBER.fullmatch, numbers)):
        raise invalid_token()
    place = Place(*map(int, numbers))
    if max(place) > _MAX_NUMBER:
        raise invalid_token()
    return place


def encode_text(position: str, listing: Message) -> str:
    """Return the token for a position that is a text."""
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
