"""Everything that the command line prints goes through here, so that no job, client or file name can act on a terminal."""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from evalrpc.cli import tables
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

_FACT_COLUMNS: Final = (Column("field", Kind.WHOLE), Column("value"))


class Form(StrEnum):
    """What a table is printed as."""

    TABLE = "table"
    """On a terminal, what fits its width; elsewhere a header and a line per row, with tabs."""
    WIDE = "wide"
    """All columns, and nothing cut."""
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


def print_line(text: str = "", *, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(text), err=err)


def print_drawing(text: str) -> None:
    """Print lines with colours that this program drew, of printable texts."""
    click.echo(text)


def print_json(message: Message) -> None:
    """Print a message as protobuf JSON on several lines."""
    click.echo(printable_json(json_format.MessageToJson(message, preserving_proto_field_name=True)))


def print_json_line(message: Message) -> None:
    """Print a message of a stream as protobuf JSON on one line."""
    print_json_text(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))


def print_json_text(text: str) -> None:
    """Print JSON that is on one line."""
    click.echo(printable_json(text))


def print_items(
    form: Form,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    items: Iterable[Message],
    message: Message | None = None,
    styles: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Print a row per item. As JSON, it is the message, or a line per item as for JSONL if there is none.

    `styles` maps whole cells to the styles that they have on a terminal. Of `rows` and `items`, only one is iterated over.
    """
    if form is Form.JSON and message is not None:
        print_json(message)
    elif form in (Form.JSON, Form.JSONL):
        for item in items:
            print_json_line(item)
    else:
        print_table(form, columns, rows, styles)


def print_table(
    form: Form, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], styles: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print rows in any form but JSON."""
    if form is not Form.CSV and is_terminal():
        shown = [tables.texts(columns, row) for row in rows]
        _print_layout(tables.layout(columns, shown, terminal_cells() if form is Form.TABLE else None), shown, styles)
        return
    table = GrowingTable(form, columns)
    for row in rows:
        table.print_row(row)
    table.print_header()


def print_facts(form: Form, facts: Iterable[tuple[str, Cell]], message: Message) -> None:
    """Print names with their values. On a terminal, values that are too long go on below themselves."""
    if form in (Form.JSON, Form.JSONL):
        print_items(form, (), (), [message], message)
    elif form is Form.TABLE and is_terminal():
        print_folded(facts)
    else:
        print_table(form, _FACT_COLUMNS, facts)


def print_folded(facts: Iterable[tuple[str, Cell]]) -> None:
    """Print names with their values for a terminal, where values that are too long go on below themselves."""
    texts = [tables.texts(_FACT_COLUMNS, fact) for fact in facts]
    longest = max((tables.cell_width(name) for name, _ in texts), default=0)
    margin = min(longest, terminal_cells() // 4) + 2
    for name, value in texts:
        lines = tables.folded(value, max(tables.MIN_TEXT_CELLS, terminal_cells() - margin))
        padding = margin - tables.cell_width(name)
        click.echo(f"{name}{' ' * padding}{lines.pop(0)}" if padding > 1 else name)
        for line in lines:
            click.echo(f"{' ' * margin}{line}")


def warn_of_cut_rows(max_mib: int, paths: Sequence[str]) -> None:
    """Say on stderr what of the samples that were printed is not whole."""
    print_line(f"evalrpc: rows over {max_mib} MiB are cut, `evalrpc download` has them whole: {', '.join(paths)}", err=True)


class GrowingTable:
    """A table whose rows are printed as they come. On a terminal, its columns grow with what they hold.

    The header comes with the first row, so that what fails before prints its error alone.
    """

    def __init__(self, form: Form, columns: Sequence[Column], typical: Sequence[str] = ()) -> None:
        """`typical` is a row as wide as most will be."""
        self._form = form
        self._columns = columns
        self._shown = [index for index, column in enumerate(columns) if form is not Form.TABLE or not column.only_wide]
        self._is_terminal = is_terminal() and form is not Form.CSV
        self._widest = list(typical) or [""] * len(columns)
        self._has_header = False

    def print_row(self, row: Sequence[Cell]) -> None:
        """Print one row, with a cell for each of the columns."""
        self.print_header()
        self._print_cells(row)

    def print_header(self) -> None:
        """Print the header, unless it is there."""
        if self._has_header:
            return
        self._has_header = True
        if self._is_terminal:
            _print_styled(_console(), [(cell, "bold") for cell in self._layout().header()])
        else:
            self._print_cells([column.name for column in self._columns])

    def _print_cells(self, row: Sequence[Cell]) -> None:
        if self._form is Form.CSV:
            click.echo(tables.csv_line(row).encode(), nl=False)
            return
        texts = tables.texts(self._columns, row)
        if self._is_terminal:
            self._widest = [max(pair, key=tables.cell_width) for pair in zip(self._widest, texts, strict=True)]
            click.echo("".join(self._layout().cells(texts)))
        else:
            click.echo("\t".join(texts[index] for index in self._shown))

    def _layout(self) -> tables.Layout:
        return tables.layout(self._columns, [self._widest], terminal_cells() if self._form is Form.TABLE else None)


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def terminal_cells() -> int:
    """Return the width of the terminal."""
    return shutil.get_terminal_size().columns


def _print_layout(layout: tables.Layout, rows: Iterable[Sequence[str]], styles: Mapping[str, str]) -> None:
    console = _console()
    _print_styled(console, [(cell, "bold") for cell in layout.header()])
    for row in rows:
        _print_styled(console, [(cell, styles.get(cell.strip(), "")) for cell in layout.cells(row)])


def _print_styled(console: "Console", cells: Iterable[tuple[str, str]]) -> None:
    from rich.text import Text

    line = Text.assemble(*cells)
    line.rstrip()
    console.print(line, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
