"""Finds the few lines that may say how far a run has come, among very many. Pure.

To give half a million lines to a harness would hold up every call for seconds, since only one thread runs Python at a time.
These searches take about a millisecond for a megabyte that has none of what they look for.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

LINE_END: Final = re.compile(rb"[\r\n]")

# Begins with a letter to look for, which is fast. What it finds may still be no count, but is no date: of these there are many.
_SLASH: Final = re.compile(rb"/(?<=[0-9]/)(?<!/[0-9]/)(?<!/[0-9]{2}/)[0-9]{1,15}(?![0-9/.])")
_COUNT: Final = re.compile(rb"/[0-9]{1,15}(?![0-9/.])")
_DIGITS: Final = b"0123456789"
_MAX_DIGITS: Final = 15
_PIECE_BYTES: Final = 4096
_MAX_COUNTS: Final = 16
_MAX_OF_WORD: Final = 4


def marked_lines(data: bytes, end: int, words: Sequence[bytes]) -> Iterator[bytes]:
    """Yield lines of the first `end` bytes, in order and without their ends: the last ones with each of the words, and the last
    ones with a count such as `3/10`, but not a date or a path."""
    line_end = 0
    for place in sorted({*_last_counts(data, end), *_last_of(data, end, words)}):
        if place >= line_end:
            begin = max(data.rfind(b"\n", 0, place), data.rfind(b"\r", 0, place)) + 1
            found = LINE_END.search(data, place, end)
            line_end = found.start() if found else end
            yield data[begin:line_end]


def _last_counts(data: bytes, end: int) -> Sequence[int]:
    """Return the places of the last counts. A loud bar has thousands, so they are looked for from the end on."""
    for piece_end in range(end, 0, -_PIECE_BYTES):
        matches = _SLASH.finditer(data, max(0, piece_end - _PIECE_BYTES), min(end, piece_end + _MAX_DIGITS + 1))
        places = [match.start() for match in matches if _is_count(data, match.start(), end)]
        if places:
            return places[-_MAX_COUNTS:]
    return ()


def _is_count(data: bytes, slash: int, end: int) -> bool:
    """Return whether the number before a slash is the first, and the one after it the last."""
    before = data[max(0, slash - _MAX_DIGITS - 1) : slash]
    return _COUNT.match(data, slash, end) is not None and not before.rstrip(_DIGITS).endswith((b"/", b"."))


def _last_of(data: bytes, end: int, words: Sequence[bytes]) -> Iterator[int]:
    for word in words:
        place = end
        for _ in range(_MAX_OF_WORD):
            place = data.rfind(word, 0, place)
            if place < 0:
                break
            yield place
