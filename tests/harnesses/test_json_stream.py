"""JSON files read member by member, whatever their size and wherever a read ends."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.harnesses.inspect_ai import json_stream
from evalrpc.harnesses.inspect_ai.json_stream import elements, members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(path: Path, left_out: str = "") -> list[tuple[str, object]]:
    with path.open("rb") as file:
        return [(name, value) for name, value, _ in members(file, "samples", left_out)]


@settings(deadline=None)
@given(
    document=st.dictionaries(st.text(), VALUES, max_size=4), samples=st.lists(VALUES, max_size=4), indent=st.none() | st.just(1)
)
def test_whatever_was_written_is_read(
    document: dict[str, object], samples: list[object], indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "f.json"
    path.write_text(json.dumps({**document, "samples": samples}, indent=indent))
    found = read(path)
    assert [item for key, item in found if key == "samples"] == samples
    assert [(key, value) for key, value in found if key != "samples"] == [
        (key, value) for key, value in document.items() if key != "samples"
    ]


@settings(deadline=None)
@given(samples=st.lists(VALUES, min_size=1, max_size=5), indent=st.none() | st.just(1), read_bytes=st.integers(1, 9))
def test_reading_goes_on_wherever_an_element_ends(
    samples: list[object], indent: int | None, read_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "f.json"
    path.write_text(json.dumps({"é": "ü", "samples": samples, "z": []}, indent=indent, ensure_ascii=False))
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(json_stream, "_READ_BYTES", read_bytes)
        offset = next(begin for name, _, begin in members(file, "samples") if name == "samples")
        for count in range(len(samples)):
            found = list(elements(file, offset))
            assert [value for value, _ in found] == samples[count:]
            offset = found[0][1]
        assert list(elements(file, offset)) == []


@settings(deadline=None)
@given(ids=st.lists(st.integers() | st.text() | st.floats(allow_nan=False)), read_bytes=st.integers(1, 9))
def test_an_array_that_is_left_out_is_read_as_empty_and_what_follows_as_it_is(
    ids: list[object], read_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "f.json"
    inner = {"ids": ids, "b": [1, {"ids": [2]}], "c": {"ids": "no array"}}
    path.write_text(json.dumps({"a": {"d": inner, "e": 1}, "samples": [{"ids": [3]}]}, ensure_ascii=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_READ_BYTES", read_bytes)
        assert read(path, "ids") == [("a", {"d": {**inner, "ids": []}, "e": 1}), ("samples", {"ids": [3]})]


@pytest.mark.parametrize("read_bytes", [1, 2, 7])
def test_a_read_may_end_anywhere(read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_READ_BYTES", read_bytes)
    path = tmp_path / "f.json"
    path.write_text('{ "a" : 12345.5e3 , "samples" : [ 100, "x\\u00fcy", {"b": [true, null]} ], "z": -1}\n')
    assert read(path) == [
        *(("a", 12345500.0), ("samples", 100), ("samples", "xüy"), ("samples", {"b": [True, None]}), ("z", -1)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        "1",
        "{",
        '{"a"',
        '{"a":',
        '{"a":1',
        '{"a":1,}',
        "{1:2}",
        '{"samples":[1',
        '{"samples":[1,]}',
        '{"a":{"ids":[1',
        '{"a":{"ids":[1,"x',
        '{"a":{"ids":[1,[2]]}}',
        "{}x",
        "{a:1}",
    ],
)
def test_what_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected|Expecting|there is more|Unterminated"):
        read(path, "ids")


def test_a_value_without_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARACTERS", 1000)
    monkeypatch.setattr(json_stream, "_READ_BYTES", 10)
    path = tmp_path / "f.json"
    path.write_text('{"a": "' + "x" * 1_000_000)
    with pytest.raises(ValueError, match="a value is longer than 1000 characters"):
        read(path)
