"""Regular files that people name: settings, certificates, tokens.

Anything else in their place could hang whoever reads it: a FIFO waits for its writer, and some devices never end.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

_KINDS: Final[Sequence[tuple[Callable[[int], bool], str, int]]] = (
    (stat.S_ISREG, "a regular file", errno.ENOTDIR),
    (stat.S_ISLNK, "a symbolic link", errno.ELOOP),
    (stat.S_ISDIR, "a folder", errno.EISDIR),
    (stat.S_ISFIFO, "a FIFO", errno.ENXIO),
    (stat.S_ISSOCK, "a socket", errno.ENXIO),
)


def read_named_file(path: Path) -> bytes:
    """Return the content of a regular file. Raises OSError, also for anything else, which is not waited for."""
    with open_named_file(path) as file:
        return file.read()


def open_named_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for anything else, which is not waited for."""
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - the caller closes it
    try:
        require_regular(file.fileno(), str(path))
    except OSError:
        file.close()
        raise
    return file


def require_regular(descriptor: int, name: str) -> None:
    """Raise OSError unless a regular file was opened."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise wrong_kind(mode, name, "regular file")


def wrong_kind(mode: int, name: str, wanted: str) -> OSError:
    """Return the error that says what was found in the place of a `regular file` or a `folder`."""
    kind, number = next(((kind, number) for is_kind, kind, number in _KINDS if is_kind(mode)), ("a device", errno.ENXIO))
    return OSError(
        errno.ENOTDIR if wanted == "folder" and number != errno.ELOOP else number, f"it is {kind}, not a {wanted}", name
    )


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which Windows lacks, as it lacks FIFOs
