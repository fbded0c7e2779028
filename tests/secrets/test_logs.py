"""The log of a run with secrets: masked while it grows, overwritten once the run has ended."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalrpc.secrets import logs
from evalrpc.secrets.logs import mask_of_log, overwrite_values, read_masked
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.secrets.registry import Secrets
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo

MASK = Mask(["sk-abc123", "abcd", "cdef"])
JOB = JobInfo(request=EvaluateRequest(secrets=["A"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "attempt-1").mkdir()
    return tmp_path / "attempt-1"


def read(path: Path, offset: int, size_bytes: int, mask: Mask = MASK, *, is_growing: bool = False) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_masked(descriptor, offset, size_bytes, mask, is_growing=is_growing)
    finally:
        os.close(descriptor)


def test_a_value_is_masked_at_every_offset_and_size_of_a_chunk(folder: Path) -> None:
    data = b"key sk-abc123 abcdef sk-abc123sk-abc123 end"
    expected = MASK.data(data)
    (folder / "log").write_bytes(data)
    for offset in range(len(data) + 1):
        for size_bytes in range(1, len(data) + 2):
            assert read(folder / "log", offset, size_bytes) == expected[offset : offset + size_bytes]


@settings(deadline=None)
@given(st.lists(st.text("sk-abc123def ", max_size=12), max_size=8), st.integers(1, 20))
def test_what_is_followed_is_masked_however_it_is_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, writes: list[str], size_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.touch()
    received = b""
    for text in writes:
        with path.open("a") as log:
            log.write(text)
        while data := read(path, len(received), size_bytes, is_growing=True):
            received += data
    while data := read(path, len(received), size_bytes):
        received += data
    assert received == MASK.data("".join(writes).encode())


def test_the_beginning_of_a_value_is_held_back_until_it_is_known_how_it_goes_on(folder: Path) -> None:
    (folder / "log").write_bytes(b"key sk-ab")
    assert read(folder / "log", 0, 100, is_growing=True) == b"key "
    assert read(folder / "log", 0, 100) == b"key sk-ab"


@pytest.mark.parametrize("chunk_bytes", [1, 3, 7, 1024])
def test_once_a_run_has_ended_the_values_are_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(logs, "_CHUNK_BYTES", chunk_bytes)
    data = b"key sk-abc123 abcdef sk-abc123sk-abc123 \xff\0 abcdefabcd end sk-ab"
    (folder / "log").write_bytes(data)
    overwrite_values(folder, MASK)
    assert (folder / "log").read_bytes() == MASK.data(data)


def test_values_that_overlap_are_overwritten_wherever_a_chunk_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Mask(["abcd", "defg", "ghij"])
    for chunk_bytes in range(1, 12):
        monkeypatch.setattr(logs, "_CHUNK_BYTES", chunk_bytes)
        (folder / "log").write_bytes(b"-abcdefghij-")
        overwrite_values(folder, mask)
        assert (folder / "log").read_bytes() == b"-**********-"


def test_a_large_hole_is_not_read(folder: Path) -> None:
    with (folder / "log").open("wb") as log:
        log.write(b"sk-abc123")
        log.truncate(2**42)
        log.seek(0, os.SEEK_END)
        log.write(b"sk-abc123")
    overwrite_values(folder, MASK)
    assert read(folder / "log", 0, 9, NO_MASK) == read(folder / "log", 2**42, 9, NO_MASK) == b"*********"


def test_the_values_are_needed_no_more_after_that(folder: Path) -> None:
    unknown = Secrets()
    (folder / "log").write_bytes(b"sk-abc123")
    assert mask_of_log(unknown, JOB, folder).unreadable == ("A",)
    overwrite_values(folder, MASK)
    assert mask_of_log(unknown, JOB, folder) is NO_MASK
    assert mask_of_log(unknown, JobInfo(), folder) is NO_MASK


def test_without_a_log_there_is_nothing_to_overwrite(folder: Path) -> None:
    overwrite_values(folder, MASK)
    assert mask_of_log(Secrets(), JOB, folder) is NO_MASK


def test_a_log_is_not_taken_for_masked_if_a_value_is_not_known(folder: Path) -> None:
    (folder / "log").write_bytes(b"sk-abc123")
    overwrite_values(folder, Mask(["sk-abc123"], ["A"]))
    assert mask_of_log(Secrets(), JOB, folder).unreadable == ("A",)


def test_nor_if_it_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_OVERWRITTEN_BYTES", 8)
    (folder / "log").write_bytes(b"sk-abc123")
    overwrite_values(folder, MASK)
    assert (folder / "log").read_bytes() == b"sk-abc123"
    assert mask_of_log(Secrets(), JOB, folder).unreadable == ("A",)


def test_a_file_of_others_that_a_run_has_put_in_the_place_of_its_log_is_not_touched(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"sk-abc123")
    for link in (os.link, os.symlink):
        (folder / "log").unlink(missing_ok=True)
        link(other, folder / "log")
        with pytest.raises(OSError, match=r"other names|symbolic link"):
            overwrite_values(folder, MASK)
    assert other.read_bytes() == b"sk-abc123"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("abc", min_size=4, max_size=7), max_size=4), st.text("abc ", max_size=60), st.integers(1, 9))
def test_what_is_overwritten_is_what_is_masked(folder: Path, values: list[str], text: str, chunk_bytes: int) -> None:
    mask = Mask(values)
    (folder / "log").write_text(text)
    with patch.object(logs, "_CHUNK_BYTES", chunk_bytes):
        overwrite_values(folder, mask)
    assert (folder / "log").read_bytes() == mask.data(text.encode())
