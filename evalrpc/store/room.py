"""How much one read takes into memory."""

from collections.abc import Iterable
from typing import Any


class Room:
    """Takes rows up to a number, and none after the one with which they have so many bytes. So it takes one in any case."""

    def __init__(self, limit: int, max_bytes: int) -> None:
        self.left = limit
        """How many more rows fit."""
        self._left_bytes = max_bytes

    def take(self, rows: Iterable[Any], place: int) -> list[Any]:
        """Return rows until it is full; `place` is that of the bytes in a row. The rest is not read."""
        taken: list[Any] = []
        for row in rows if self.left else ():
            taken.append(row)
            self._left_bytes -= len(row[place])
            self.left -= 1
            if self._left_bytes <= 0:
                self.left = 0
            if not self.left:
                break
        return taken
