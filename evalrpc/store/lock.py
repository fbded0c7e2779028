"""The lock that keeps a data folder to one server."""

import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.errors import ConfigurationError, DataDirectoryInUseError
from evalrpc.files.private import PASSABLE, make_private_folder

LOCK_NAME: Final = "lock"
STORE_ID_NAME: Final = "store-id"
"""The file of a data folder whose jobs are in PostgreSQL, which says in which database."""

_PRIVATE_MODE: Final = 0o700


def lock_data_dir(data_dir: Path, *, is_shared: bool = False) -> BinaryIO:
    """Make the folder, for this account alone, and lock it for as long as the file stays open; a process that dies lets go of
    it. `is_shared`: others that share it may do the same."""
    try:
        make_private_folder(data_dir)
        _make_private(data_dir)
        lock_file = (data_dir / LOCK_NAME).open("ab")
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigurationError(f"setting data_dir: {data_dir} can't be used: {reason}") from error
    try:
        fcntl.flock(lock_file, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        lock_file.close()
        raise DataDirectoryInUseError(
            f"setting data_dir: another evalrpc server works on {data_dir}; stop it, or take another folder"
        ) from error
    return lock_file


def _make_private(data_dir: Path) -> None:
    """Take all rights from others, also where an earlier version has given them some. What belongs to another account stays.
    So does the passage of runs that have accounts of their own, since they may still be alive."""
    status = data_dir.stat()
    others = stat.S_IMODE(status.st_mode) & 0o077
    if status.st_uid == os.geteuid() and others not in (0, PASSABLE):
        data_dir.chmod(_PRIVATE_MODE)
