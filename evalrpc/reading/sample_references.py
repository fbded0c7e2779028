"""What a sample refers to: images, sounds and videos, in its row or beside it. Pure.

A row is whatever a run wrote. A `data:` URL counts wherever it stands, a path or another URL only under a name that says that
it is one of a medium, such as `input_media` (lmms-eval) or `image` (inspect-ai).
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

MAX_REFERENCES: Final = 64
"""How many of a sample count."""

MAX_INLINE_BYTES: Final = 16 * 1024 * 1024
"""The size of a `data:` URL's content."""

MAX_ALL_INLINE_BYTES: Final = 2 * MAX_INLINE_BYTES
"""The same for all of a sample together."""

_MAX_DEPTH: Final = 16
_MAX_PATH_CHARACTERS: Final = 4096
_DATA: Final = re.compile(
    r"data:(?:image|audio|video)/[\w.+-]{1,64}(?:;[\w.+-]{1,64}=[\w.+-]{1,64})*(?P<base64>;base64)?,", re.ASCII
)
_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):")
_NAMES: Final = frozenset(
    {
        *("input_media", "media", "image", "images", "image_url", "image_path", "img_path", "image_paths"),
        *("audio", "audios", "audio_url", "audio_path", "video", "videos", "video_url", "video_path"),
    }
)
_NAMES_WITHIN: Final = frozenset({"url", "uri", "path"})
"""Names that count within an object under one of the above."""


class Reference(NamedTuple):
    """A medium of a sample: its bytes, or the path of a file, or the reason why it can't be given."""

    source: str
    """Where in the sample it stands."""
    data: bytes | None = None
    path: str = ""
    problem: str = ""


def find_references(row: Mapping[str, object]) -> Sequence[Reference]:
    """Return the first media of a row, in its order, each once."""
    known: set[str] = set()
    found: list[Reference] = []
    room_bytes = MAX_ALL_INLINE_BYTES
    for source, text in islice(_texts(row), MAX_REFERENCES):
        if text not in known:
            known.add(text)
            reference = _reference(source, text, room_bytes)
            room_bytes -= len(reference.data or b"")
            found.append(reference)
    return found


def path_reference(source: str, text: str) -> Reference:
    """Return what a path or a URL that is no `data:` refers to."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Reference(source, path=text)
    if scheme["scheme"].lower() == "file":
        return Reference(source, path=_path_of(text))
    return Reference(source, problem="it lies on another server, from which nothing is fetched")


def _reference(source: str, text: str, room_bytes: int) -> Reference:
    data = _DATA.match(text)
    if data is None:
        return path_reference(source, text)
    content = text[data.end() :]
    if len(content) * 3 // 4 > min(MAX_INLINE_BYTES, room_bytes) + 3:
        return Reference(source, problem=f"it is too large: more than {min(MAX_INLINE_BYTES, room_bytes)} bytes")
    try:
        return Reference(source, data=base64.b64decode(content, validate=True) if data["base64"] else unquote_to_bytes(content))
    except (binascii.Error, ValueError):
        return Reference(source, problem="its `data:` URL is no base64")


def _path_of(url: str) -> str:
    """Return the path in a `file:` URL, which may name this machine."""
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path if host in ("", "localhost") else f"//{host}{slash}{path}"
    return unquote_to_bytes(rest.encode(errors="replace")).decode(errors="replace")


def _texts(row: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield what is a reference in a row, with the place where it stands."""
    pending: list[Iterator[tuple[str, object, bool]]] = [_members(row, "", is_named=False)]
    while pending:
        source, value, is_named = next(pending[-1], ("", None, False))
        if value is None:
            pending.pop()
        elif isinstance(value, str):
            if _DATA.match(value) or (is_named and _may_be_path(value)):
                yield source, value
        elif isinstance(value, Mapping | list) and len(pending) < _MAX_DEPTH:
            pending.append(_members(value, source, is_named=is_named))


def _members(value: Mapping[str, object] | list[object], source: str, *, is_named: bool) -> Iterator[tuple[str, object, bool]]:
    """Yield what is in a value, without nulls, with its place, and whether its name says that it is a medium."""
    if isinstance(value, list):
        yield from ((f"{source}[{place}]", item, is_named) for place, item in enumerate(value) if item is not None)
        return
    for name, item in value.items():
        says_so = name in _NAMES or (is_named and name in _NAMES_WITHIN)
        if item is not None:
            yield (f"{source}.{name}" if source else name)[:_MAX_PATH_CHARACTERS], item, says_so


def _may_be_path(text: str) -> bool:
    return 0 < len(text) <= _MAX_PATH_CHARACTERS and text.isprintable() and not text.startswith("data:")
