"""The parts of a download that need no server: where a file may go, what is resumed, what becomes of the rest."""

import hashlib
import os
from pathlib import Path

import pytest

from evalrpc import errors
from evalrpc.client import download
from evalrpc.client.download import Download, DownloadError, PartialFile, is_complete, select, target_path
from evalrpc.errors import EvalrpcError
from evalrpc.v1.files_pb2 import Artifact


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\0b", "link/x"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)

    with pytest.raises(errors.InvalidRequestError):
        target_path(folder, name)


def artifact(data: bytes, name: str = "model/results.json") -> Artifact:
    return Artifact(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with PartialFile(tmp_path, artifact(b"abcd")) as part:
        part.write(b"abcd")
        assert not part.path.exists()
        assert part.finish().read_bytes() == b"abcd"
    assert is_complete(tmp_path, artifact(b"abcd"))
    assert not is_complete(tmp_path, artifact(b"abce"))
    assert [path.name for path in part.path.parent.iterdir()] == ["results.json"]


def test_a_broken_download_goes_on(tmp_path: Path) -> None:
    with PartialFile(tmp_path, artifact(b"abcd")) as part:
        part.write(b"ab")
    with PartialFile(tmp_path, artifact(b"abcd")) as part:
        assert part.offset == 2
        part.write(b"cd")
        assert part.finish().read_bytes() == b"abcd"


def test_a_broken_download_of_another_file_is_left_alone(tmp_path: Path) -> None:
    with PartialFile(tmp_path, artifact(b"abcd")) as part:
        part.write(b"ab")
    with PartialFile(tmp_path, artifact(b"xyz")) as part:
        assert part.offset == 0


def test_wrong_bytes_are_refused_and_removed(tmp_path: Path) -> None:
    with PartialFile(tmp_path, artifact(b"abcd")) as part:
        part.write(b"abXX")
        with pytest.raises(EvalrpcError, match="checksum"):
            part.finish()
    assert list(part.path.parent.iterdir()) == []


def test_a_file_without_checksum_begins_anew_each_time(tmp_path: Path) -> None:
    growing = Artifact(name="log.txt", size_bytes=2)
    with PartialFile(tmp_path, growing) as part:
        part.write(b"ab")
    with PartialFile(tmp_path, growing) as part:
        assert part.offset == 0
        part.write(b"abc")
        assert part.finish().read_bytes() == b"abc"
    assert not is_complete(tmp_path, growing)


def test_a_name_that_the_job_does_not_have_is_an_error() -> None:
    listed = [artifact(b"", "a"), artifact(b"", "b")]

    assert select(listed, ["b"]) == listed[1:]
    assert select(listed, None) == listed
    with pytest.raises(errors.ArtifactNotFoundError, match="; it has: "):
        select(listed, ["c"])


@pytest.mark.parametrize("name", ["a\\..\\x", "C:x", "what?", "a:stream"])
def test_a_name_that_windows_reads_as_something_else_is_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert target_path(tmp_path, name) == tmp_path / name
    monkeypatch.setattr(download, "_NOT_IN_NAMES", frozenset('\0<>:"|?*\\'))

    with pytest.raises(errors.InvalidRequestError, match="which no file's name can have here"):
        target_path(tmp_path, name)


@pytest.mark.parametrize("name", ["字" * 80, "x" * 255, "é" * 127])
def test_the_temporary_name_fits_however_long_the_name_is(tmp_path: Path, name: str) -> None:
    with PartialFile(tmp_path, artifact(b"abcd", name)) as part:
        part.write(b"ab")
    (left,) = tmp_path.iterdir()
    assert len(left.name) < 100

    with PartialFile(tmp_path, artifact(b"abcd", name)) as part:
        assert part.offset == 2
        part.write(b"cd")
        assert part.finish() == tmp_path / name


def test_files_of_the_same_bytes_have_temporary_names_of_their_own(tmp_path: Path) -> None:
    with PartialFile(tmp_path, artifact(b"abcd", "a")) as one, PartialFile(tmp_path, artifact(b"abcd", "b")) as other:
        one.write(b"abcd")
        other.write(b"abcd")
        assert (one.finish().name, other.finish().name) == ("a", "b")


def test_a_file_never_replaces_another_whose_name_the_disk_takes_for_the_same(tmp_path: Path) -> None:
    found = Download(tmp_path)
    (tmp_path / "Results.json").write_bytes(b"one")
    found.add(artifact(b"one", "Results.json"), tmp_path / "Results.json")
    os.link(tmp_path / "Results.json", tmp_path / "results.json")  # as on a disk that ignores case

    with pytest.raises(errors.InvalidRequestError, match=r"'results\.json' is the name of 'Results\.json' on this disk, too"):
        found.require_own_place(artifact(b"two", "results.json"))


def test_a_file_of_an_earlier_download_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    Download(tmp_path).require_own_place(artifact(b"new", "a"))


def test_an_error_names_some_of_many_missing_files_and_has_them_all(tmp_path: Path) -> None:
    found = Download(tmp_path)
    for number in range(9):
        found.add_failure(artifact(b"", f"file\n{number}"), EvalrpcError("no luck"))

    with pytest.raises(DownloadError) as caught:
        found.finish()
    assert len(caught.value.errors) == 9
    assert caught.value.message.startswith("9 of 9 files are missing: 'file\\n0': no luck; ")
    assert caught.value.message.endswith("'file\\n4': no luck; ...")
