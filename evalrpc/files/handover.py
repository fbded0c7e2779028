"""Hands folders of a run to the account of the run, and takes them back with all that is in them.

What the run left may be anything, and other processes of its account may still change it. So a tree is walked as in
`evalrpc.files.trees`, from the top, and each folder is this account's own before its entries are looked at. What belongs to
neither account, such as a file of somebody else to which the run has made a link, stays as it is.
"""

import errno
import os
import stat
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_folder
from evalrpc.files.private import PASSABLE
from evalrpc.files.tree_walk import Place, folders_below, said
from evalrpc.files.trees import Remains

_ENTRY: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SETGID: Final = 0o2000


def make_passable(folder: Path) -> None:
    """Let every account pass through one of this account's folders to what it knows the name of. Raises OSError."""
    with open_folder(folder, 1) as opened:
        descriptor = _require_own(folder, opened)
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) | PASSABLE)


def hand_over(folder: Path, uid: int) -> None:
    """Give a folder, without what is in it, to another account. It keeps its group. May be called again. Raises OSError."""
    with open_folder(folder) as opened:
        os.fchown(_require_own(folder, opened, uid), uid, -1)


def take_back(folder: Path, uid: int, folder_mode: int) -> Remains | None:
    """Take a folder, and all in it, back from an account and its group; no folder in it keeps more rights than `folder_mode`.
    Return what could not be taken back; None if nothing. Nothing happens where there is no folder.

    Raises OSError for a shortage, and if something else is in the place of the folder.
    """
    with open_folder(folder) as descriptor:
        return None if descriptor is None else _TakingBack(uid, folder_mode | _SETGID).walk(os.dup(descriptor))


def _require_own(folder: Path, descriptor: int | None, uid: int | None = None) -> int:
    """Return the descriptor of a folder that is there, and belongs to this account or to the other one. Raises OSError."""
    if descriptor is None:
        raise FileNotFoundError(errno.ENOENT, f"{folder.name} is gone")
    if os.fstat(descriptor).st_uid not in (os.geteuid(), uid):
        raise PermissionError(errno.EPERM, f"{folder.name} belongs to another account")
    return descriptor


class _TakingBack:
    """Takes back one tree."""

    def __init__(self, uid: int, folder_mode: int) -> None:
        self._uid = uid
        self._folder_mode = folder_mode
        self._count = 0
        self._problem = ""

    def walk(self, top: int) -> Remains | None:
        """Take back a folder, whose descriptor it owns, with all in it. Return what could not be. Raises OSError."""
        with closing(Place(top)) as place:
            self._take(".", place.descriptor)
            for folder, inner in folders_below(place, self._note, partial(self._note, "..")):
                inner += self._take_entries(folder)
        return Remains(self._count, self._problem) if self._count else None

    def _take_entries(self, folder: int) -> list[str]:
        """Take back each entry of a folder. Return the names of those that are folders."""
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._take(entry.name, folder)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
        return folders

    def _take(self, name: str, folder: int) -> None:
        try:
            descriptor = os.open(name, _ENTRY, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            self._note(name, error)
            return
        try:
            self._change(descriptor)
        except OSError as error:
            self._note(name, error)
        finally:
            os.close(descriptor)

    def _change(self, entry: int) -> None:
        """Take back what was opened, which may be a link: this very entry, whatever is in its place by now."""
        status, path = os.fstat(entry), f"/proc/self/fd/{entry}"
        if status.st_uid != self._uid:
            return
        os.chown(path, os.geteuid(), os.getegid() if status.st_gid == self._uid else -1)
        if stat.S_ISDIR(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode) & self._folder_mode)  # noqa: PTH101 - this very folder

    def _note(self, name: str, error: OSError) -> None:
        require_no_shortage(error)
        self._count += 1
        self._problem = self._problem or said(name, error)
