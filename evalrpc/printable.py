"""Text that is safe to show: on a terminal, in a plot, in an SVG or HTML page. Pure.

Unsafe is what acts on the display or can't be seen: control characters (C0, C1, so every escape sequence), bidirectional
overrides and isolates, zero-width and other characters that Unicode lets a display ignore, line and paragraph separators, lone
surrogates and noncharacters, which no XML may contain. The emoji and text variation selectors are harmless and stay.
"""

import re
from typing import Final

_NONCHARACTERS: Final = "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"  # default ignorable, with the directional marks
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"  # separators, overrides, isolates
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    f"\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]"
)
_BLANKS: Final = re.compile("\r\n|[\t\n\r]")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")


def printable(text: str) -> str:
    r"""Return a text on one line, in which every unsafe character is a visible escape such as `\x1b`; tabs and ends of lines
    become spaces."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_escape, _BLANKS.sub(" ", text))


def printable_json(text: str) -> str:
    r"""Return the same JSON, in which every unsafe character within a string is an escape such as `\u202e`. Between its tokens
    it may have newlines, and no other control characters."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else _json_escape(ord(match[0])), text)


def without_colours(text: str) -> str:
    """Return a text without the escape sequences that colour it."""
    return _COLOUR.sub("", text)


def first_unprintable(text: str) -> str | None:
    r"""Return the first unsafe character, which may be a tab or an end of a line, as an escape such as `\x1b`; None: there is
    none."""
    found = _UNSAFE.search(text)
    return _escape(found) if found else None


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 | (code & 0x3FF):04x}"
