"""File names on the wire. A name on disk is bytes, and a string of protobuf is UTF-8.

A name that is UTF-8 travels as it is. Of any other, each byte that is not UTF-8 travels as NUL and two hex digits, such as
"\\0ff": no name on disk contains NUL, so none is mistaken for another.
"""

import re
from typing import Final

_ENDINGS: Final = {"jpeg": "jpg", "mpeg": "mp3"}
_ESCAPED: Final = re.compile("\0([89a-f][0-9a-f])")


def wire_name(name: str) -> str:
    """Return a name as it travels, of one that Python has read from disk (with surrogates in the place of bad bytes)."""
    if name.isascii():
        return name
    return "".join(f"\0{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)


def disk_name(name: str) -> str:
    """Return the name on disk of one that has travelled, for `os` and `pathlib`. Any other NUL in it stays, and fails there."""
    return _ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)), name)


def medium_name(index: int, media_type: str) -> str:
    """Return the name of a file for an image, a sound or a video of a sample: its number and what it is."""
    kind, _, name = media_type.partition("/")
    return f"{index}.{_ENDINGS.get(name, name) if kind in ('image', 'audio', 'video') else 'bin'}"
