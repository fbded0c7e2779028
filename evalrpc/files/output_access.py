"""Permissions of what runs leave below the output root: the server's account, and whomever the operator lets in.

Everything else that a server creates is private to its account.
"""

import grp
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evalrpc.errors import ConfigurationError
from evalrpc.files.private import PASSABLE, PRIVATE_UMASK, make_private_folder

_ALL: Final = 0o777
_READ: Final = 0o444
_MAX_GROUP_ID: Final = 2**32 - 2  # one more means: leave it as it is


@dataclass(frozen=True)
class OutputAccess:
    """The permissions of files and folders below the output root, which is absolute and free of links."""

    root: Path | None
    """None: there is none."""
    file_mode: int
    group_id: int | None = None
    """The group that owns them. None: that of the server's account."""
    is_passable: bool = False
    """Whether folders on the way to those of runs can be passed through by the accounts of runs."""

    @property
    def folder_mode(self) -> int:
        """Whoever may read a file may enter its folder. Setgid passes a configured group on to new files."""
        mode = self.file_mode | (self.file_mode & _READ) >> 2
        return mode if self.group_id is None else mode | 0o2000

    def umask_in(self, folder: Path) -> int:
        """Return the umask of a program that leaves its results in the folder."""
        return _ALL & ~self.folder_mode if self._is_below_root(folder) else PRIVATE_UMASK

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its missing parents. Existing folders stay unchanged. Raises OSError."""
        if not self._is_below_root(folder):
            make_private_folder(folder)
            return
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue  # another run created it first
            if self.group_id is not None:
                os.chown(path, -1, self.group_id)
            passage = PASSABLE if self.is_passable and path != folder else 0
            path.chmod(self.folder_mode | passage)  # last: changing the group clears permissions

    def _is_below_root(self, folder: Path) -> bool:
        return self.root is not None and folder.is_relative_to(self.root)


def output_access(root: Path | None, file_mode: int, group: str) -> OutputAccess:
    """Build it from the settings. Raises ConfigurationError for a group that this account can't give files to."""
    return OutputAccess(Path(os.path.realpath(root)) if root else None, file_mode, _group_id(group) if group else None)


def _group_id(group: str) -> int:
    try:
        group_id = int(group) if group.isascii() and group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigurationError(f"setting output_group: this machine has no group {group!r}") from error
    if group_id > _MAX_GROUP_ID:
        raise ConfigurationError(f"setting output_group: a group's number is at most {_MAX_GROUP_ID}")
    if os.geteuid() and group_id not in {os.getegid(), *os.getgroups()}:
        raise ConfigurationError(
            f"setting output_group: the server's account is no member of {group!r}, so can't give it files"
        )
    return group_id
