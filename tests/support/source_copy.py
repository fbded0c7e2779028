"""A copy of this repository to build from: builds leave a folder `build`, which those in other test processes would share."""

import shutil
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

_LEFT_OUT: Final = (".*", "build", "dist", "*.egg-info", "__pycache__", "node_modules", "out")


def copy_source(folder: Path) -> Path:
    """Copy the repository without what git ignores to a new folder `evalrpc` in this one, and return that."""
    source = folder / "evalrpc"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    return source
