"""Texts are cut to their bound, and never in the middle of a character."""

from hypothesis import given
from hypothesis import strategies as st

from evalrpc.protobuf.texts import MAX_NAME_LENGTH, bounded_name, cut, last_lines

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=600)


@given(TEXTS, st.integers(3, 700))
def test_a_text_is_cut_to_its_bound_and_shows_it(text: str, max_bytes: int) -> None:
    shortened = cut(text, max_bytes)
    assert len(shortened.encode()) <= max_bytes
    assert shortened == text if len(text.encode()) <= max_bytes else shortened.endswith("…")
    assert text.startswith(shortened.removesuffix("…"))


@given(TEXTS, TEXTS)
def test_a_name_is_bounded_and_different_ones_stay_different(name: str, other: str) -> None:
    assert len(bounded_name(name)) <= MAX_NAME_LENGTH
    assert (bounded_name(name) == name) == (len(name) <= MAX_NAME_LENGTH)
    assert (bounded_name("x" * 300 + name) == bounded_name("x" * 300 + other)) == (name == other)


@given(st.lists(TEXTS, max_size=20), st.integers(1, 30), st.integers(4, 2000))
def test_the_last_lines_fit(lines: list[str], max_lines: int, max_bytes: int) -> None:
    kept = last_lines(lines, max_lines, max_bytes)
    assert len(kept) <= max_lines
    assert sum(len(line.encode()) for line in kept) <= max_bytes
    assert all(line.endswith(end) for line, end in zip(lines[len(lines) - len(kept) :], kept, strict=True))
