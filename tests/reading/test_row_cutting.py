"""A row that is too large is cut to its bound: the longest strings first, then lists, then whole fields."""

from typing import Any

import pytest
from example_count import example_count
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.harnesses.base import SampleRow
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.structs import sample_struct
from evalrpc.reading.row_cutting import bounded_row
from evalrpc.reading.sample_files import SampleRows
from evalrpc.reading.sample_pages import MAX_ROW_BYTES, TOKEN_BYTES, read_page
from evalrpc.v1.samples_pb2 import ListSamplesResponse

MAX = 100_000
MANY = 10**9


def cut(**values: Any) -> tuple[Struct, list[str]]:
    row, fields = bounded_row(values, MAX, MANY)
    assert row.ByteSize() <= MAX
    return row, fields


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_row_is_cut_only_if_it_is_too_large(more: int) -> None:
    rest = sample_struct({"doc_id": 7, "text": "x" * (MAX - 100)}).ByteSize() - (MAX - 100)
    text = "x" * (MAX - rest + more)
    row, fields = cut(doc_id=7, text=text)
    assert fields == ([".text"] if more > 0 else [])
    assert (row["text"] == text) == (more <= 0)
    assert row.ByteSize() >= MAX - 8


def test_of_several_strings_the_longest_are_cut_to_one_length_and_the_rest_is_whole() -> None:
    long = {"resps": [["a" * 300_000], ["b" * 200_000]], "target": "c" * 90_000, "short": "d" * 2000, "doc_id": 3}
    row, fields = cut(**long)
    assert fields == [".resps", ".target"]
    assert (row["doc_id"], row["short"]) == (3, "d" * 2000)
    lengths = {len(text.encode()) for text in (row["resps"][0][0], row["resps"][1][0], row["target"])}
    assert len(lengths) == 1
    assert row["resps"][0][0].startswith("aaa")
    assert row["resps"][0][0].endswith("…")


def test_where_no_string_is_long_the_largest_list_loses_its_end() -> None:
    row, fields = cut(doc_id=3, logits=list(range(50_000)), text="x" * 500)
    assert fields == [".logits"]
    assert (row["doc_id"], row["text"], row["logits"][1]) == (3, "x" * 500, 1)
    assert row.ByteSize() > MAX / 2, "no more is lost than has to be"


def test_a_list_in_a_list_is_cut_too_and_the_outer_one_keeps_an_element() -> None:
    row, fields = cut(resps=[[list(range(50_000))]])
    assert fields == [".resps"]
    assert row["resps"][0][0][5] == 5


def test_what_is_neither_is_dropped_field_by_field_and_the_largest_first() -> None:
    row, fields = cut(doc_id=3, table={f"key {number}": number for number in range(20_000)}, small={"a": 1})
    assert fields == [".table"]
    assert row["doc_id"] == 3
    assert dict(row["small"]) == {"a": 1}


def test_more_fields_than_can_be_named_are_named_together() -> None:
    _, fields = cut(**{f"field {number:05}": number for number in range(30_000)})
    assert len(fields) == 101
    assert fields[-1] == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5000),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=50), inner, max_size=30),
    max_leaves=30,
)


@settings(deadline=None, max_examples=example_count(200))
@given(st.dictionaries(st.text(max_size=100), _JSON, max_size=20), st.integers(200, 20_000))
def test_whatever_is_in_a_row_it_fits(values: dict[str, Any], max_bytes: int) -> None:
    before = sample_struct(values)
    row, fields = bounded_row(values, max_bytes, MANY)
    assert row.ByteSize() <= max_bytes
    changed = {f".{key[:64]}" for key in before.fields if key not in row.fields or row.fields[key] != before.fields[key]}
    assert changed == set(fields)


def rows_of(*sizes: int) -> SampleRows:
    """Rows that are of these sizes as Structs."""
    found = []
    for end, size in enumerate(sizes, start=1):
        length = size
        for _ in range(3):  # the lengths before it may take fewer bytes with it
            length -= sample_struct({"doc_id": end, "t": "x" * length}).ByteSize() - size
        found.append(SampleRow({"doc_id": end, "t": "x" * length}, end))
        assert sample_struct(found[-1].values).ByteSize() == size, "this size can't be reached"
    return SampleRows(iter(found))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_page_is_full_to_the_byte(more: int) -> None:
    half = MAX_PAGE_BYTES // 2 - TOKEN_BYTES - 4  # a tag, and a length of three bytes
    page = read_page(rows_of(half, half + more, 100), 1000)
    assert len(page.rows) == (2 if more <= 0 else 1)
    assert ListSamplesResponse(samples=page.rows).ByteSize() <= MAX_PAGE_BYTES
    assert page.next_offset == len(page.rows)
    assert page.truncated_fields == []


@pytest.mark.parametrize("size", [MAX_ROW_BYTES - 1, MAX_ROW_BYTES, MAX_ROW_BYTES + 1, 5 * MAX_ROW_BYTES])
def test_a_row_over_2_mib_is_cut_and_named_by_its_place_on_the_page(size: int) -> None:
    page = read_page(rows_of(100, size), 1000)
    assert len(page.rows) == 2
    assert page.truncated_fields == (["samples[1].t"] if size > MAX_ROW_BYTES else [])
    assert page.rows[1].ByteSize() <= MAX_ROW_BYTES


def bounded(values: dict[str, Any], max_values: int = 1000) -> tuple[Struct, list[str]]:
    return bounded_row(values, MAX, max_values)


def test_a_row_of_very_many_values_is_shortened_in_its_lists_before_it_is_converted() -> None:
    row, fields = bounded({"doc_id": 1, "long": [[0] * 5000] * 3, "short": [1, 2], "table": {"a": [1] * 100_000}})
    assert fields == [".long", ".table"]
    assert (row["doc_id"], list(row["short"])) == (1, [1, 2])
    assert 100 < len(row["long"][0]) <= 1000
    assert 100 < len(row["table"]["a"]) <= 1000


def test_very_many_fields_are_dropped_and_named_together() -> None:
    row, fields = bounded({f"field {number:05}": number for number in range(5000)})
    assert 500 <= len(row.fields) <= 1000
    assert fields[-1] == ""


@settings(deadline=None, max_examples=example_count(200))
@given(st.dictionaries(st.text(max_size=20), _JSON, max_size=20), st.integers(1, 60))
def test_whatever_is_in_a_row_it_has_no_more_values_and_what_was_shortened_is_named(
    values: dict[str, Any], max_values: int
) -> None:
    row, fields = bounded(values, max_values)
    assert _count(row) <= max_values
    whole = sample_struct(values)
    changed = {f".{key[:64]}" for key in whole.fields if key not in row.fields or row.fields[key] != whole.fields[key]}
    assert changed == set(fields)


def _count(row: Struct) -> int:
    count, pending = len(row.fields), list(row.fields.values())
    while pending:
        value = pending.pop()
        items = [*value.list_value.values, *value.struct_value.fields.values()]
        count += len(items)
        pending += items
    return count


def test_a_number_that_is_none_is_not_cut() -> None:
    values = {"acc": float("nan"), "list": [float("nan")], "deep": {"f1": float("nan")}, "text": "x"}
    assert bounded_row(values, MAX_ROW_BYTES, 100)[1] == []
    assert bounded_row({**values, "many": list(range(200))}, MAX_ROW_BYTES, 100)[1] == [".many"]
