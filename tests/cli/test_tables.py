"""Tables that fit a terminal, and CSV."""

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.cli import tables
from evalrpc.cli.tables import Column, Kind, cell_width, csv_line, cut, folded, layout, texts

ID = "7b0b8d5e-6f1e-4f0e-9d51-0d5fb3a1c001"
COLUMNS = (
    Column("job", Kind.WHOLE),
    Column("status", Kind.WHOLE),
    Column("model"),
    Column("value", Kind.NUMBER),
    Column("detail"),
    Column("labels", only_wide=True),
)
ROW = (ID, "COMPLETED", "a model with a long name", 0.5, "a detail that is rather long, too", "run=x")


def lines(max_cells: int | None, *rows: tuple[tables.Cell, ...]) -> list[str]:
    shown = [texts(COLUMNS, row) for row in rows or (ROW,)]
    chosen = layout(COLUMNS, shown, max_cells)
    return ["".join(cells).rstrip() for cells in (chosen.header(), *map(chosen.cells, shown))]


@pytest.mark.parametrize("width", range(10, 200))
def test_no_line_is_wider_than_the_terminal_and_the_id_is_always_whole(width: int) -> None:
    for line in lines(width)[1:]:
        assert cell_width(line) <= max(width, len(ID))
        assert line.startswith(ID)


def test_columns_that_do_not_fit_are_dropped_from_the_right_before_anything_whole_is_cut() -> None:
    assert lines(40) == ["JOB", ID]
    assert lines(50) == ["JOB                                   STATUS", f"{ID}  COMPLETED"]
    assert lines(60)[1] == f"{ID}  COMPLETED  a model wi…"
    assert lines(68)[1] == f"{ID}  COMPLETED  a model wi…  0.5000"
    assert lines(90)[1] == f"{ID}  COMPLETED  a model with a…   0.5000  a detail that…"
    assert lines(110)[1] == f"{ID}  COMPLETED  a model with a long name  0.5000  a detail that is rather lo…"


def test_all_columns_are_shown_uncut_if_asked_for() -> None:
    assert lines(None)[1] == f"{ID}  COMPLETED  a model with a long name  0.5000  a detail that is rather long, too  run=x"


def test_numbers_are_aligned_right_with_their_header_and_nan_is_shown() -> None:
    rows = [(ID, "RUNNING", "m", value, "", "") for value in (0.5, math.nan, 1234.5, None, math.inf, 1e300)]
    column = [line[len(ID) + 2 + 9 + 7 :] for line in lines(200, *rows)]
    assert [line.split()[0] if line.split() else "" for line in column[1:]] == [
        "0.5000",
        "nan",
        "1234.5000",
        "",
        "inf",
        "1e+300",
    ]
    assert len({len(line) for line in column if line.strip()} - {len(column[0])}) == 1, "only the header goes on, with DETAIL"


def test_labels_that_are_all_numbers_are_aligned_right_and_others_left() -> None:
    columns = (Column("job", Kind.WHOLE), Column("step"), Column("run"))
    rows = [("a", "500", "x1"), ("b", "1000", "10"), ("c", "", "")]
    chosen = layout(columns, rows, 80)
    assert ["".join(chosen.cells(row)).rstrip() for row in rows] == ["a     500  x1", "b    1000  10", "c"]


def test_an_optional_column_is_left_out_on_a_terminal_if_all_rows_have_the_same() -> None:
    columns = (Column("metric"), Column("model", optional=True))
    assert layout(columns, [("a", "m"), ("b", "m")], 80).indices == [0]
    assert layout(columns, [("a", "m"), ("b", "n")], 80).indices == [0, 1]
    assert layout(columns, [("a", "m"), ("b", "m")], None).indices == [0, 1]


@pytest.mark.parametrize(("text", "cells"), [("plain", 5), ("中文", 4), ("🙂", 2), ("e\u0301tude", 5), ("通义a", 5), ("", 0)])
def test_widths_are_cells_of_a_terminal(text: str, cells: int) -> None:
    assert cell_width(text) == cells


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("plain", 5, "plain"),
        ("plainer", 5, "plai…"),
        ("中文字符", 5, "中文…"),
        ("中文字符", 6, "中文…"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("a word", 4, "a w…"),
        ("a word", 3, "a…"),
    ],
)
def test_a_text_is_cut_at_a_cell_with_an_ellipsis(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown


@given(st.text(alphabet="ab 中🙂\u0301", max_size=60), st.integers(2, 40))
def test_what_is_cut_or_folded_is_never_wider(text: str, width: int) -> None:
    assert cell_width(cut(text, width)) <= width
    assert all(cell_width(line) <= width for line in folded(text, width))
    assert "".join(folded(text, width)).replace(" ", "") == text.replace(" ", "")


def test_a_text_is_folded_between_words_and_a_long_word_anywhere() -> None:
    assert folded("one two three /a/very/long/path", 9) == ["one two", "three", "/a/very/l", "ong/path"]
    assert folded("", 9) == [""]


def test_csv_is_that_of_rfc_4180_with_every_digit() -> None:
    cells = ("a,b", 'say "hi"', "two\nlines", 0.1 + 0.2, math.nan, None, 7, "\x1b")
    line = csv_line(cells)
    assert line.endswith("\r\n")
    assert next(csv.reader(io.StringIO(line))) == [
        "a,b",
        'say "hi"',
        "two lines",
        "0.30000000000000004",
        "nan",
        "",
        "7",
        r"\x1b",
    ]
