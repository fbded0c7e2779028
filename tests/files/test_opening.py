"""Files that a run left: a missing one counts as nothing, and an unreadable one is an error that says so."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from special_files import KINDS, put
from used_folders import opened_below

from evalrpc.errors import ArtifactNotFoundError, FileUnavailableError, FileUnreadableError, InvalidRequestError
from evalrpc.files import opening
from evalrpc.files.errnos import unreadable
from evalrpc.files.opening import MAX_NAME_BYTES, list_files, open_file, open_in, open_regular_file, scan_folder


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


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_says_what_is_in_the_place_of_a_file(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "log")
    with pytest.raises(OSError, match=f"it is {KINDS[kind]}, not a regular file"), open_regular_file(tmp_path / "log"):
        pass
    with pytest.raises(OSError, match=f"it is {KINDS[kind]}, not a regular file"), open_in(tmp_path, "log"):
        pass
    with pytest.raises(ArtifactNotFoundError, match=f"no file 'log': log: it is {KINDS[kind]}"), open_file(tmp_path, "log"):
        pass


@pytest.mark.parametrize("kind", [*KINDS, "file"])
def test_the_error_says_what_is_in_the_place_of_a_folder(tmp_path: Path, kind: str) -> None:
    for replaced in ("attempt-1", "attempt-1/output"):
        folder = tmp_path / replaced.replace("/", "-")
        (folder / replaced).parent.mkdir(parents=True)
        put(kind, folder / replaced)
        output = folder / "attempt-1" / "output"
        if kind == "folder":
            continue
        found = f"it is {KINDS.get(kind, 'a regular file')}, not a folder"
        with pytest.raises(OSError, match=found):
            list(list_files(output))
        with pytest.raises(OSError, match=found), scan_folder(output):
            pass
        with pytest.raises(OSError, match=found), open_in(output, "file"):
            pass
        with pytest.raises(FileUnreadableError, match=found), open_file(output, "file"):
            pass
        with pytest.raises(OSError, match=found), open_regular_file(output / "log"):
            pass


def test_what_is_not_there_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "gone" / "too"):
        with open_regular_file(path) as descriptor:
            assert descriptor is None
        with scan_folder(path) as entries:
            assert list(entries) == []
        with pytest.raises(FileNotFoundError), open_in(path, "file"):
            pass
        assert list(list_files(path)) == []
    (tmp_path / "name").touch()
    for name in ("gone", "name/below", "x" * 300):
        with pytest.raises(ArtifactNotFoundError), open_file(tmp_path, name):
            pass
    with pytest.raises(ArtifactNotFoundError), open_file(None, "name"):
        pass


@pytest.mark.parametrize("path", ["../file", "/etc/passwd", "a/../../file", ""])
def test_a_path_that_leads_out_of_the_folder_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="outside the run's folder"), open_in(tmp_path / "folder", path):
        pass


def test_the_operators_own_links_above_a_run_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "jobs" / "job" / "attempt-1" / "output"
    folder.mkdir(parents=True)
    (folder / "file").write_text("mine")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    output = tmp_path / "data" / "jobs" / "job" / "attempt-1" / "output"
    assert [file.name for file in list_files(output)] == ["file"]
    with open_in(output, output / "file") as file:
        assert file.read() == b"mine"
    with open_regular_file(output.parent / "output" / "file") as descriptor:
        assert descriptor is not None


@pytest.fixture
def open_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Make what has this name fail to open."""

    def set_up(name: str, number: int) -> None:
        open_, fail = os.open, failing(number)
        is_it = {name, f"{name}/"}.__contains__
        monkeypatch.setattr(
            opening.os, "open", lambda path, *args, **named: (fail if is_it(path) else open_)(path, *args, **named)
        )

    return set_up


