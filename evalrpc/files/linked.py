"""Opens files below a folder of the operator's, also through links, as long as these stay below it.

Data sets are full of links: a cache of Hugging Face has `snapshots/REVISION/NAME -> ../../blobs/HASH`. Whoever may write there
may exchange one at any moment. So no path is looked at and then opened: it is walked part by part, each relative to the folder
before (openat), and what is a link is read and walked in its turn. `..` goes back to the folder that the walk came from.
Nothing outside is ever opened.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from evalrpc.files.regular import require_regular

_MAX_LINKS: Final = 40  # as the kernel has it
_MAX_FOLDERS: Final = 64  # since all on the way are open
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def open_below(root: Path, path: Path) -> Iterator[int]:
    """Open a regular file for reading, and yield its descriptor. `path` is relative to the root, or begins with it. Links on
    the way to the root are the operator's, and followed.

    Never blocks. Raises OSError: also if it does not exist, if it or a link lies outside, or if it is no regular file.
    """
    with ExitStack() as stack:
        walk = _Walk(root, stack)
        walk.go(str(path))
        descriptor = os.open(walk.file_name(), _FILE, dir_fd=walk.folder)
        stack.callback(os.close, descriptor)
        require_regular(descriptor, path.name)
        yield descriptor


class _Walk:
    """The way from a root to a file. Its folders are open until the stack is closed, or the walk has left them."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._folders = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._root_names = (root, Path(os.path.realpath(root)))  # in which absolute paths to what is below may begin
        self._ahead: list[str] = []  # the parts that are left, the next one last
        self._link_count = 0
        stack.callback(lambda: self._go_back_to(0))

    @property
    def folder(self) -> int:
        """The folder in which the walk is."""
        return self._folders[-1]

    def go(self, path: str) -> None:
        """Put a path before what is left. Raises OSError if it leads out of the root."""
        if path.startswith("/"):
            root = next((name for name in self._root_names if Path(path).is_relative_to(name)), None)
            if root is None:
                raise _outside(path)
            path = str(Path(path).relative_to(root))
            self._go_back_to(1)
        self._ahead += reversed([part for part in path.split("/") if part not in ("", ".")])

    def file_name(self) -> str:
        """Walk to the folder of the file, and return its name there. Raises OSError."""
        while self._ahead:
            part = self._ahead.pop()
            if part == "..":
                if len(self._folders) == 1:
                    raise _outside(part)
                self._go_back_to(len(self._folders) - 1)
            elif (target := _target(part, self.folder)) is not None:
                self._link_count += 1
                if self._link_count > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part)
                self.go(target)
            elif self._ahead:
                if len(self._folders) > _MAX_FOLDERS:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), part)
                self._folders.append(os.open(part, _FOLDER, dir_fd=self.folder))
            else:
                return part
        raise OSError(errno.EISDIR, "it is a folder, not a regular file", str(self._root_names[0]))

    def _go_back_to(self, count: int) -> None:
        while len(self._folders) > count:
            os.close(self._folders.pop())


def _target(name: str, folder: int) -> str | None:
    """Return where a link leads; None for anything else. Raises OSError."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def _outside(path: str) -> OSError:
    return OSError(errno.EXDEV, "it leads out of the folder", path)
