"""What a run may put in the place of a file or a folder."""

import os
import socket
import stat
from pathlib import Path

import pytest

KINDS = {
    "link": "a symbolic link",
    "link to a device": "a symbolic link",
    "folder": "a folder",
    "fifo": "a FIFO",
    "socket": "a socket",
    "device": "a device",
}
"""The kinds that are no file, and what an error calls them."""


def put(kind: str, path: Path, target: Path = Path("/etc")) -> None:
    """Put something of this kind at a path where nothing is. `target` is what a link leads to."""
    match kind:
        case "link":
            path.symlink_to(target)
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            _put_socket(path)
        case "device":
            _put_device(path)
        case "file":
            path.write_text("a file")
        case _:
            raise AssertionError(kind)


def _put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")  # the path of a socket has at most 107 bytes
        finally:
            os.close(folder)


def _put_device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # that of /dev/zero
    except PermissionError:
        pytest.skip("only root may make a device")
