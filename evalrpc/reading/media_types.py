"""What a medium is, by its own first bytes. Pure.

What a name or a URL claims is the claim of whoever wrote it. Browsers show only what is listed here, and nothing in these
formats runs: SVG and HTML are not among them.
"""

from collections.abc import Sequence
from typing import Final

ANY_TYPE: Final = "application/octet-stream"
"""The type of all else."""

HEAD_BYTES: Final = 32
"""How many bytes tell."""

_BEGINNINGS: Final[Sequence[tuple[bytes, str]]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"\xff\xf2", "audio/mpeg"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
)
_IN_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
_AVIF_BRANDS: Final = (b"avif", b"avis")
_MIN_BMP_HEADER: Final = 12
_MAX_BMP_HEADER: Final = 124


def media_type(head: bytes) -> str:
    """Return the type of what begins with these bytes."""
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.startswith(b"RIFF"):
        return _IN_RIFF.get(head[8:12], ANY_TYPE)
    if head[4:8] == b"ftyp":
        return "image/avif" if head[8:12] in _AVIF_BRANDS else "video/mp4"
    return "image/bmp" if _is_bmp(head) else ANY_TYPE


def _is_bmp(head: bytes) -> bool:
    """Two letters are little to go by, so the size of the header has to be one that there is, too."""
    header_bytes = int.from_bytes(head[14:18], "little")
    return head.startswith(b"BM") and head[6:10] == b"\0\0\0\0" and _MIN_BMP_HEADER <= header_bytes <= _MAX_BMP_HEADER
