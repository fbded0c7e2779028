"""Page tokens: where the next page begins, opaque to clients, and valid only for the listing that issued them."""

import base64
import binascii
import hashlib
from typing import NamedTuple

from google.protobuf.message import Message

from evalrpc.errors import FieldViolation, InvalidRequestError


class Place(NamedTuple):
    """Where a page begins. `revision` is that of the first page, in a listing that has one."""

    position: int
    revision: int = 0


def encode(position: int, listing: Message, revision: int = 0) -> str:
    """Return the token for a place in the listing that the message describes."""
    return base64.urlsafe_b64encode(f"{position}.{revision}.{_digest(listing)}".encode()).decode().rstrip("=")


def decode(token: str, listing: Message) -> int | None:
    """Return the position of a token; None for the empty one. Raises InvalidRequestError unless it is of this listing."""
    place = decode_place(token, listing)
    return None if place is None else place.position


def decode_place(token: str, listing: Message) -> Place | None:
    """Return the place of a token; None for the empty one. Raises InvalidRequestError unless it is of this listing."""
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        position, revision, digest = base64.b64decode(padded, b"-_", validate=True).decode("ascii").split(".")
        place = Place(int(position), int(revision))
        if digest == _digest(listing) and all(0 <= number < 1 << 63 for number in place):
            return place
    except (binascii.Error, UnicodeError, ValueError):
        pass
    problem = "is no token of this listing: take next_page_token of the page before, and keep the other fields as they were"
    raise InvalidRequestError(violations=[FieldViolation("page_token", problem)])


def _digest(listing: Message) -> str:
    return hashlib.sha256(listing.SerializeToString(deterministic=True)).hexdigest()[:12]
