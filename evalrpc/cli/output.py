"""Output: JSON for programs, tables on a terminal, and tab-separated lines elsewhere."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import click
from google.protobuf import json_format
from google.protobuf.message import Message


def print_json(message: Message) -> None:
    """Print a message as protobuf JSON on several lines."""
    click.echo(json_format.MessageToJson(message, preserving_proto_field_name=True))


def print_json_line(message: Message) -> None:
    """Print a message of a stream as protobuf JSON on one line."""
    click.echo(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print a table on a terminal, else a tab-separated line per row, without a header. `styles` maps whole cells to styles."""
    if is_terminal():
        _print_rich_table(columns, rows, styles)
        return
    for row in rows:
        click.echo("\t".join(" ".join(cell.split()) for cell in row))


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def _print_rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, styles.get(cell, "")) for cell in row))
    Console().print(table)
