"""Known values are masked with equal length, wherever they stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.secrets.masking import NO_MASK, Mask

SECRET = "sk-abc123"


@pytest.mark.parametrize(
    ("values", "data", "expected"),
    [
        ([SECRET], b"key sk-abc123, again sk-abc123\n", b"key *********, again *********\n"),
        ([SECRET], b"sk-abc123sk-abc123", b"*" * 18),
        ([SECRET], b"sk-abc12, SK-ABC123, c2stYWJjMTIz", b"sk-abc12, SK-ABC123, c2stYWJjMTIz"),
        (["abcd", "cdef"], b"abcdef, cdefabcd", b"******, ********"),
        (["abcabc"], b"abcabcabc", b"*********"),
        (["gr\u00fc\u00df dich"], "gr\u00fc\u00df dich!".encode(), b"***********!"),
        (["abc", "x", ""], b"abc x", b"abc x"),  # too short to mean anything
        (["abcd"], b"abcd", b"****"),
        (["-----BEGIN-----\nAAAA\r\n  BBBB\nCC\n"], b"AAAA: BBBB CC -----BEGIN-----", b"****: **** CC ***************"),
        ([], b"sk-abc123", b"sk-abc123"),
    ],
)
def test_every_occurrence_is_masked_byte_by_byte(values: list[str], data: bytes, expected: bytes) -> None:
    assert Mask(values).data(data) == expected


@given(st.lists(st.text("abc\u00e9", min_size=4, max_size=8), max_size=4), st.text("abc\u00e9 ", max_size=60))
def test_nothing_of_a_value_is_left_and_all_else_stays_where_it_was(values: list[str], text: str) -> None:
    data, covered = text.encode(), set()
    for value in (value.strip().encode() for value in values):
        for begin in range(len(data)):
            if data.startswith(value, begin):
                covered.update(range(begin, begin + len(value)))
    expected = bytes(ord("*") if place in covered else byte for place, byte in enumerate(data))
    assert Mask(values).data(data) == expected


def test_texts_are_masked_too() -> None:
    assert Mask([SECRET]).text("Error: sk-abc123 is not valid \ud800") == "Error: ********* is not valid \ud800"
    assert NO_MASK.text("x") == "x"


def test_a_text_is_withheld_if_a_value_is_not_known() -> None:
    mask = Mask(["other value"], ["HF_TOKEN"])
    assert mask.text("x") == "(withheld: the value of HF_TOKEN can't be read any more, so it can't be masked)"
    assert mask.text("") == ""


@pytest.mark.parametrize(
    ("data", "size"),
    [(b"", 0), (b"x", 0), (b"x s", 1), (b"sk-abc12", 8), (b"sk-abc123", 0), (b"sk-abc123 sk-a", 4), (b"ssk", 2)],
)
def test_what_may_be_the_beginning_of_a_value_is_known(data: bytes, size: int) -> None:
    assert Mask([SECRET]).pending(data) == size


def test_the_longest_such_beginning_counts() -> None:
    assert Mask(["abcdx", "cdyy"]).pending(b"abcd") == 4
    assert Mask(["ababab"]).pending(b"ababa") == 5
