"""Reading the log of a run."""

import sys
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalrpc.scheduling.log_tail import MAX_TAIL_BYTES, MAX_TAIL_LINES, LogFollower, plain, read_tail
from evalrpc.secrets.masking import Mask


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def test_a_log_that_is_not_there_yet_has_nothing(log: Path) -> None:
    follower = LogFollower(log)
    assert list(follower.new_lines()) == []
    assert follower.last_line() == ""
    assert follower.last_output_ns() is None
    assert read_tail(log) == []


def test_each_line_is_given_once_however_it_arrives(log: Path) -> None:
    follower = LogFollower(log)
    append(log, b"one\ntw")
    assert list(follower.new_lines()) == ["one"]
    assert follower.last_line() == "tw"
    append(log, b"o\nthree\n")
    assert list(follower.new_lines()) == ["two", "three"]
    assert follower.last_line() == ""
    assert list(follower.new_lines()) == []
    assert follower.last_output_ns() == log.stat().st_mtime_ns


def test_an_empty_log_was_never_written_to(log: Path) -> None:
    log.touch()
    assert LogFollower(log).last_output_ns() is None


def test_a_progress_bar_shows_every_state_and_the_cursor_stands_in_the_last(log: Path) -> None:
    follower = LogFollower(log)
    append(log, b"\r 10%|# | 1/10\r 20%|##| 2/10\r 30%")
    assert [line for line in follower.new_lines() if line] == [" 10%|# | 1/10", " 20%|##| 2/10"]
    assert follower.last_line() == " 30%"


def test_a_line_without_end_is_given_in_pieces_and_memory_stays_bounded(log: Path) -> None:
    follower = LogFollower(log)
    append(log, b"x" * 1_900_000)
    pieces = list(follower.new_lines())
    assert max(map(len, pieces)) < 2_000_000
    assert sum(map(len, pieces)) + len(follower.last_line()) == 1_900_000
    assert len(follower.last_line()) <= 64 * 1024
    append(log, b"y\nnext\n")
    assert list(follower.new_lines())[-1] == "next"


def test_one_look_ends_though_the_log_grows_all_the_time(log: Path) -> None:
    follower = LogFollower(log)
    chunk = b"a line of a loud harness\n" * 50_000
    append(log, chunk)
    for seen, _ in enumerate(follower.new_lines(), start=1):
        if seen % 20_000 == 0:
            append(log, chunk)  # the harness writes faster than it is read
        assert seen < 500_000, "one look went on and on"


def test_one_look_reads_a_few_megabytes_at_the_most(log: Path) -> None:
    append(log, b"ab\n" * 6_000_000)
    lines = LogFollower(log).new_lines()
    assert next(islice(lines, 2_000_000, None), None) is None


def test_very_many_short_lines_are_not_all_in_memory(log: Path) -> None:
    append(log, b"line\n" * 100_000)
    lines = LogFollower(log).new_lines()
    before = sys.getallocatedblocks()
    assert next(lines) == "line"
    assert sys.getallocatedblocks() - before < 1000
    assert sum(1 for _ in lines) < 99_999, "of so many only the last of each stretch are given"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_of_very_many_lines_the_last_are_given(log: Path, end: str) -> None:
    follower = LogFollower(log)
    append(log, "".join(f"{number}/99999{end}" for number in range(50_000)).encode() + b"rest")
    lines = [line for line in follower.new_lines() if line]
    assert lines[-1] == "49999/99999"
    assert len(lines) < 5000
    assert follower.last_line() == "rest"


NOISE = b"2024/01/02 noise in /a/1/2/b.py, 3.5/7 of it\n"
"""A line with what looks like a count, and is none."""


