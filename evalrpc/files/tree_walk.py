"""Walks a tree that a run left: without recursion, relative to one open folder (openat), following no link.

On the way up, the folder that `..` leads to has to be the one that the walk came from, so that a folder that is moved meanwhile
does not lead the walk astray. What is mounted within the tree is no part of it: a removal would empty a disk that somebody
still needs.
"""

import errno
import os
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NoReturn

from evalrpc.files.errnos import require_no_shortage

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a folder is opened whose entries are to be read."""

ANY_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a folder is opened that need not be readable."""

_MOVED: Final = "the folder was moved meanwhile"


class Place:
    """The one open folder of a walk. Owns the descriptor that it is given. Raises OSError."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        try:
            self._mount = _mount_of(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._above = array("Q")  # the identity of each folder above: a tree may be ten thousand deep

    def enter(self, child: int) -> None:
        """Go into a folder, which was opened in this one, unless there is no way back, or it is a mount. Owns its descriptor.
        Raises OSError."""
        here = identity(os.fstat(self.descriptor))
        try:
            _require(_mount_of(child) == self._mount, "something else is mounted there")
            _require(identity(os.stat("..", dir_fd=child)) == here, _MOVED)
        except OSError:
            os.close(child)
            raise
        self._move(child)
        self._above.extend(here)

    def leave(self) -> None:
        """Go back. Raises OSError if this folder is not where it was any more."""
        parent = os.open("..", ANY_FOLDER, dir_fd=self.descriptor)
        self._move(parent)
        inode, device = self._above.pop(), self._above.pop()
        _require(identity(os.fstat(parent)) == (device, inode), _MOVED)

    def close(self) -> None:
        """Close the folder."""
        os.close(self.descriptor)

    def _move(self, descriptor: int) -> None:
        os.close(self.descriptor)
        self.descriptor = descriptor


def _raise(error: OSError) -> NoReturn:
    raise error


def folders_from(top: Path, if_lost: Callable[[OSError], object] = _raise) -> Generator[tuple[int, list[str]]]:
    """Yield a folder, and those below it, as `folders_below` does. What can't be entered is left out. Raises OSError for a
    shortage."""
    try:
        place = Place(os.open(top, FOLDER))
    except OSError as error:
        require_no_shortage(error)
        return
    with closing(place):
        yield from folders_below(place, lambda _, error: require_no_shortage(error), if_lost)


def folders_below(
    place: Place, if_closed: Callable[[str, OSError], object], if_lost: Callable[[OSError], object]
) -> Iterator[tuple[int, list[str]]]:
    """Yield the folder of a place, and those below it, as open descriptors, each with an empty list, to which the caller adds
    the names of those in it that are to follow.

    Where one can't be entered, `if_closed` is called with its name and the error, and the walk goes on if that returns. Where
    there is no way back, `if_lost` is called with the error, and the walk ends if that returns.
    """

    def enter(name: str) -> bool:
        try:
            place.enter(os.open(name, FOLDER, dir_fd=place.descriptor))
        except OSError as error:
            if_closed(name, error)
            return False
        return True

    def leave(_name: str) -> bool:
        try:
            place.leave()
        except OSError as error:
            if_lost(error)
            return False
        return True

    for inner in walk(enter, leave):
        yield place.descriptor, inner


def walk(enter: Callable[[str], bool], leave: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield an empty list for the folder that the caller is in, and for each below it once `enter` has gone into it. To each,
    the caller adds the names of the folders in it that are to follow.

    `enter` returns whether it could. `leave` goes back from the folder of this name; the walk ends if it returns False.
    """
    names: list[str] = []
    nothing: list[str] = []  # one for all that have nothing left: a tree may be ten thousand deep
    pending: list[list[str]] = [[]]  # the folders that are left in each one that the walk is in
    yield pending[-1]
    while True:
        if not pending[-1]:
            pending.pop()
            if not (names and leave(names.pop())):
                return
            continue
        name = pending[-1].pop()
        if not pending[-1]:
            pending[-1] = nothing
        if enter(name):
            names.append(name)
            pending.append([])
            yield pending[-1]


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a file or folder from all others."""
    return status.st_dev, status.st_ino


def said(name: str, error: OSError) -> str:
    """Return what is wrong with an entry of a folder, whatever its name."""
    return f"{ascii(name)[1:-1]}: {error.strerror or error}"


def _mount_of(descriptor: int) -> str:
    """Return which mount a folder is opened in; empty where the kernel does not say. Devices don't tell: a folder may be
    mounted elsewhere on its own disk."""
    with open(f"/proc/self/fdinfo/{descriptor}") as lines:  # noqa: PTH123 - thousands of them
        return next((line for line in lines if line.startswith("mnt_id")), "")


def _require(is_same: bool, else_what: str) -> None:
    if not is_same:
        raise OSError(errno.EXDEV, else_what)
