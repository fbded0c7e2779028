"""Changes of files are detected from their metadata."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evalrpc.files.fingerprints import MAX_FILES, fingerprint_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights").write_text("1234")
    (folder / "link").symlink_to("sub/weights")
    return folder


def rewrite(folder: Path) -> None:
    path = folder / "sub" / "weights"
    path.write_text("4321")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda folder: (folder / "new").touch(),
    "a new folder": lambda folder: (folder / "new").mkdir(),
    "a file less": lambda folder: (folder / "config.json").unlink(),
    "another name": lambda folder: (folder / "config.json").rename(folder / "config.yaml"),
    "the same size at another time": rewrite,
    "a link that leads nowhere now": lambda folder: (folder / "sub" / "weights").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(folder: Path, change: str) -> None:
    before = fingerprint_files([folder])
    assert before == fingerprint_files([folder])
    CHANGES[change](folder)
    assert before != fingerprint_files([folder]) != None  # noqa: E711


def test_a_change_behind_a_link_is_noticed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(folder)
    before = fingerprint_files([tmp_path / "latest"])
    rewrite(folder)
    assert before != fingerprint_files([tmp_path / "latest"])


def test_what_python_writes_where_it_reads_is_no_change(folder: Path) -> None:
    before = fingerprint_files([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "tasks.cpython-311.pyc").touch()
    assert before == fingerprint_files([folder])


def test_a_path_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    before = fingerprint_files([tmp_path / "absent"])
    assert before is not None
    (tmp_path / "absent").touch()
    assert before != fingerprint_files([tmp_path / "absent"])


def test_too_many_files_have_none(tmp_path: Path) -> None:
    for number in range(MAX_FILES - 1):
        (tmp_path / str(number)).touch()
    assert fingerprint_files([tmp_path]) is not None
    (tmp_path / "more").touch()
    assert fingerprint_files([tmp_path]) is None


def test_links_in_a_circle_have_none(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).symlink_to(folder)
    assert fingerprint_files([folder]) is None


def test_a_name_that_is_no_text_is_a_name(folder: Path) -> None:
    before = fingerprint_files([folder])
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).touch()
    assert before != fingerprint_files([folder]) != None  # noqa: E711
