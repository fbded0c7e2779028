"""Masks known values in text: each byte of one becomes a `*`, so every offset stays what it was. Pure.

A value of several lines is masked line by line, since that is how logs are read. Lines and values of fewer than MIN_BYTES bytes
are not masked: they stand everywhere by chance.
"""

from collections.abc import Iterable, Iterator
from typing import Final

MIN_BYTES: Final = 4
"""The shortest value, or line of one, that is masked."""


class Mask:
    """Masks the secrets of one job. `unreadable` are the names of those whose values the server should know, and doesn't."""

    def __init__(self, values: Iterable[str] = (), unreadable: Iterable[str] = ()) -> None:
        lines = {line.strip() for value in values for line in value.encode().splitlines()}
        self._patterns = sorted(line for line in lines if len(line) >= MIN_BYTES)
        self.longest: Final = max(map(len, self._patterns), default=0)
        """The size in bytes of the longest text that is masked; 0 if there is none."""
        self.unreadable: Final = tuple(unreadable)

    def data(self, data: bytes) -> bytes:
        """Return the bytes with every value masked."""
        stretches = self.stretches(data)
        if not stretches:
            return data
        masked = bytearray(data)
        for begin, end in stretches:
            masked[begin:end] = b"*" * (end - begin)
        return bytes(masked)

    def stretches(self, data: bytes) -> list[tuple[int, int]]:
        """Return where the values are, in order. Those that overlap or touch make one stretch."""
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(stretch for pattern in self._patterns for stretch in _stretches(data, pattern)):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        return merged

    def text(self, text: str) -> str:
        """Return the text masked. If a value is not known, only that it is withheld."""
        if self.unreadable and text:
            return f"(withheld: {self.problem})"
        return self.data(text.encode(errors="surrogatepass")).decode(errors="surrogatepass") if self._patterns else text

    @property
    def problem(self) -> str:
        """Say which values are not known."""
        names = ", ".join(self.unreadable)
        return f"the value of {names} can't be read any more, so it can't be masked"

    def pending(self, data: bytes) -> int:
        """Return how many bytes at the end may be the beginning of a value that goes on after them."""
        return max((_begun(data, pattern) for pattern in self._patterns), default=0)


NO_MASK: Final = Mask()
"""Masks nothing."""


def _stretches(data: bytes, pattern: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the pattern occurs, in order, also where occurrences overlap."""
    begin = data.find(pattern)
    while begin >= 0:
        yield begin, begin + len(pattern)
        begin = data.find(pattern, begin + 1)


def _begun(data: bytes, pattern: bytes) -> int:
    """Return the size of the longest proper beginning of the pattern with which the data ends."""
    sizes = range(min(len(pattern) - 1, len(data)), 0, -1)
    return next((size for size in sizes if pattern[size - 1] == data[-1] and data.endswith(pattern[:size])), 0)
