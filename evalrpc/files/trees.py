"""Measures and removes folders that runs left, whatever is in them.

A run can leave a tree of any depth and width, with links, FIFOs, names that are not UTF-8, and folders that nobody may enter:
see `evalrpc.files.tree_walk`.
"""

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.tree_walk import ANY_FOLDER, FOLDER, Place, folders_from, identity, said, walk

BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`, whatever the file system."""

_PARENT: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OWNER: Final = stat.S_IRWXU


class Remains(NamedTuple):
    """What could not be removed."""

    entry_count: int
    """How many files and folders, without the folders that are only left because these are."""
    problem: str
    """Why the first of them could not be removed."""


def disk_bytes(folder: Path, enough: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Return how much a folder occupies on the disk, with all below it that can be read; 0 if it does not exist.

    A sparse file counts what it occupies, and a file with several links once. It is counted no further than `enough`, or until
    it is to stop. Raises OSError for a shortage, or for a disk that fails.
    """
    total_bytes = 0
    linked: set[tuple[int, int]] = set()
    with closing(_statuses(folder)) as statuses:
        for status in statuses:
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if identity(status) in linked:
                    continue
                linked.add(identity(status))
            total_bytes += status.st_blocks * BLOCK_BYTES
            if should_stop() or (enough is not None and total_bytes > enough):
                break
    return total_bytes


def remove_tree(path: Path, should_stop: Callable[[], bool] = lambda: False) -> Remains | None:
    """Remove a folder with all below it, or whatever else is in its place. Return what is left; None if nothing is.

    What can't be removed keeps nothing else from being removed. Folders of this account are made accessible first. If it is to
    stop, what is not removed yet is left.
    """
    try:
        parent = os.open(path.parent, _PARENT)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Remains(1, said(path.parent.name, error))
    return _Removal(parent, should_stop).remove(path.name)


def _statuses(folder: Path) -> Generator[os.stat_result, None, None]:
    """Yield the status of a folder, and of all below it that can be read. Raises OSError for a shortage."""
    with closing(folders_from(folder, require_no_shortage)) as folders:
        for number, (descriptor, inner) in enumerate(folders):
            if not number:
                yield os.fstat(descriptor)
            yield from _entries(descriptor, inner)


def _entries(descriptor: int, folders: list[str]) -> Iterator[os.stat_result]:
    """Yield the status of each entry of a folder, and gather the names of those that are folders."""
    with os.scandir(descriptor) as entries:
        for entry in entries:
            with suppress(FileNotFoundError, PermissionError):
                yield entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)


class _Removal:
    """Removes one tree from its parent folder, whose descriptor it owns."""

    def __init__(self, parent: int, should_stop: Callable[[], bool]) -> None:
        self._place = Place(parent)
        self._should_stop = should_stop
        self._count = 0
        self._problem = ""

    def remove(self, name: str) -> Remains | None:
        """Remove it. Return what is left."""
        with closing(self._place):
            try:
                folders = walk(self._enter, self._leave)
                next(folders).extend([name] if self._is_folder(name) else [])
                for inner in folders:
                    inner += self._remove_files()
            except OSError as error:  # of `_leave`
                self._note(name, error)
        return Remains(self._count, self._problem) if self._count else None

    def _enter(self, name: str) -> bool:
        """Go into a folder. Return False, with the problem noted, if that is impossible."""
        try:
            folder = os.open(name, ANY_FOLDER, dir_fd=self._place.descriptor)
            try:
                _make_accessible(folder)
                child = os.open(".", FOLDER, dir_fd=folder)
            finally:
                os.close(folder)
            self._place.enter(child)
        except OSError as error:
            self._note(name, error)
            return False
        return True

    def _leave(self, name: str) -> bool:
        """Go back from an emptied folder, and remove it. Raises OSError if there is no way back, or if it is to stop."""
        if self._should_stop():
            raise OSError(errno.EINTR, "the removal was broken off")
        self._place.leave()
        self._remove_emptied(name)
        return True

    def _remove_files(self) -> list[str]:
        """Remove all but the folders from the folder at hand. Return the names of these."""
        folders = []
        try:
            with os.scandir(self._place.descriptor) as entries:
                for entry in entries:
                    if self._should_stop():
                        break
                    if self._is_folder(entry.name):
                        folders.append(entry.name)
        except OSError as error:
            self._note(".", error)
        return folders

    def _is_folder(self, name: str) -> bool:
        """Remove an entry unless it is a folder. An empty one is not tried either: the kernel would first look through all that
        it remembers below a full one, and so a deep tree would take quadratic time."""
        try:
            os.unlink(name, dir_fd=self._place.descriptor)
        except IsADirectoryError:
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            self._note(name, error)
        return False

    def _remove_emptied(self, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=self._place.descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            if not self._count:  # else it is what could not be removed that is still in there
                self._note(name, error)

    def _note(self, name: str, error: OSError) -> None:
        self._count += 1
        self._problem = self._problem or said(name, error)


def _make_accessible(folder: int) -> None:
    """Give this account all rights on a folder, if it is its own."""
    status = os.fstat(folder)
    if status.st_mode & _OWNER != _OWNER and status.st_uid == os.geteuid():
        os.chmod(f"/proc/self/fd/{folder}", stat.S_IMODE(status.st_mode) | _OWNER)  # noqa: PTH101 - this very folder
