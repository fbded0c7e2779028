"""Folders below one another, deeper than any path may be long."""

import os
from pathlib import Path


def make_folders_below(folder: Path, depth: int) -> int:
    """Make so many folders below one another in a folder. Return the last one, open; the caller closes it."""
    deepest = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=deepest)
        above, deepest = deepest, os.open("d", os.O_RDONLY, dir_fd=deepest)
        os.close(above)
    return deepest
