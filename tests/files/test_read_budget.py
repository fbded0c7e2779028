"""What one call may read: bytes, seconds, bytes of a row, and nothing once its caller has gone."""

import io
import os
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from clocks import ManualClock

from evalrpc.errors import ReadLimitError
from evalrpc.files.read_budget import UNLIMITED, ReadBudget, ReadLimits, open_within

KIB = 1024


def test_more_bytes_than_the_limit_are_refused_with_it() -> None:
    budget = ReadBudget(ReadLimits(10, 1.0), ManualClock())
    budget.spend(4)
    budget.spend(6)
    with pytest.raises(ReadLimitError, match="more than 10 bytes") as caught:
        budget.spend(1)
    assert caught.value.metadata == {"limit_bytes": "10"}


def test_a_reading_that_takes_too_long_is_refused_with_the_limit() -> None:
    clock = ManualClock()
    budget = ReadBudget(ReadLimits(10, 2.5), clock)
    clock.seconds = 2.5
    budget.spend()
    clock.seconds = 2.6
    with pytest.raises(ReadLimitError, match=r"longer than 2\.5 seconds") as caught:
        budget.spend()
    assert caught.value.metadata == {"limit_seconds": "2.5"}


def test_each_row_may_be_as_large_as_the_limit() -> None:
    budget = ReadBudget(ReadLimits(1000, 1.0, max_row_bytes=10), ManualClock())
    for _ in range(3):
        budget.spend(10)
        budget.begin_row()
    budget.spend(9)
    with pytest.raises(ReadLimitError, match="more than 10 bytes for one row"):
        budget.spend(2)


def test_nothing_is_read_once_the_caller_has_gone() -> None:
    budget = ReadBudget(UNLIMITED)
    budget.spend(10**12)
    budget.stop()
    with pytest.raises(CancelledError):
        budget.spend()


def test_a_file_that_is_too_large_is_refused_before_it_is_read_and_said_to_be_for_want_of_room() -> None:
    budget = ReadBudget(ReadLimits(10, 1.0), ManualClock())
    budget.spend(4)
    budget.require_room_for(6)
    assert not budget.is_spent
    with pytest.raises(ReadLimitError, match="more than 10 bytes"):
        budget.require_room_for(7)
    assert budget.is_spent


def test_what_can_be_known_before_is_known() -> None:
    clock = ManualClock()
    budget = ReadBudget(ReadLimits(10, 1.0), clock)
    budget.spend(4)
    assert [budget.has_room_for(size) for size in (6, 7)] == [True, False]
    clock.seconds = 2.0
    assert not budget.has_room_for(1)


def test_a_file_within_a_budget_reads_as_any_file_does(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % number for number in range(100_000))
    (tmp_path / "file").write_bytes(data)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    with open_within(ReadBudget(UNLIMITED), descriptor) as file:
        assert file.readline() == b"0\n"
        assert file.tell() == 2
        assert file.seek(-6, os.SEEK_END) == len(data) - 6
        assert file.read() == data[-6:]
        file.seek(10)
        assert file.read(5) == data[10:15]
        assert file.seek(3, os.SEEK_CUR) == 18
        assert file.read() == data[18:]
        file.seek(0)
        assert io.TextIOWrapper(file).read() == data.decode()
    assert os.fstat(descriptor).st_size == len(data), "it stays open"
    os.close(descriptor)


@pytest.mark.parametrize("how", ["read", "readline"])
def test_every_byte_of_a_file_counts(tmp_path: Path, how: str) -> None:
    with (tmp_path / "file").open("wb") as sparse:
        sparse.truncate(1 << 40)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    with open_within(ReadBudget(ReadLimits(1 << 20, 3600)), descriptor) as file:
        with pytest.raises(ReadLimitError):
            getattr(file, how)()
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    os.close(descriptor)


WRITTEN = UNLIMITED._replace(max_hole_bytes=KIB * KIB)


def sparse(path: Path, *pieces: tuple[int, bytes], size_bytes: int) -> Path:
    """A file with something written at these offsets, and holes otherwise."""
    with path.open("wb") as file:
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)
        file.truncate(size_bytes)
    return path


@pytest.mark.parametrize(
    "pieces",
    [[], [(0, b"{}\n")], [(2**42 - 3, b"{}\n")], [(number * 128 * KIB, b"{}\n") for number in range(20)]],
    ids=["nothing", "begin", "end", "pieces"],
)
def test_a_file_that_was_hardly_written_is_refused_at_once(pieces: list[tuple[int, bytes]], tmp_path: Path) -> None:
    budget = ReadBudget(WRITTEN)
    says = pytest.raises(ReadLimitError, match=r"the file has 4398046511104 bytes, .* never written: it is sparse")
    path = sparse(tmp_path / "s", *pieces, size_bytes=2**42)
    with path.open("rb") as file, says, open_within(budget, file.fileno()):
        pass
    assert budget.has_room_for(WRITTEN.max_bytes), "nothing was read"


@pytest.mark.parametrize("size_bytes", [0, 5, 3_000_000])
def test_any_other_file_is_read_from_its_begin(size_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * size_bytes)
    with path.open("rb") as file, open_within(ReadBudget(WRITTEN), file.fileno()) as read:
        assert len(read.read()) == size_bytes


def test_small_holes_are_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "s", (64 * KIB, b"x"), size_bytes=KIB * KIB)
    with path.open("rb") as file, open_within(ReadBudget(WRITTEN), file.fileno()) as read:
        assert read.read().strip(b"\0") == b"x"
