"""The keys of folders with weights: at once by what the disk says of the files, later by their content."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from evalrpc.engines.weights import Weights
from evalrpc.files.trees import remove_tree


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Weights]:
    weights = Weights(tmp_path / "notes")
    yield weights
    weights.close()


def folder_with(path: Path, content: str) -> Path:
    (path / "parts").mkdir(parents=True)
    (path / "parts" / "one.safetensors").write_text(content)
    (path / "config.json").write_text("{}")
    return path


def read(weights: Weights, folder: Path, count: int) -> None:
    """Have the content of a folder read, after which so many notes on folders are there."""
    weights.begin(folder)
    notes = weights._notes
    eventually(lambda: notes.is_dir() and len([note for note in notes.iterdir() if "." not in note.name]) == count)


def test_a_folder_keeps_its_key_once_its_content_is_known(weights: Weights, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "1")
    key = weights.key(folder)
    assert key
    read(weights, folder, 2)
    assert weights.key(folder) == key


def test_the_sha_256_of_each_file_is_noted(weights: Weights, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "abc")
    read(weights, folder, 2)
    (note,) = (json.loads(path.read_text()) for path in weights._notes.iterdir() if not path.name.startswith("content-"))
    assert note["sha256"]["parts/one.safetensors"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sorted(note["sha256"]) == ["config.json", "parts/one.safetensors"]


def test_a_copy_has_the_key_of_the_original_once_its_content_is_known_also_for_a_later_server(
    weights: Weights, tmp_path: Path
) -> None:
    original, copy = folder_with(tmp_path / "a", "1"), folder_with(tmp_path / "b", "1")
    key = weights.key(original)
    assert weights.key(copy) != key
    read(weights, original, 2)
    read(weights, copy, 3)
    assert weights.key(copy) == key
    weights.close()
    assert Weights(tmp_path / "notes").key(copy) == key


def test_a_folder_that_was_only_touched_has_its_key_again_once_it_was_read(weights: Weights, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "1")
    key = weights.key(folder)
    read(weights, folder, 2)
    os.utime(folder / "config.json", (1, 1))
    assert weights.key(folder) != key
    read(weights, folder, 3)
    assert weights.key(folder) == key


@pytest.mark.parametrize("change", ["content", "name", "replaced"])
def test_other_weights_have_another_key_at_once_and_for_good(weights: Weights, tmp_path: Path, change: str) -> None:
    folder = folder_with(tmp_path / "a", "1")
    part = folder / "parts" / "one.safetensors"
    status = part.stat()
    key = weights.key(folder)
    read(weights, folder, 2)
    if change == "name":
        part.rename(part.with_name("two.safetensors"))
    elif change == "content":
        part.write_text("22")
    else:  # by a file of the same size and time
        part.with_name("new").write_text("2")
        part.with_name("new").replace(part)
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.key(folder) != key
    read(weights, folder, 4)
    assert weights.key(folder) != key


def test_files_that_change_while_they_are_read_are_not_noted(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(tmp_path / "a", "1")

    def digest_of(path: Path) -> str:
        (folder / "late").touch()
        return ""

    monkeypatch.setattr(weights, "_digest_of", digest_of)
    weights.begin(folder)
    eventually(lambda: weights._thread is None, "for the folder to be read")
    assert not (tmp_path / "notes").exists()


def test_a_folder_that_is_not_there_has_a_key_and_one_that_can_t_be_read_has_none(weights: Weights, tmp_path: Path) -> None:
    assert weights.key(tmp_path / "absent")
    locked = folder_with(tmp_path / "a", "1")
    (locked / "loop").symlink_to(locked / "loop")
    assert weights.key(locked) == ""


def test_whatever_lies_in_a_folder_others_are_read_after_it(weights: Weights, tmp_path: Path) -> None:
    odd = folder_with(tmp_path / "odd", "1")
    folder = odd
    for _ in range(1000):
        folder /= "d"
        folder.mkdir()
    (odd / "loop").symlink_to("nowhere")
    os.mkfifo(odd / "fifo")
    weights.begin(odd)
    read(weights, folder_with(tmp_path / "good", "2"), 4)
    assert remove_tree(odd) is None, "pytest itself could not"
