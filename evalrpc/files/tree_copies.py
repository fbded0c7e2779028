"""Copies folders that runs left, whatever is in them, also while a run is at work there: see `evalrpc.files.tree_walk`.

Regular files, folders and symbolic links are copied; FIFOs, sockets and devices are left out. A sparse file stays sparse.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.tree_walk import FOLDER, Place, said, walk

_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TARGET: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_LINKABLE: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})
_CHUNK_BYTES: Final = 1024 * 1024


def copy_tree(source: Path, target: Path, *, link: bool) -> list[str]:
    """Copy a folder to a new one. Return what could not be read, each with its reason. What is removed meanwhile is left out.

    With `link`, files become hard links where the file system allows it: only for files that nobody changes any more. Raises
    OSError for a shortage, a disk that fails, or a target that can't be written.
    """
    try:
        opened = os.open(source, FOLDER)
    except FileNotFoundError:
        return []
    except OSError as error:
        require_no_shortage(error)
        return [said(source.name, error)]
    with closing(Place(opened)) as source_place:
        target.mkdir(mode=0o700)
        with closing(Place(os.open(target, FOLDER))) as target_place:
            copy = _Copy(source_place, target_place, link)
            copy.run()
    return copy.problems


class _Copy:
    """Copies from one open folder to another; both walk in step."""

    def __init__(self, source: Place, target: Place, link: bool) -> None:
        self._source = source
        self._target = target
        self._link = link
        self.problems: list[str] = []

    def run(self) -> None:
        """Copy everything. Raises OSError."""
        for inner in walk(self._enter, self._leave):
            inner += self._copy_files()

    def _enter(self, name: str) -> bool:
        """Go into a folder, and into its new copy. Return False if it can't be read."""
        try:
            self._source.enter(os.open(name, FOLDER, dir_fd=self._source.descriptor))
        except OSError as error:
            self._note(name, error)
            return False
        mode = stat.S_IMODE(os.fstat(self._source.descriptor).st_mode) | stat.S_IRWXU
        os.mkdir(name, mode, dir_fd=self._target.descriptor)
        self._target.enter(os.open(name, FOLDER, dir_fd=self._target.descriptor))
        return True

    def _leave(self, _name: str) -> bool:
        """Go back in both. Return False if there is no way back from what is copied."""
        self._target.leave()
        try:
            self._source.leave()
        except OSError as error:
            self._note("..", error)
            return False
        return True

    def _copy_files(self) -> list[str]:
        """Copy all but the folders of the folder at hand. Return the names of these."""
        folders = []
        with os.scandir(self._source.descriptor) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    else:
                        self._copy_entry(entry.name)
                except _UnreadableError as error:
                    self._note(entry.name, error.cause)
        return folders

    def _copy_entry(self, name: str) -> None:
        """Copy a link or a regular file. Raises _UnreadableError, OSError."""
        with _reading():
            status = os.stat(name, dir_fd=self._source.descriptor, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            with _reading():
                leads_to = os.readlink(name, dir_fd=self._source.descriptor)
            os.symlink(leads_to, name, dir_fd=self._target.descriptor)
        elif stat.S_ISREG(status.st_mode) and not (self._link and self._made_link(name)):
            self._copy_file(name)

    def _made_link(self, name: str) -> bool:
        places = {"src_dir_fd": self._source.descriptor, "dst_dir_fd": self._target.descriptor}
        try:
            os.link(name, name, **places, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NOT_LINKABLE:
                return False
            if isinstance(error, FileNotFoundError):
                raise _UnreadableError(error) from error
            raise
        return True

    def _copy_file(self, name: str) -> None:
        with _reading():
            source = os.open(name, _SOURCE, dir_fd=self._source.descriptor)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):  # it was replaced meanwhile
                return
            mode = stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR
            target = os.open(name, _TARGET, mode, dir_fd=self._target.descriptor)
            try:
                _copy_data(source, target, status.st_size)
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _note(self, name: str, error: OSError) -> None:
        require_no_shortage(error)
        if not isinstance(error, FileNotFoundError):
            self.problems.append(said(name, error))


class _UnreadableError(Exception):
    """What is to be copied can't be read, as opposed to a target that can't be written."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _UnreadableError(error) from error


def _copy_data(source: int, target: int, size_bytes: int) -> None:
    """Copy the first bytes of a file, without its holes. A file that is cut meanwhile stays as long as it was."""
    offset = 0
    while offset < size_bytes and (begin := _next_data(source, offset)) is not None:
        end = min(os.lseek(source, begin, os.SEEK_HOLE), size_bytes)
        offset = begin
        while offset < end:
            chunk = os.pread(source, min(_CHUNK_BYTES, end - offset), offset)
            if not chunk:
                break
            offset += os.pwrite(target, chunk, offset)
        if offset < end:
            break
    os.ftruncate(target, size_bytes)


def _next_data(descriptor: int, offset: int) -> int | None:
    """Return where the next data of a file begins; None: only a hole is left."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