@pytest.mark.parametrize(
    ("noise", "end"), [(NOISE, b"\n"), (b"\n", b"\r"), (b"ab\n", b"\r\n"), (b"x" * 5000 + b"\r\n", b"\x1b[0m\n")], ids=range(4)
)
def test_progress_before_much_noise_is_given(log: Path, noise: bytes, end: bytes) -> None:
    follower = LogFollower(log, words=[b"Running "])
    append(
        log,
        b"Running requests\n" + noise * 20 + b"\r 1/10" + end + b"\r\x1b[32m 2/10" + end + noise * (2_500_000 // len(noise)),
    )
    given = [line for line in follower.new_lines() if "/10" in line or "Running" in line]
    assert given == ["Running requests", " 1/10", " 2/10"]


def test_of_a_count_in_the_last_line_of_what_is_read_at_once_nothing_is_cut_off(log: Path) -> None:
    for more in range(24):
        follower = LogFollower(log)
        log.write_bytes(b"\n" * (4096 - 12 + more) + b"12345/67890\n" + b"\n" * 5000)
        assert [line for line in follower.new_lines() if line] == ["12345/67890"]


def test_what_a_look_leaves_out_is_joined_to_nothing(log: Path) -> None:
    follower = LogFollower(log)
    append(log, b"1")
    assert list(follower.new_lines()) == []
    append(log, b"x" * 34_000_000 + b"5/9 is the end of a line\n7/9\n8")
    assert list(follower.new_lines()) == ["7/9"]
    append(log, b"/9\n")
    assert list(follower.new_lines()) == ["8/9"]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_log_that_was_cut_short_or_replaced_is_read_from_its_beginning(log: Path, is_replaced: bool) -> None:
    follower = LogFollower(log)
    append(log, b"one\ntwo\nthr")
    assert list(follower.new_lines()) == ["one", "two"]
    if is_replaced:
        log.rename(log.with_name("other"))
        append(log, b"another log\nof more bytes\n")
    else:
        log.write_bytes(b"1\n2\n")
    assert list(follower.new_lines()) == (["another log", "of more bytes"] if is_replaced else ["1", "2"])


def test_a_log_that_was_cut_short_breaks_nothing(log: Path) -> None:
    follower = LogFollower(log)
    append(log, b"one\ntwo\n")
    assert list(follower.new_lines()) == ["one", "two"]
    log.write_bytes(b"")
    assert list(follower.new_lines()) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b[1;38;5;208mbold\x1b[m end  ", "bold end"),
        (b"\x1b[2K\x1b[1Aup", "up"),
        (b"\x1b]0;a title\x07named", "named"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ end", "link end"),
        (b"\x1b]0;never ended", "]0;never ended"),
        (b"a\tb", "a\tb"),
        (b"bell\x07 and null\x00", "bell and null"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xfe broken", "\ufffd\ufffd broken"),
        (b"", ""),
    ],
)
def test_a_line_is_plain_text(line: bytes, expected: str) -> None:
    assert plain(line) == expected


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_become_plain_text(data: bytes) -> None:
    text = plain(data)
    assert not any(ord(character) < 32 and character not in "\t\n" for character in text)
    text.encode()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=12))
def test_the_lines_do_not_depend_on_how_the_bytes_arrive(tmp_path: Path, chunks: list[bytes]) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    follower = LogFollower(log)
    seen: list[str] = []
    for chunk in chunks:
        append(log, chunk)
        seen += follower.new_lines()
    whole = LogFollower(log)
    assert seen == list(whole.new_lines())
    assert follower.last_line() == whole.last_line()


def test_the_tail_has_the_last_lines_oldest_first(log: Path) -> None:
    append(log, b"".join(b"line %d\n" % number for number in range(1000)))
    tail = read_tail(log)
    assert tail == [f"line {number}" for number in range(950, 1000)]
    assert len(tail) == MAX_TAIL_LINES == 50


def test_the_tail_has_no_empty_lines_and_no_colours(log: Path) -> None:
    append(log, b"\n\n  \n\x1b[31mred\x1b[0m\r\n\n\nend without newline")
    assert read_tail(log) == ["red", "end without newline"]


def test_the_tail_shows_the_last_state_of_a_progress_bar(log: Path) -> None:
    append(log, b"start\n" + b"".join(b"\r%3d%%" % number for number in range(101)) + b"\ndone\n")
    assert read_tail(log) == ["start", "100%", "done"]


@pytest.mark.parametrize("rest", range(4))
def test_the_tail_begins_with_a_whole_character(log: Path, rest: int) -> None:
    append(log, "😀".encode() * 100_000 + b"x" * rest + b"\nend")
    first, last = read_tail(log, max_bytes=512 * 1024)
    assert (set(first[: len(first) - rest]), last) == ({"😀"}, "end")


@pytest.mark.parametrize("noise", [b"\n", b"\0", b"\r\n", b" \n"], ids=repr)
def test_the_tail_passes_over_what_is_blank(log: Path, noise: bytes) -> None:
    append(log, b"before\n" + noise * 50_000 + b"\nafter" + noise * 1000)
    assert read_tail(log) == ["before", "after"]


@pytest.mark.parametrize("line", [b"x" * 1000, b"\xc3\xa9" * 500, b"\xff" * 400, b"x" * 30_000])
def test_the_tail_is_at_most_16_kib(log: Path, line: bytes) -> None:
    append(log, (line + b"\n") * 100)
    tail = read_tail(log)
    assert 0 < sum(len(text.encode()) for text in tail) <= MAX_TAIL_BYTES == 16 * 1024
    assert len(tail) <= MAX_TAIL_LINES
    assert tail[-1].endswith(plain(line)[-10:])


def test_the_tail_of_five_megabytes_without_a_newline_is_their_end(log: Path) -> None:
    append(log, b"x" * 5_000_000 + b"the end")
    (line,) = read_tail(log)
    assert line.endswith("the end")
    assert len(line) == MAX_TAIL_BYTES


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=3000))
def test_any_log_has_a_tail_within_its_limits(tmp_path: Path, data: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(data * 20)
    tail = read_tail(log)
    assert len(tail) <= MAX_TAIL_LINES
    assert sum(len(line.encode()) for line in tail) <= MAX_TAIL_BYTES
    assert all(line.strip() for line in tail)


def test_reading_lines_is_lazy_enough_to_stop_midway(log: Path) -> None:
    append(log, b"1\n2\n3\n")
    assert list(islice(LogFollower(log).new_lines(), 2)) == ["1", "2"]


@pytest.mark.parametrize("place", [100, 10**30])
def test_a_stretch_that_would_be_past_the_end_is_empty(log: Path, place: int) -> None:
    append(log, b"one\ntwo\n")
    assert read_tail(log, end=place) == ["one", "two"]
    assert read_tail(log, begin=place) == []
    follower = LogFollower(log)
    assert list(follower.new_lines(place)) == ["one", "two"]
    append(log, b"three\n")
    assert list(follower.new_lines(place)) == ["three"]


def test_what_is_followed_is_masked(log: Path) -> None:
    follower = LogFollower(log, Mask(["sk-123"]))
    append(log, b"with sk-1")
    assert list(follower.new_lines()) == []
    append(log, b"23\rof sk-123")
    assert list(follower.new_lines()) == ["with ******"]
    assert follower.last_line() == "of ******"


def test_the_end_of_a_log_is_masked_also_what_its_beginning_cuts_in_two(log: Path) -> None:
    append(log, b"x sk-123 y\nz\n")
    assert read_tail(log, begin=4, mask=Mask(["sk-123"])) == ["**** y", "z"]
    assert read_tail(log, end=5, mask=Mask(["sk-123", "x sk"])) == ["*****"]


def test_nothing_is_shown_of_a_log_that_can_not_be_masked(log: Path) -> None:
    append(log, b"sk-123\n")
    unknown = Mask(unreadable=["HF_TOKEN"])
    assert list(LogFollower(log, unknown).new_lines()) == [""]
    assert read_tail(log, mask=unknown) == [f"(the log is withheld: {unknown.problem})"]
