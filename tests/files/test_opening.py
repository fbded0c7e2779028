"""Files that a run left: a missing one counts as nothing, and an unreadable one is an error that says so."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from evalrpc.errors import ArtifactNotFoundError, FileUnavailableError, FileUnreadableError, InvalidRequestError
from evalrpc.files import opening
from evalrpc.files.errnos import unreadable
from evalrpc.files.opening import MAX_NAME_BYTES, list_files, open_file, open_regular_file


def failing(number: int) -> Any:
    def fail(path: Any, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), os.fspath(path))

    return fail


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_what_may_pass_is_reported_as_such_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(opening.os, "open", failing(number))
    with pytest.raises(FileUnavailableError) as caught, open_file(tmp_path, "log"):
        pass
    assert caught.value.metadata == {"errno": errno.errorcode[number]}
    assert caught.value.retry_delay_seconds
    assert os.strerror(number) in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_the_server_may_not_read_is_there_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(opening.os, "open", failing(number))
    with pytest.raises(FileUnreadableError, match="the server's account needs access") as caught, open_file(tmp_path, "log"):
        pass
    assert caught.value.metadata == {"errno": errno.errorcode[number]}


@pytest.mark.parametrize("kind", ["gone", "link", "fifo", "folder", "below a file"])
def test_what_is_no_regular_file_is_not_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "name"
    name = "name"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "below a file":
        path.touch()
        name = "name/below"
    with pytest.raises(ArtifactNotFoundError), open_file(tmp_path, name):
        pass
    with open_regular_file(tmp_path / name) as descriptor:
        assert descriptor is None


def test_a_folder_that_is_not_there_has_no_files_and_one_that_can_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").touch()
    assert list(list_files(tmp_path / "gone")) == []
    assert [file.name for file in list_files(tmp_path)] == ["below/file"]
    scandir = os.scandir
    fail = failing(errno.EACCES)
    monkeypatch.setattr(opening.os, "scandir", lambda path: fail(path) if Path(path).name == "below" else scandir(path))
    with pytest.raises(PermissionError) as caught:
        list(list_files(tmp_path))
    assert unreadable(caught.value).message.startswith("below can't be read: Permission denied (EACCES)")


NAMES = ["a", "a.txt", "a/b", "a/b.c/d", "a/b/c", "a0", "b/x/y/z", "ä", "😀/1"]


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_come_sorted_by_name_from_any_name_on(tmp_path: Path) -> None:
    names = [name for name in NAMES if name not in ("a", "a/b")]  # which are folders here
    make(tmp_path, *names)
    names.sort()
    for after in ["", *names, *NAMES, "a/", "a/b/", "b", "zz", "\U0010ffff"]:
        expected = [name for name in names if name > after]
        assert [file.name for file in list_files(tmp_path, after)] == expected, after


def test_only_folders_with_later_files_are_looked_into_and_only_files_that_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"{folder}/{number}" for folder in "abcd" for number in range(3)))
    looked_into: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(opening.os, "scandir", lambda path: looked_into.append(Path(path).name) or scandir(path))
    found = list_files(tmp_path, "b/1")
    assert [next(found).name for _ in range(2)] == ["b/2", "c/0"]
    assert looked_into == [tmp_path.name, "b", "c"]


def test_a_name_that_is_too_long_is_left_out_and_hides_no_other(tmp_path: Path) -> None:
    make(tmp_path, "a", "z")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # a program that goes down step by step can have paths longer than any that can be opened
        os.mkdir("d" * 250, dir_fd=folder)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(os.open("file", os.O_CREAT, dir_fd=below))
        os.close(folder)
        folder = below
    os.close(folder)
    names = [file.name for file in list_files(tmp_path)]
    assert names == sorted(names)
    assert {"a", "z", "d" * 250 + "/file"} <= set(names)
    assert all(len(name) <= MAX_NAME_BYTES for name in names)


def test_folders_may_be_nested_deeper_than_a_function_may_call_itself(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    paths = [Path(f"{tmp_path}{'/d' * number}") for number in range(1, depth + 1)]
    for path in paths:
        path.mkdir()
    file = Path(f"{paths[-1]}/file")
    file.touch()
    try:
        assert [file.name for file in list_files(tmp_path)] == ["d/" * depth + "file"]
    finally:
        file.unlink()
        for path in reversed(paths):  # pytest would call itself too often
            path.rmdir()


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is() -> None:
    error = OSError(errno.EIO, "Input/output error", b"/data/caf\xe9")
    assert unreadable(error).message.startswith("caf\\udce9 can't be read")


@pytest.mark.parametrize(
    ("on_disk", "listed"),
    [
        (b"caf\xe9", "caf\x00e9"),
        (b"\xff\xfe/\x80", "\x00ff\x00fe/\x0080"),
        ("größe/字".encode(), "größe/字"),
        (b"a\\b", "a\\b"),
        (b"%ff", "%ff"),
    ],
)
def test_a_name_of_any_bytes_is_listed_and_opened_by_what_is_listed(tmp_path: Path, on_disk: bytes, listed: str) -> None:
    path = tmp_path / os.fsdecode(on_disk)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"data")

    (found,) = list_files(tmp_path)

    assert found.name == listed
    with open_file(tmp_path, found.name) as descriptor:
        assert os.read(descriptor, 10) == b"data"


def test_names_that_are_not_utf8_come_in_pages_and_count_as_they_are_listed(tmp_path: Path) -> None:
    bad, listed = os.fsdecode(b"\xff"), "\x00ff"
    fits = (MAX_NAME_BYTES - len(f"{listed * 250}/") * 5) // len(listed)
    below = tmp_path.joinpath(*[bad * 250] * 5)
    below.mkdir(parents=True)
    make(tmp_path, *(f"{os.fsdecode(bytes([number]))}/file" for number in (0x80, 0xC3)))
    make(below, bad * fits, bad * (fits + 1), bad * (fits + 100))
    names = [file.name for file in list_files(tmp_path)]
    assert names == ["\x0080/file", "\x00c3/file", f"{listed * 250}/" * 5 + listed * fits]
    for index, name in enumerate(names):
        assert [file.name for file in list_files(tmp_path, name)] == names[index + 1 :]


@pytest.mark.parametrize("name", ["a\x00", "\x00", "a\x00zz", "a\x00FF", "\x002e\x002e/x", "a\x002fb"])
def test_nul_is_only_taken_before_a_byte_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError), open_file(tmp_path, name):
        pass
