"""Files that a run left: a missing one counts as nothing, and an unreadable one is an error that says so."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from evalrpc.errors import ArtifactNotFoundError, FileUnavailableError, FileUnreadableError, InvalidRequestError
from evalrpc.files import opening
from evalrpc.files.errnos import unreadable
from evalrpc.files.opening import list_files, open_file, open_regular_file


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
    assert list_files(tmp_path / "gone") == []
    assert [file.name for file in list_files(tmp_path)] == ["below/file"]
    scandir = os.scandir
    fail = failing(errno.EACCES)
    monkeypatch.setattr(opening.os, "scandir", lambda path: fail(path) if Path(path).name == "below" else scandir(path))
    with pytest.raises(PermissionError) as caught:
        list_files(tmp_path)
    assert unreadable(caught.value).message.startswith("below can't be read: Permission denied (EACCES)")


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


@pytest.mark.parametrize("name", ["a\x00", "\x00", "a\x00zz", "a\x00FF", "\x002e\x002e/x", "a\x002fb"])
def test_nul_is_only_taken_before_a_byte_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError), open_file(tmp_path, name):
        pass
