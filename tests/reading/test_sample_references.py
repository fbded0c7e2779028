"""What a row refers to, and what a medium is by its bytes."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.reading.media_types import ANY_TYPE, media_type
from evalrpc.reading.sample_references import MAX_INLINE_BYTES, MAX_REFERENCES, Reference, find_references

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_data_counts_anywhere_and_paths_under_names_of_media() -> None:
    row = {
        "doc_id": 3,
        "doc": {"image": "a.png", "text": "b.png", "note": url(PNG)},
        "input_media": ["/data/c.png", {"url": "file:///data/d%20e.png"}, None, 5],
        "messages": [{"content": [{"type": "image", "image": "https://example.org/f.png"}]}],
    }
    found = find_references(row)
    assert [(each.source, each.data or each.path or each.problem) for each in found] == [
        ("doc.image", "a.png"),
        ("doc.note", PNG),
        ("input_media[0]", "/data/c.png"),
        ("input_media[1].url", "/data/d e.png"),
        ("messages[0].content[0].image", "it lies on another server, from which nothing is fetched"),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data:image/png;base64,!!!", "no base64"),
        ("data:image/png;base64," + "A" * (MAX_INLINE_BYTES * 4 // 3 + 8), "too large"),
        ("ftp://host/a.png", "another server"),
        ("javascript:alert(1)", "another server"),
    ],
)
def test_what_can_not_be_given_says_why(text: str, problem: str) -> None:
    (found,) = find_references({"image": text})
    assert problem in found.problem
    assert found.data is None
    assert not found.path


def test_each_is_there_once_and_no_more_than_some_count() -> None:
    assert len(find_references({"image": ["a.png", "a.png"], "images": ["a.png"]})) == 1
    assert len(find_references({"images": [f"{number}.png" for number in range(1000)]})) == MAX_REFERENCES


def test_all_of_a_row_is_bounded_too() -> None:
    large = url(bytes(MAX_INLINE_BYTES))
    problems = [
        bool(each.problem) for each in find_references({"images": [large, f"{large[:-8]}AAAAAAAA", f"{large[:-8]}BBBBBBBB"]})
    ]
    assert problems == [False, False, True]


def test_a_row_of_any_depth_is_read() -> None:
    deep: Any = "data:image/png,x"
    for _ in range(5000):
        deep = {"image": [deep]}
    assert find_references({"row": deep}) == []
    assert find_references({"a": {"b": ["data:image/png,x"]}}) == [Reference("a.b[0]", data=b"x")]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_row_makes_it_fail(value: object) -> None:
    row = json.loads(json.dumps({"image": value, "other": value}))
    for found in find_references(row):
        assert bool(found.problem) + bool(found.path) + (found.data is not None) == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"RIFF\0\0\0\0WAVE", "audio/wav"),
        (b"\0\0\0\x20ftypavif", "image/avif"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "image/bmp"),
        (b"BM, a text that begins so", ANY_TYPE),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', ANY_TYPE),
        (b"<html><script>", ANY_TYPE),
        (b"", ANY_TYPE),
    ],
)
def test_a_type_is_told_by_the_first_bytes(data: bytes, kind: str) -> None:
    assert media_type(data) == kind
