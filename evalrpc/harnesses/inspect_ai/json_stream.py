"""Reads JSON files that are too large for memory, member by member. Offsets are in bytes."""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from evalrpc.protobuf.bounds import json_integer

MAX_VALUE_CHARACTERS: Final = 256 * 1024 * 1024
"""The longest single value."""

_READ_BYTES: Final = 256 * 1024
_NUMBER_REST: Final = len("e+1")  # this much text after a number proves that it is not cut off
_BLANKS: Final = " \t\r\n"
_DECODER: Final = json.JSONDecoder(parse_int=json_integer)
_PLAIN_VALUES: Final = re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
"""Numbers, strings and separators, up to a bracket or a string that is cut off."""


class Member(NamedTuple):
    """A member of the file's top-level object, or one element of the streamed array."""

    name: str
    value: object
    begin: int
    """The offset of the value."""


def members(file: BinaryIO, streamed: str, left_out: str = "") -> Iterator[Member]:
    """Yield the members of the file's top-level object, and the elements of the array named `streamed` one by one, each with
    the array's name. Arrays of numbers and strings named `left_out` are read as empty, at any depth of objects.

    Raises ValueError or RecursionError for invalid JSON, OSError if the file can't be read.
    """
    text = _Text(file, 0)
    text.expect("{")
    for _ in text.items("}"):
        name = text.name()
        text.expect(":")
        if name == streamed and text.next_is("["):
            text.expect("[")
            for _ in text.items("]"):
                begin = text.offset()
                yield Member(name, text.value(), begin)
        else:
            begin = text.offset()
            yield Member(name, text.value_without(left_out), begin)
    if not text.is_at_end():
        raise ValueError("there is more after the end")


def elements(file: BinaryIO, offset: int) -> Iterator[tuple[object, int]]:
    """Yield the elements of an array from an offset on, each with the offset after it, from which the rest can be read.

    Raises ValueError or RecursionError for invalid JSON, OSError if the file can't be read.
    """
    text = _Text(file, offset)
    if text.next_is(","):
        text.expect(",")
    for _ in text.items("]"):
        value = text.value()
        yield value, text.offset()


class _Text:
    """A sliding window over the file's text. What has been read is discarded."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        file.seek(offset)
        self._file = file
        self._decoder = getincrementaldecoder("utf-8")()
        self._text = ""
        self._position = 0
        self._offset = offset
        self._measured = 0  # the position that has `_offset`

    def offset(self) -> int:
        """Skip blanks and return the offset of what comes next."""
        self._skip_blanks()
        return self._measure()

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

    def value_without(self, left_out: str) -> object:
        """Read a value of any kind. Arrays of this name, in an object and in objects within it, are read as empty."""
        if not (left_out and self.next_is("{")):
            return self.value()
        self.expect("{")
        members: dict[str, object] = {}
        for _ in self.items("}"):
            name = self.name()
            self.expect(":")
            if name == left_out and self.next_is("["):
                self._pass_over_array()
                members[name] = []
            else:
                members[name] = self.value_without(left_out)
        return members

    def items(self, closing: str) -> Iterator[None]:
        """Yield before every item, and read the commas between them and the closing character."""
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
        """Return whether this character comes next, after blanks."""
        self._skip_blanks()
        return self._text.startswith(character, self._position)

    def is_at_end(self) -> bool:
        """Return whether nothing but blanks is left."""
        self._skip_blanks()
        return self._position == len(self._text)

    def _pass_over_array(self) -> None:
        """Skip an array of numbers and strings, which may be too large for memory."""
        self.expect("[")
        while True:
            if all(self._text.find(mark, self._position) < 0 for mark in ('"', "]")):
                self._position = len(self._text)  # only numbers, which need no parsing
            elif match := _PLAIN_VALUES.match(self._text, self._position):
                self._position = match.end()
            is_cut_off = self._text[self._position : self._position + 1] in ("", '"')
            if not (is_cut_off and self._read_more()):
                break
        self.expect("]")

    def _skip_blanks(self) -> None:
        while True:
            while self._position < len(self._text) and self._text[self._position] in _BLANKS:
                self._position += 1
            if self._position < len(self._text) or not self._read_more():
                return

    def _measure(self) -> int:
        self._offset += len(self._text[self._measured : self._position].encode())
        self._measured = self._position
        return self._offset

    def _read_more(self) -> bool:
        """Read at least as much again as is not parsed yet, so that all attempts together take linear time."""
        rest = self._text[self._position :]
        if len(rest) > MAX_VALUE_CHARACTERS:
            raise ValueError(f"a value is longer than {MAX_VALUE_CHARACTERS} characters")
        more = ""
        while not more:  # a few bytes may not complete a character
            data = self._file.read(max(_READ_BYTES, len(rest)))
            more = self._decoder.decode(data, final=not data)
            if not data:
                return False
        self._measure()
        self._text, self._position, self._measured = rest + more, 0, 0
        return True
