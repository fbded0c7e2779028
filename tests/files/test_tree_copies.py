"""Folders are copied whatever a run has put into them, with nothing from outside of them, and nothing of them is changed."""

import errno
import os
import stat
from pathlib import Path

import pytest
from small_disk import small_disk
from test_trees import make_deep, make_odd

from evalrpc.files import tree_copies
from evalrpc.files.tree_copies import copy_tree
from evalrpc.files.trees import disk_bytes, remove_tree

MIB = 1024 * 1024


def described(folder: Path) -> dict[bytes, bytes | str]:
    """Return what is in a folder, by path: the contents of a file, and else what it is."""
    found: dict[bytes, bytes | str] = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder))
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[name] = path.read_bytes()
        elif stat.S_ISLNK(mode):
            found[name] = f"-> {path.readlink()}"
        elif stat.S_ISDIR(mode):
            found[name] = "folder"
    return found


@pytest.mark.parametrize("link", [False, True])
def test_a_copy_has_files_folders_and_links_and_nothing_from_outside(tmp_path: Path, link: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    make_odd(tmp_path / "odd", outside)
    (tmp_path / "odd" / "sub" / "file").write_bytes(b"text" * MIB)
    before = described(tmp_path / "odd")
    assert copy_tree(tmp_path / "odd", tmp_path / "copy", link=link) == []
    assert described(tmp_path / "copy") == before == described(tmp_path / "odd")
    assert (tmp_path / "copy" / "sub" / "link").is_symlink()
    assert not (tmp_path / "copy" / "fifo").exists()
    same = (tmp_path / "copy" / "sub" / "file").samefile(tmp_path / "odd" / "sub" / "file")
    assert same == link


def test_a_deep_folder_is_copied(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 1000)
    assert copy_tree(tmp_path / "deep", tmp_path / "copy", link=False) == []
    sizes = [disk_bytes(tmp_path / name) for name in ("deep", "copy")]
    for name in ("deep", "copy"):  # too deep for others
        assert remove_tree(tmp_path / name) is None
    assert sizes[0] == sizes[1] > 1000 * 512


def test_a_sparse_file_of_terabytes_takes_no_space_and_keeps_its_data_and_its_time(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(2 * 1024**4)
        file.write(b"middle")
        file.truncate(4 * 1024**4)
    os.utime(source / "sparse", ns=(1, 1_000_000_001))
    copy_tree(source, tmp_path / "copy", link=False)
    status = (tmp_path / "copy" / "sparse").stat()
    assert (status.st_size, status.st_mtime_ns) == (4 * 1024**4, 1_000_000_001)
    assert status.st_blocks < 1000
    with (tmp_path / "copy" / "sparse").open("rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(2 * 1024**4)
        assert file.read(7) == b"middle\0"


def test_where_no_links_can_be_made_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("text")
    with small_disk(tmp_path / "disk", "1m") as disk:
        assert copy_tree(tmp_path / "source", disk / "copy", link=True) == []
        assert (disk / "copy" / "file").read_text() == "text"


def test_a_full_disk_is_an_error_and_no_gap(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(bytes(range(256)) * 8192)
    with small_disk(tmp_path / "disk", "1m") as disk, pytest.raises(OSError, match="No space left"):
        copy_tree(tmp_path / "source", disk / "copy", link=False)


def test_what_can_not_be_read_is_said_and_the_rest_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    (source / "closed").mkdir(parents=True)
    for name in ("a", "b\n", "closed/c", "d"):
        (source / name).write_text(name)
    real = os.open

    def refusing(path: str, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if path in ("b\n", "closed") and flags in (tree_copies._SOURCE, tree_copies.FOLDER):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *rest, dir_fd=dir_fd)

    monkeypatch.setattr(tree_copies.os, "open", refusing)
    problems = copy_tree(source, tmp_path / "copy", link=False)
    assert sorted(problems) == ["b\\n: Permission denied", "closed: Permission denied"]
    assert described(tmp_path / "copy") == {b"a": b"a", b"d": b"d"}


def test_what_is_removed_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    real = os.stat

    def removing(path: str, **options: object) -> os.stat_result:
        (source / "file").unlink(missing_ok=True)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tree_copies.os, "stat", removing)
    assert copy_tree(source, tmp_path / "copy", link=True) == []
    assert described(tmp_path / "copy") == {}
    assert copy_tree(tmp_path / "none", tmp_path / "other", link=True) == []
