"""A JSON file larger than one wants in memory, read member by member."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

MAX_VALUE_CHARACTERS: Final = 256 * 1024 * 1024
"""No single value may be longer."""

_READ_CHARACTERS: Final = 256 * 1024
_NUMBER_REST: Final = len("e+1")  # so much after a number proves that it was not cut off
_BLANKS: Final = " \t\r\n"
_DECODER: Final = json.JSONDecoder()


def members(path: Path, streamed: str) -> Iterator[tuple[str, object]]:
    """Yield the members of the object that the file holds, and those of the array named `streamed` one by one, each with the
    array's name.

    Raises ValueError or RecursionError where it is no JSON, OSError where it can't be read.
    """
    with path.open(encoding="utf-8") as file:
        text = _Text(file)
        text.expect("{")
        for _ in text.items("}"):
            key = text.name()
            text.expect(":")
            if key == streamed and text.next_is("["):
                text.expect("[")
                yield from ((key, text.value()) for _ in text.items("]"))
            else:
                yield key, text.value()
        if not text.is_at_end():
            raise ValueError("there is more after the end")


class _Text:
    """The file's text from where it is read on. What was read is forgotten."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._position = 0

    def name(self) -> str:
        """Read the name of a member."""
        if not self.next_is('"'):
            raise ValueError("expected the name of a member")
        return str(self.value())

    def value(self) -> object:
        """Read a value of any kind."""
        self._skip_blanks()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError:  # perhaps only cut off
                if not self._read_more():
                    raise
                continue
            if len(self._text) - end < _NUMBER_REST and self._read_more():
                continue
            self._position = end
            return value

    def items(self, closing: str) -> Iterator[None]:
        """Yield before every item, and read the commas between them and the end."""
        if not self.next_is(closing):
            yield
            while self.next_is(","):
                self.expect(",")
                yield
        self.expect(closing)

    def expect(self, character: str) -> None:
        """Read this one character."""
        if not self.next_is(character):
            raise ValueError(f"expected {character!r}")
        self._position += 1

    def next_is(self, character: str) -> bool:
        """Tell whether it comes next, after blanks."""
        self._skip_blanks()
        return self._text.startswith(character, self._position)

    def is_at_end(self) -> bool:
        """Tell whether nothing but blanks is left."""
        self._skip_blanks()
        return self._position == len(self._text)

    def _skip_blanks(self) -> None:
        while True:
            while self._position < len(self._text) and self._text[self._position] in _BLANKS:
                self._position += 1
            if self._position < len(self._text) or not self._read_more():
                return

    def _read_more(self) -> bool:
        """Read as much again as is not understood yet, so that all attempts together take linear time."""
        rest = self._text[self._position :]
        if len(rest) > MAX_VALUE_CHARACTERS:
            raise ValueError(f"a value is longer than {MAX_VALUE_CHARACTERS} characters")
        more = self._file.read(max(_READ_CHARACTERS, len(rest)))
        if more:
            self._text, self._position = rest + more, 0
        return bool(more)
