"""Files and folders that are private to the server's account."""

import os
from pathlib import Path
from typing import BinaryIO, Final

PRIVATE_UMASK: Final = 0o077
"""The umask of a program whose files are private to its account."""

PASSABLE: Final = 0o011
"""What a folder of the server permits besides, so that runs with accounts of their own can pass through it, but not list it."""

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_private_folder(folder: Path) -> None:
    """Create a private folder unless it exists. Missing parents are as private as the umask. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def create_private_file(path: Path) -> BinaryIO:
    """Create a private file for writing, instead of what is there. A link that a run has put there is not followed, and a FIFO
    not waited for. Raises OSError."""
    path.unlink(missing_ok=True)
    return open(os.open(path, _NEW, 0o600), "wb")  # noqa: PTH123 - the caller closes it
