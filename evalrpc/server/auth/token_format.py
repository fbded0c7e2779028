"""The form of the server's own tokens, `evr_ID_SECRET`.

The id is public and names the token in lists. The secret has 32 random bytes, so its SHA-256 tells nothing about it, and no
slower hash is needed.
"""

import hashlib
import re
import secrets
import string
from typing import Final, NamedTuple

PREFIX: Final = "evr_"
"""What every token begins with."""

ID_CHARACTERS: Final = 16

_SECRET_BYTES: Final = 32
_ID_ALPHABET: Final = string.ascii_lowercase + string.digits
_TOKEN: Final = re.compile(rf"{PREFIX}([a-z0-9]{{{ID_CHARACTERS}}})_([A-Za-z0-9_-]{{43}})")


class TokenParts(NamedTuple):
    """A token as its parts."""

    token_id: str
    digest: bytes
    """The SHA-256 of the secret."""


def new_token() -> tuple[str, TokenParts]:
    """Return a new token, and its parts."""
    token_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARACTERS))
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    return f"{PREFIX}{token_id}_{secret}", TokenParts(token_id, _digest(secret))


def parse_token(text: str) -> TokenParts | None:
    """Return the parts of a token; None if this is none."""
    match = _TOKEN.fullmatch(text)
    return TokenParts(match[1], _digest(match[2])) if match else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
