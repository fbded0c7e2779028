"""A folder goes to another account and comes back with all in it, whatever that is."""

import os
import stat
from pathlib import Path

import pytest

from evalrpc.files.handover import hand_over, make_passable, take_back
from evalrpc.files.trees import remove_tree

pytestmark = pytest.mark.skipif(bool(os.geteuid()), reason="needs root, to give files to other accounts")

UID = 200_000
STRANGER = 200_001


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "attempt-1" / "output"
    folder.mkdir(parents=True)
    hand_over(folder, UID)
    return folder


def of_run(path: Path, mode: int | None = None) -> Path:
    """Give a file to the run."""
    os.chown(path, UID, UID, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)
    return path


def owner(path: Path) -> tuple[int, int]:
    return path.lstat().st_uid, path.lstat().st_gid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def made(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_folder_goes_to_the_account_and_comes_back(folder: Path) -> None:
    assert folder.stat().st_uid == UID
    hand_over(folder, UID)
    assert take_back(folder, UID, 0o700) is None
    assert owner(folder) == (0, 0)
    assert take_back(folder, UID, 0o700) is None


def test_all_in_it_comes_back_and_folders_keep_no_more_rights_than_allowed(folder: Path) -> None:
    folder.chmod(0o777)
    below = of_run(made(folder / "below"), 0o2775)
    closed = of_run(made(below / "closed"), 0)
    (below / "file").touch()
    of_run(below / "file", 0o6755)
    (below / "link").symlink_to("/etc/passwd")
    of_run(below / "link")
    os.mkfifo(of_run(made(below / "third")) / "fifo")
    of_run(below / "third" / "fifo")
    assert take_back(folder, UID, 0o750) is None
    assert {owner(path) for path in (folder, *folder.rglob("*"))} == {(0, 0)}
    assert [mode(path) for path in (folder, below, closed)] == [0o750, 0o2750, 0]
    assert mode(below / "file") == 0o755, "no set-user-ID for the server's account"
    assert Path("/etc/passwd").stat().st_uid == 0


def test_what_is_not_the_runs_stays_whose_it_is(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch(mode=0o604)
    os.chown(theirs, STRANGER, STRANGER)
    (folder / "linked").hardlink_to(theirs)
    outside = of_run(made(tmp_path / "outside"))
    (folder / "link").symlink_to(outside)
    assert take_back(folder, UID, 0o700) is None
    assert owner(theirs) == (STRANGER, STRANGER)
    assert owner(outside) == (UID, UID), "no link is followed"


def test_a_group_that_is_not_the_runs_own_is_kept(folder: Path) -> None:
    (folder / "file").touch()
    os.chown(folder / "file", UID, 54_321)
    take_back(folder, UID, 0o700)
    assert owner(folder / "file") == (0, 54_321)


def test_a_deep_tree_comes_back(folder: Path) -> None:
    deepest = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=deepest)
        os.chown("d", UID, UID, dir_fd=deepest)
        above, deepest = deepest, os.open("d", os.O_RDONLY, dir_fd=deepest)
        os.close(above)
    assert take_back(folder, UID, 0o700) is None
    assert os.fstat(deepest).st_uid == 0
    os.close(deepest)
    assert remove_tree(folder) is None


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    real = made(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    for act in (lambda path: hand_over(path, UID), make_passable, lambda path: take_back(path, UID, 0o700)):
        with pytest.raises(OSError, match="symbolic link"):
            act(tmp_path / "link")
    assert owner(real) == (0, 0)


def test_a_folder_of_a_third_account_is_not_given_away(tmp_path: Path) -> None:
    os.chown(tmp_path, STRANGER, STRANGER)
    with pytest.raises(PermissionError, match="belongs to another account"):
        hand_over(tmp_path, UID)
    with pytest.raises(PermissionError, match="belongs to another account"):
        make_passable(tmp_path)


def test_what_is_gone_is_nothing_to_take_back_and_nothing_to_give(tmp_path: Path) -> None:
    assert take_back(tmp_path / "gone", UID, 0o700) is None
    with pytest.raises(FileNotFoundError):
        hand_over(tmp_path / "gone", UID)


def test_a_passable_folder_can_be_passed_through_and_not_listed(tmp_path: Path) -> None:
    folder = made(tmp_path / "folder")
    folder.chmod(0o700)
    make_passable(folder)
    assert mode(folder) == 0o711
