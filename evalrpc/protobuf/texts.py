"""Texts cut to a size, so that no message outgrows its bound because of one. Pure."""

import hashlib
from collections.abc import Sequence
from typing import Final

MAX_NAME_LENGTH: Final = 255
"""How many characters a name may have: of a task, a metric, a filter, a label's value."""

_DIGEST_LENGTH: Final = 8


def cut(text: str, max_bytes: int) -> str:
    """Return the text if it has at most so many bytes in UTF-8; otherwise its beginning and an ellipsis."""
    if len(text) * 4 <= max_bytes:
        return text
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= max_bytes else encoded[: max_bytes - 3].decode(errors="ignore") + "…"


def bounded_name(name: str) -> str:
    """Return a name of at most MAX_NAME_LENGTH characters. Of a longer one the end is replaced by a digest, so different names
    stay different."""
    if len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_DIGEST_LENGTH]
    return f"{name[: MAX_NAME_LENGTH - _DIGEST_LENGTH - 1]}…{digest}"


def last_lines(lines: Sequence[str], max_lines: int, max_bytes: int) -> list[str]:
    """Return the last lines that fit; of a last line that is too long by itself, its end."""
    kept: list[str] = []
    left = max_bytes
    for line in reversed(lines[-max_lines:]):
        encoded = line.encode()
        if len(encoded) > left:
            if not kept:
                kept.append(encoded[-left:].decode(errors="ignore"))
            break
        kept.append(line)
        left -= len(encoded)
    return kept[::-1]