def test_what_lies_in_a_folder_that_the_server_may_not_read_is_left_out(
    tmp_path: Path, open_fails: Callable[[str, int], None]
) -> None:
    make(tmp_path, "a", "below/file", "c")
    assert [file.name for file in list_files(tmp_path)] == ["a", "below/file", "c"]
    open_fails("below", errno.EACCES)
    assert [file.name for file in list_files(tmp_path)] == ["a", "c"]


def test_nor_is_what_lies_in_a_folder_of_which_the_server_may_read_only_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a", "below/file", "c")
    stat, forbid = os.stat, failing(errno.EACCES)
    monkeypatch.setattr(opening.os, "stat", lambda path, **named: (forbid if path == "file" else stat)(path, **named))
    assert [file.name for file in list_files(tmp_path)] == ["a", "c"]
    with pytest.raises(PermissionError):
        list(list_files(tmp_path / "below"))


@pytest.mark.parametrize(("name", "number"), [("below", errno.EMFILE), ("below", errno.EIO), ("output", errno.EACCES)])
def test_a_folder_that_can_not_be_read_is_an_error(
    tmp_path: Path, open_fails: Callable[[str, int], None], name: str, number: int
) -> None:
    make(tmp_path / "output", "below/file")
    open_fails(name, number)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        list(list_files(tmp_path / "output"))
    assert unreadable(caught.value).message.startswith(f"{name} can't be read: {os.strerror(number)}")


def test_a_folder_of_any_size_is_listed_in_order_with_few_names_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_MAX_NAMES", 7)
    monkeypatch.setattr(opening, "_MIN_NAMES", 2)
    names = sorted([f"{number:02}" for number in range(30)] + [f"{number:02}-x/{n}" for number in range(5) for n in range(9)])
    make(tmp_path, *names)
    assert [file.name for file in list_files(tmp_path)] == names
    for index, name in enumerate(names):
        assert [file.name for file in list_files(tmp_path, name)] == names[index + 1 :]


def test_a_listing_ends_where_its_check_says(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number:04}" for number in range(3000)))
    checks = iter([None, None, None])

    def check() -> None:
        next(checks)

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(list_files(tmp_path, check=check))


def test_a_folder_that_becomes_a_link_between_two_looks_leads_nowhere(tmp_path: Path) -> None:
    make(tmp_path / "output", "a/1", "b/c/2", "d/3")
    make(tmp_path / "outside", "c/secret", "secret")
    found = list_files(tmp_path / "output")
    assert next(found).name == "a/1"
    (tmp_path / "output" / "b").rename(tmp_path / "output" / "elsewhere")
    (tmp_path / "output" / "b").symlink_to(tmp_path / "outside")
    assert [file.name for file in found] == ["d/3"]
    with pytest.raises(ArtifactNotFoundError), open_file(tmp_path / "output", "b/secret"):
        pass
    with scan_folder(tmp_path / "output", "b/c") as entries:
        assert list(entries) == []


NAMES = ["a", "a.txt", "a/b", "a/b.c/d", "a/b/c", "a0", "b/x/y/z", "\u00e4", "\U0001f600/1"]


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

    def noted(descriptor: int) -> Iterator["os.DirEntry[str]"]:
        looked_into.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        return scandir(descriptor)

    monkeypatch.setattr(opening.os, "scandir", noted)
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


def test_folders_may_be_nested_deeper_than_a_function_may_call_itself_and_than_files_may_be_open(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    paths = [Path(f"{tmp_path}{'/d' * number}") for number in range(1, depth + 1)]
    for path in paths:
        path.mkdir()
    file = Path(f"{paths[-1]}/file")
    file.touch()
    found = list_files(tmp_path)
    try:
        assert next(found).name == "d/" * depth + "file"
        assert len(opened_below(tmp_path)) <= 1
        assert list(found) == []
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


def test_an_error_of_a_missing_file_refers_to_no_other(tmp_path: Path) -> None:
    """Else it would be garbage only the collector finds, with all that its frames have."""
    with pytest.raises(FileNotFoundError) as caught, open_in(tmp_path, "missing"):
        pass
    assert caught.value.__cause__ is None
