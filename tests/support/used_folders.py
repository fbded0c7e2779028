"""What lies in folders that a server uses: it makes and removes files while a test looks."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")


def seen_below(folder: Path, look: Callable[[Path], _T]) -> dict[Path, _T]:
    """Look at a folder and at each path below it. What is removed meanwhile is left out; Path.rglob would fail for it."""
    paths = [folder]
    for parent, folders, files in os.walk(folder):
        paths += (Path(parent, name) for name in (*folders, *files))
    seen = {}
    for path in paths:
        with suppress(FileNotFoundError):
            seen[path] = look(path)
    return seen


def contents_below(folder: Path) -> dict[Path, bytes]:
    """Return what each file below a folder has."""
    contents = seen_below(folder, lambda path: path.read_bytes() if path.is_file() else None)
    return {path: content for path, content in contents.items() if content is not None}


def opened_below(folder: Path) -> list[Path]:
    """Return what this process has open of a folder and below it. How many descriptors it has in all may change at any time:
    other tests have left some that are still being closed."""
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            opened.append(descriptor.readlink())
    return [path for path in opened if path.is_relative_to(folder)]
