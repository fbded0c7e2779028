"""What is remembered for next pages has bounds of size and time."""

from evalrpc.reading.remembered import Remembered


def test_the_latest_that_fit_together_are_remembered() -> None:
    known = Remembered[str](4, len)
    for value in ("aa", "bb", "c"):
        known.put(value[0], value)
    assert [known.get(key) for key in "abc"] == [None, "bb", "c"]
    known.put("d", "d" * 9)
    assert [known.get(key) for key in "bcd"] == [None, None, "d" * 9]


def test_what_is_taken_is_one_callers_alone() -> None:
    known = Remembered[str](4, len)
    known.put("a", "aa")
    assert [known.take("a"), known.take("a")] == ["aa", None]


def test_what_nobody_has_used_since_the_last_time_is_forgotten() -> None:
    known = Remembered[str](100, len)
    for key in "abc":
        known.put(key, key)
    known.forget_unused()  # they are all new
    known.get("a")
    known.put("b", "other")
    known.put("d", "d")
    known.forget_unused()
    assert [known.get(key) for key in "abcd"] == ["a", "other", None, "d"]
