"""The lock that keeps a data folder to one server."""

import fcntl
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.errors import ConfigurationError, DataDirectoryInUseError

LOCK_NAME: Final = "lock"


def lock_data_dir(data_dir: Path) -> BinaryIO:
    """Lock the folder for as long as the file stays open; a process that dies lets go of it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock_file = (data_dir / LOCK_NAME).open("ab")
    except OSError as error:
        raise ConfigurationError(f"setting data_dir: {data_dir} can't be used: {error.strerror}") from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock_file.close()
        raise DataDirectoryInUseError(
            f"setting data_dir: another evalrpc server works on {data_dir}; stop it, or take another folder"
        ) from error
    return lock_file
