"""Whatever a job, a client or a file name says, what reaches a display neither acts on it nor hides."""

import json
import unicodedata
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.printable import first_unprintable, printable, printable_json, without_colours

ANY_TEXT = st.text(
    alphabet=st.characters() | st.sampled_from("\x00\x07\x1b\x7f\x9b\xad\u200b\u202e\u2028\ud800\ufeff\U000e0041")
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f"),
        ("abc\u202edcba\u2066x\u2069\u200f", r"abc\u202edcba\u2066x\u2069\u200f"),
        ("a\u200bb\ufeffc\u00add\u3164", r"a\u200bb\ufeffc\xadd\u3164"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("\ud83d and \udcff", r"\ud83d and \udcff"),
        ("one\ntwo\r\nthree\tfour\rfive", "one two three four five"),
    ],
)
def test_what_acts_on_a_display_or_hides_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["", "plain", "中文 日本語", "🙂 ❤️ 👍🏽", "e\u0301 ä ß", r"C:\x1b \n", "שלום عربي", "a\u00a0b"]
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert first_unprintable(text) is None


@given(ANY_TEXT)
def test_nothing_unsafe_is_left_of_any_text(text: str) -> None:
    shown = printable(text)
    assert not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, shown))
    assert first_unprintable(shown) is None
    assert len(f"{shown}.".splitlines()) == 1
    assert printable(shown) == shown
    shown.encode()


@given(ANY_TEXT)
def test_any_text_fits_into_xml(text: str) -> None:
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    assert (ET.fromstring(f"<a>{escaped}</a>").text or "") == printable(text)


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner)))
def test_json_says_the_same_without_them(value: object) -> None:
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert first_unprintable(text) is None


@pytest.mark.parametrize(("text", "escape"), [("a\nb", r"\x0a"), ("\u202e", r"\u202e"), ("a\U000e0001", r"\U000e0001")])
def test_the_first_unsafe_character_is_named(text: str, escape: str) -> None:
    assert first_unprintable(text) == escape


def test_colours_go_and_other_sequences_stay_to_be_escaped() -> None:
    assert without_colours("\x1b[32mgreen\x1b[0m \x1b[38;5;1mred\x1b[m") == "green red"
    assert without_colours("\x1b[2J\x1b]0;title\x07") == "\x1b[2J\x1b]0;title\x07"
