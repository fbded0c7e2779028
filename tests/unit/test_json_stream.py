"""JSON files read member by member, whatever their size and wherever a read ends."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.harnesses import json_stream
from evalrpc.harnesses.json_stream import members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    document=st.dictionaries(st.text(), VALUES, max_size=4), samples=st.lists(VALUES, max_size=4), indent=st.none() | st.just(1)
)
def test_whatever_was_written_is_read(
    document: dict[str, object], samples: list[object], indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "f.json"
    path.write_text(json.dumps({**document, "samples": samples}, indent=indent))
    read = list(members(path, "samples"))
    assert [item for key, item in read if key == "samples"] == samples
    assert [(key, value) for key, value in read if key != "samples"] == [
        (key, value) for key, value in document.items() if key != "samples"
    ]


@pytest.mark.parametrize("read_characters", [1, 2, 7])
def test_a_read_may_end_anywhere(read_characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", read_characters)
    path = tmp_path / "f.json"
    path.write_text('{ "a" : 12345.5e3 , "samples" : [ 100, "x\\u00fcy", {"b": [true, null]} ], "z": -1}\n')
    assert list(members(path, "samples")) == [
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
        "{}x",
        "{a:1}",
    ],
)
def test_what_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected|Expecting|there is more|Unterminated"):
        list(members(path, "samples"))


def test_a_value_without_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARACTERS", 1000)
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", 10)
    path = tmp_path / "f.json"
    path.write_text('{"a": "' + "x" * 1_000_000)
    with pytest.raises(ValueError, match="a value is longer than 1000 characters"):
        list(members(path, "samples"))
