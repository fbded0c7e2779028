"""Tables that fit a terminal. Pure, apart from loading rich, which knows how wide characters are.

A table never wraps. If it is too wide, long texts are cut, and what does not fit then is dropped from the right. Ids, numbers
and other short cells are shown whole or not at all, and the first column always is.
"""

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from evalrpc.printable import printable

Cell = str | int | float | None
"""None is an empty cell."""

MIN_TEXT_CELLS: Final = 10
"""A column of texts is not cut to less, unless it is the last one."""

MIN_LAST_CELLS: Final = 8
"""That one is dropped if it would get less."""

_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?|nan|[+-]?inf")
_GAP: Final = "  "
_ELLIPSIS: Final = "…"


class Kind(Enum):
    """How a column may be shown."""

    TEXT = "text"
    """May be cut."""
    WHOLE = "whole"
    """Shown whole or not at all."""
    NUMBER = "number"
    """The same, and aligned right."""


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: Kind = Kind.TEXT
    number_format: str = ".4f"
    """For floats, except in CSV, which has every digit."""
    only_wide: bool = False
    """Whether it is left out unless all columns are asked for."""
    optional: bool = False
    """Whether a terminal does without it if every row has the same there."""
    is_key: bool = False
    """Whether the name is that of a label or a metric, to be shown as it is."""

    def title(self) -> str:
        """Return what a terminal shows above the column."""
        return printable(self.name) if self.is_key else self.name.upper()


class Layout(NamedTuple):
    """Which columns are shown, and how wide in terminal cells."""

    columns: Sequence[Column]
    indices: Sequence[int]
    widths: Sequence[int]
    right: frozenset[int]
    """The indices of those that are aligned right."""

    def header(self) -> list[str]:
        """Return the names of the columns, padded."""
        return self.cells([column.title() for column in self.columns])

    def cells(self, row: Sequence[str]) -> list[str]:
        """Return the cells of a row, cut and padded, with the gaps between them."""
        last = self.indices[-1]
        return [
            self._cell(row, index, width, is_last=index == last) for index, width in zip(self.indices, self.widths, strict=True)
        ]

    def _cell(self, row: Sequence[str], index: int, width: int, *, is_last: bool) -> str:
        text = cut(row[index], width) if self.columns[index].kind is Kind.TEXT else row[index]
        padding = " " * (width - cell_width(text))
        if index in self.right:
            return padding + text + ("" if is_last else _GAP)
        return text if is_last else text + padding + _GAP


def texts(columns: Sequence[Column], row: Sequence[Cell]) -> list[str]:
    """Return the cells of a row as printable texts."""
    return [_text(column, cell) for column, cell in zip(columns, row, strict=True)]


def layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], max_cells: int | None) -> Layout:
    """Choose what to show of a table on a terminal of this width; None shows all of it."""
    indices = [index for index, column in enumerate(columns) if max_cells is None or _is_needed(column, index, rows)]
    right = frozenset(index for index in indices if _is_right(columns[index], index, rows))
    natural = [max(map(cell_width, (columns[index].title(), *(row[index] for row in rows)))) for index in indices]
    if max_cells is None:
        return Layout(columns, indices, natural, right)
    least = [_least_width(columns[index], width) for index, width in zip(indices, natural, strict=True)]
    while len(least) > 1 and _needed_cells(least) > max_cells:
        least.pop()
        last = len(least) - 1
        least[last] = _least_width(columns[indices[last]], natural[last], MIN_LAST_CELLS)
    widths = _grown(least, natural[: len(least)], max_cells)
    return Layout(columns, indices[: len(widths)], widths, right)


def csv_line(cells: Sequence[Cell]) -> str:
    """Return a line of CSV as RFC 4180 has it, with its end. Floats have all their digits."""
    line = io.StringIO()
    csv.writer(line).writerow(printable(cell) if isinstance(cell, str) else cell for cell in cells)
    return line.getvalue()


def cell_width(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for each CJK character or emoji, none for a combining mark."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, max_cells: int) -> str:
    """Return a text, or as much of its front as fits with an ellipsis."""
    if cell_width(text) <= max_cells:
        return text
    fits = bisect_right(range(1, len(text)), max_cells - 1, key=lambda length: cell_width(text[:length]))
    return text[:fits].rstrip() + _ELLIPSIS


def folded(text: str, max_cells: int) -> list[str]:
    """Return the lines of a text, each no wider than this: broken between words, and words too long for a line anywhere."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if cell_width(joined) <= max_cells:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while cell_width(line) > max_cells:
            fits = max(1, bisect_right(range(1, len(line)), max_cells, key=lambda length: cell_width(line[:length])))
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line]


def _text(column: Column, cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case float():
            return f"{cell:{column.number_format if abs(cell) < 1e9 else '.6g'}}"
    return printable(str(cell))


def _least_width(column: Column, natural: int, minimum: int = MIN_TEXT_CELLS) -> int:
    return min(natural, minimum) if column.kind is Kind.TEXT else natural


def _grown(least: Sequence[int], natural: Sequence[int], max_cells: int) -> list[int]:
    """Share out what is left of the width: the longest columns are cut to the same, and the first get what remains."""

    def capped(cap: int) -> list[int]:
        return [max(low, min(high, cap)) for low, high in zip(least, natural, strict=True)]

    caps = range(max(natural) + 1)
    widths = capped(bisect_right(caps, max_cells, key=lambda cap: _needed_cells(capped(cap))) - 1)
    spare = max_cells - _needed_cells(widths)
    for place, high in enumerate(natural):
        extra = max(0, min(spare, high - widths[place]))
        widths[place] += extra
        spare -= extra
    return widths


def _needed_cells(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _is_right(column: Column, index: int, rows: Sequence[Sequence[str]]) -> bool:
    """Numbers are aligned right, and so are texts, such as labels, if all of them are numbers."""
    if column.kind is not Kind.TEXT:
        return column.kind is Kind.NUMBER
    filled = [row[index] for row in rows if row[index]]
    return bool(filled) and all(map(_NUMBER.fullmatch, filled))


def _is_needed(column: Column, index: int, rows: Sequence[Sequence[str]]) -> bool:
    if column.optional and index:
        return len({row[index] for row in rows}) > 1
    return not column.only_wide
