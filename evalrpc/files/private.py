"""What is nobody's business but that of the server's own account."""

from pathlib import Path
from typing import Final

PRIVATE_UMASK: Final = 0o077
"""The umask of a program whose files are for its own account alone."""


def make_private_folder(folder: Path) -> None:
    """Make a folder, unless it is there, and those above it, for the server's account alone. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
