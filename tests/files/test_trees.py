"""Folders are measured and removed whatever a run has put into them, and nothing outside of them is touched."""

import ctypes
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deep_folders import make_folders_below
from small_disk import small_disk
from used_folders import opened_below

from evalrpc.files.trees import Remains, disk_bytes, remove_tree

NOBODY = 65534
MIB = 1024 * 1024


def make_deep(folder: Path, depth: int) -> None:
    """Make a folder with so many below one another, and a file in the last."""
    folder.mkdir()
    deepest = make_folders_below(folder, depth)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=deepest))
    os.close(deepest)


def make_odd(folder: Path, outside: Path) -> None:
    """Make a folder with all that is no plain file or folder, and names of every kind."""
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "sub" / "link").symlink_to(outside, target_is_directory=True)
    (folder / "broken").symlink_to("/nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        there = os.open(folder, os.O_PATH)
        server.bind(f"/proc/self/fd/{there}/socket")
        os.close(there)
    odd = folder / os.fsdecode(b"\xff\xfe")
    odd.mkdir()
    (odd / os.fsdecode(b"\x80")).touch()
    (folder / "a\nb\x1b[0m").touch()
    (folder / ("n" * 255)).touch()


@pytest.mark.parametrize("depth", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_deep_folder_is_measured_and_removed(tmp_path: Path, depth: int) -> None:
    folder = tmp_path / "deep"
    make_deep(folder, depth)
    assert disk_bytes(folder) == (depth + 1) * folder.stat().st_blocks * 512
    assert remove_tree(folder) is None
    assert not folder.exists()


def test_a_wide_folder_is_measured_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "file").write_bytes(bytes(MIB))
    there = os.open(folder, os.O_RDONLY)
    for number in range(20_000):
        os.close(os.open(f"file-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=there))
    os.close(there)
    assert MIB <= disk_bytes(folder) < 4 * MIB
    assert remove_tree(folder) is None
    assert not folder.exists()


def test_no_link_is_followed_and_nothing_is_waited_for(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(bytes(MIB))
    folder = tmp_path / "odd"
    make_odd(folder, outside)
    assert disk_bytes(folder) < MIB
    assert remove_tree(folder) is None
    assert not folder.exists()
    assert (outside / "kept").stat().st_size == MIB


def test_a_link_or_a_file_in_the_place_of_the_folder_is_removed_itself(tmp_path: Path) -> None:
    outside, link, file = tmp_path / "outside", tmp_path / "link", tmp_path / "file"
    outside.mkdir()
    (outside / "kept").write_bytes(bytes(MIB))
    link.symlink_to(outside)
    file.touch()
    assert disk_bytes(link) == 0
    assert (remove_tree(link), remove_tree(file)) == (None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").exists()


def test_what_does_not_exist_is_removed_already_and_occupies_nothing(tmp_path: Path) -> None:
    assert disk_bytes(tmp_path / "nothing") == 0
    assert remove_tree(tmp_path / "nothing") is None
    assert remove_tree(tmp_path / "nothing" / "below") is None


def test_a_sparse_file_counts_what_it_occupies_and_one_with_two_names_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    empty = disk_bytes(folder)
    with (folder / "sparse").open("wb") as file:
        file.truncate(4 * 1024**4)
    assert disk_bytes(folder) - empty < MIB
    (folder / "one").write_bytes(os.urandom(MIB))
    os.link(folder / "one", folder / "two")
    assert MIB <= disk_bytes(folder) - empty < 2 * MIB


def test_a_measuring_ends_when_it_has_enough_or_is_to_stop(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(bytes(8192))
    whole = disk_bytes(tmp_path)
    assert 10_000 < disk_bytes(tmp_path, enough=10_000) < 100_000 < whole
    assert disk_bytes(tmp_path, should_stop=lambda: True) < whole


def test_a_removal_that_is_broken_off_leaves_the_rest_and_can_be_taken_up(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 10)
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return len(calls) > 5

    remains = remove_tree(tmp_path / "deep", should_stop)
    assert remains is not None
    assert "broken off" in remains.problem
    assert (tmp_path / "deep").exists()
    assert remove_tree(tmp_path / "deep") is None


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that another account can reach, too."""
    if os.geteuid():
        pytest.skip("only root can be another account for a while")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(do: Callable[[], Remains | int | None], monkeypatch: pytest.MonkeyPatch) -> Remains | int | None:
    """Do something with the rights that another account has: a thread can have others than its process."""
    outcomes = []

    def run() -> None:
        ctypes.CDLL(None).setfsuid(NOBODY)
        outcomes.append(do())

    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: NOBODY)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    return outcomes[0]


def test_folders_without_rights_are_removed_where_they_are_ours(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = shared_folder / "top"
    for name in ("a/b", "c/d", "e"):
        (top / name).mkdir(parents=True)
        (top / name / "file").write_bytes(bytes(8192))
    for path in (top, *top.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for name, mode in {"a/b": 0o000, "a": 0o400, "c/d": 0o500, "c": 0o100, "e": 0o600}.items():
        (top / name).chmod(mode)
    measured = as_nobody(lambda: disk_bytes(top), monkeypatch)
    assert isinstance(measured, int)
    assert 0 < measured < disk_bytes(top)
    assert as_nobody(lambda: remove_tree(top), monkeypatch) is None
    assert not top.exists()


def test_what_can_not_be_removed_is_said_and_keeps_nothing_else(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = shared_folder / "top"
    for name in ("a", "foreign", "z/below"):
        (top / name).mkdir(parents=True)
        (top / name / "file").touch()
    for path in (top, *top.rglob("*")):
        if "foreign" not in path.parts:
            os.chown(path, NOBODY, NOBODY)
    remains = as_nobody(lambda: remove_tree(top), monkeypatch)
    assert remains == Remains(1, "file: Permission denied")
    assert sorted(path.name for path in top.rglob("*")) == ["file", "foreign"]
    mode = stat.S_IMODE((top / "foreign").stat().st_mode)
    assert mode == 0o755, "the rights of others' folders stay as they are"
    assert remove_tree(top) is None


def test_a_folder_in_use_is_said_and_removed_later(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").touch()
    with small_disk(tmp_path / "top" / "mounted", "1m") as mounted:
        (mounted / "file").touch()
        assert remove_tree(tmp_path / "top") == Remains(1, "mounted: something else is mounted there")
        assert [path.name for path in (tmp_path / "top").iterdir()] == ["mounted"]
    assert remove_tree(tmp_path / "top") is None


def test_no_folder_is_left_open(tmp_path: Path) -> None:
    make_odd(tmp_path / "odd", tmp_path)
    make_deep(tmp_path / "deep", 50)
    for folder in ("odd", "deep", "nothing"):
        disk_bytes(tmp_path / folder)
        disk_bytes(tmp_path / folder, enough=1)
        remove_tree(tmp_path / folder, lambda: True)
        remove_tree(tmp_path / folder)
    assert opened_below(tmp_path) == []


@contextmanager
def moved_on_the_way(monkeypatch: pytest.MonkeyPatch, folder: Path, target: Path) -> Iterator[None]:
    """Move a folder elsewhere as soon as somebody has entered it."""
    scandir = os.scandir

    def scan(descriptor: int) -> "os._ScandirIterator[str]":
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            folder.rename(target)
        return scandir(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scan)
        yield


def test_a_folder_that_is_moved_meanwhile_leads_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    for name in ("a", "b", "c"):
        (tmp_path / "top" / name).mkdir(parents=True)
        (tmp_path / "top" / name / "file").touch()
    with moved_on_the_way(monkeypatch, tmp_path / "top" / "b", outside / "b"):
        remains = remove_tree(tmp_path / "top")
    assert remains is not None
    assert "moved" in remains.problem
    assert (outside / "kept").exists()
    assert remove_tree(tmp_path / "top") is None
    assert (outside / "kept").exists()


def test_what_a_run_has_mounted_is_neither_emptied_nor_measured(tmp_path: Path) -> None:
    """Also where it lies on the same disk, as a folder of somebody else does."""
    folder, other = tmp_path / "run", tmp_path / "other"
    (folder / "below" / "mounted").mkdir(parents=True)
    (folder / "file").touch()
    other.mkdir()
    (other / "kept").write_bytes(bytes(MIB))
    with small_disk(folder / "disk", "1m") as disk:
        (disk / "kept").touch()
        subprocess.run(("mount", "--bind", other, folder / "below" / "mounted"), check=True)
        try:
            assert disk_bytes(folder) < MIB
            remains = remove_tree(folder)
        finally:
            subprocess.run(("umount", folder / "below" / "mounted"), check=True)
        assert (disk / "kept").exists()
    assert (other / "kept").exists()
    assert remains is not None
    assert remains.problem.endswith("something else is mounted there")
    assert not (folder / "file").exists()
    assert remove_tree(folder) is None
