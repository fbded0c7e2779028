"""Files and folders that are private to the server's account."""

from pathlib import Path
from typing import Final

PRIVATE_UMASK: Final = 0o077
"""The umask of a program whose files are private to its account."""


def make_private_folder(folder: Path) -> None:
    """Create a private folder unless it exists. Missing parents are as private as the umask. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
