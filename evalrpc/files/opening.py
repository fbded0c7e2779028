"""Opens what a run left, without ever leaving its folder.

Names come from clients, and the folder's content from a harness, which may put anything in the place of a file or a folder, at
any moment: a link, a FIFO, a socket, a device. So a path is opened part by part, each relative to the one before (openat), from
a folder that is the server's own. Links are not followed, and a FIFO is not waited for. What was opened is then examined
(fstat), and only used through its descriptor, so there is no gap between a check and its use (TOCTOU).

Only a missing file counts as nothing; see `evalrpc.files.errnos`. For anything else than a regular file the error says what was
found.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.errors import ArtifactNotFoundError, FieldViolation, InvalidRequestError
from evalrpc.files.errnos import require_no_shortage, unreadable
from evalrpc.files.regular import require_regular, wrong_kind
from evalrpc.protobuf.file_names import disk_name, wire_name

MAX_NAME_BYTES: Final = 4096
"""The size of a name within a folder, which is that of a path."""

_MAX_NAMES: Final = 16_000
"""How many names of a folder are kept in memory. A folder below gets a part of that, the less the deeper it lies."""

_MIN_NAMES: Final = 50
_SPARE: Final = 4  # names beyond those that are wanted: a fourth of them
_CHECKED_ENTRIES: Final = 1000
_BETWEEN: Final = "\0/"  # in no name: after NUL a byte follows as two digits

_RUN_PARTS: Final = 3
"""How many parts of a path a run may have replaced, counted from its end: `JOB_ID/attempt-N/output` in the data directory, and
`OUTPUT_DIR/JOB_ID/attempt-N` in the output root. Links before these are the operator's, and followed."""

_COMMON: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE: Final = _COMMON | os.O_NONBLOCK  # a FIFO must not block the open
_FOLDER: Final = _COMMON | os.O_DIRECTORY
_PASSED_THROUGH: Final = _FOLDER | os.O_PATH
_NOT_THE_KIND: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})
_NO_FILE: Final = _NOT_THE_KIND | {errno.ENOENT, errno.ENAMETOOLONG}


@dataclass(frozen=True, order=True)
class FoundFile:
    """A regular file in a folder."""

    name: str
    """Its path within the folder, with `/`, as `evalrpc.protobuf.file_names` writes it."""
    size_bytes: int
    modified_ns: int


def list_files(folder: Path, after: str = "", check: Callable[[], None] = lambda: None) -> Iterator[FoundFile]:
    """Yield the regular files in a folder and below, sorted by name, without links: those with a name greater than `after`.

    Only folders that have such files are looked into, and only files that are yielded. Nothing if the folder does not exist. A
    name of more than MAX_NAME_BYTES is left out, and so is what lies in a folder below that the server may not read. `check` is
    called at every step; what it raises ends the listing. Raises OSError if a folder can't be read for another reason, or if
    something else is in the place of the folder.
    """
    with _opened(folder, _FOLDER) as root:
        if root is None:
            return
        pending = [_in_order(root, "", after, _MAX_NAMES, check)]  # no recursion, no open folder for each level
        while pending:
            check()
            name = next(pending[-1], None)
            if name is None:
                pending.pop()
            elif name.endswith("/"):
                pending.append(_in_order(root, name, after, max(_MIN_NAMES, _MAX_NAMES // len(pending)), check))
            elif status := _status(root, name):
                yield FoundFile(name, status.st_size, status.st_mtime_ns)


@contextmanager
def scan_folder(folder: Path, below: str = "") -> Iterator[Iterator["os.DirEntry[str]"]]:
    """Open a run's folder, or one `below` it, and yield its entries, whose `path` is only their name. They can be examined
    until the context ends. None if it does not exist.

    Raises OSError if it can't be read, or if something else is in its place.
    """
    with _opened(folder, _FOLDER) as root:
        if root is None:
            yield iter(())
            return
        with _folder_below(root, below) as descriptor:
            if descriptor is None:
                yield iter(())
            else:
                with os.scandir(descriptor) as entries:
                    yield entries


@contextmanager
def open_folder(folder: Path, replaceable_parts: int = _RUN_PARTS) -> Iterator[int | None]:
    """Open a run's folder and yield its descriptor; None if it does not exist. A run may have replaced so many parts of its
    path, counted from the end.

    Raises OSError if it can't be read, or if something else is in its place.
    """
    with _opened(folder, _FOLDER, replaceable_parts) as descriptor:
        yield descriptor


@contextmanager
def open_regular_file(path: Path) -> Iterator[int | None]:
    """Open a file in a run's own folder for reading and yield its descriptor; None if there is none.

    Never blocks. Raises OSError if it can't be read, or if a run has put something else in its place.
    """
    with _opened(path, _FILE) as descriptor:
        if descriptor is not None:
            require_regular(descriptor, path.name)
        yield descriptor


@contextmanager
def open_to_overwrite(path: Path) -> Iterator[int | None]:
    """Open a file in a run's own folder for reading and writing, as `open_regular_file` does for reading.

    Raises OSError also if it has another name, too: a run may have linked a file that is not its own.
    """
    with _opened(path, _FILE | os.O_RDWR) as descriptor:
        if descriptor is not None:
            require_regular(descriptor, path.name)
            if os.fstat(descriptor).st_nlink > 1:
                raise OSError(errno.EMLINK, "it has other names, too", path.name)
        yield descriptor


@contextmanager
def open_in(folder: Path, path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file in a run's folder or below it for reading. `path` is relative, or begins with the folder.

    Never blocks. Raises OSError: also if it does not exist, lies elsewhere, or if something else is in its place.
    """
    parts = _parts_within(folder, Path(path))
    descriptor = _open_parts(_open_path(folder, _PASSED_THROUGH), parts, _FILE)
    try:
        require_regular(descriptor, parts[-1])
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_note(folder: Path, name: str, max_bytes: int) -> bytes | None:
    """Return the beginning of a file in a folder; None if there is none that can be read. Raises OSError for a shortage."""
    try:
        with open_in(folder, name) as file:
            return file.read(max_bytes)
    except OSError as error:
        require_no_shortage(error)
        return None


@contextmanager
def open_file(folder: Path | None, name: str) -> Iterator[int]:
    """Open a regular file inside a run's folder for a client that names it, and yield its descriptor. None: there is no folder.

    Raises InvalidRequestError for a name that leaves the folder, ArtifactNotFoundError if there is no such file,
    FileUnavailableError and FileUnreadableError if it exists but can't be read, or if something else is in the folder's place.
    """
    parts = _parts(name)
    if folder is None:
        raise _not_found(name)
    try:
        opened_folder = _open_path(folder, _PASSED_THROUGH)
    except FileNotFoundError as error:
        raise _not_found(name) from error
    except OSError as error:
        raise unreadable(error) from error
    try:
        descriptor = _open_parts(opened_folder, parts, _FILE)
    except OSError as error:
        raise (_not_found(name, error) if error.errno in _NO_FILE else unreadable(error)) from error
    try:
        _require_artifact(descriptor, name)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_path(path: Path, flags: int, replaceable_parts: int = _RUN_PARTS) -> int:
    """Open a path of which a run may have replaced the last parts. Raises OSError."""
    count = min(replaceable_parts, len(path.parts) - 1) if path.is_absolute() else len(path.parts)
    first = len(path.parts) - count
    own = os.open(Path(*path.parts[:first]), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return _open_parts(own, path.parts[first:], flags)


def _open_parts(folder: int, parts: Sequence[str], flags: int) -> int:
    """Open the last part with the flags, and those before it as folders. Closes the folder. Raises OSError."""
    descriptor = folder
    for number, part in enumerate(parts, start=1):
        parent = descriptor
        try:
            descriptor = os.open(part, flags if number == len(parts) else _PASSED_THROUGH, dir_fd=parent)
        except OSError as error:
            wanted = "regular file" if number == len(parts) and not flags & os.O_DIRECTORY else "folder"
            _require_kind(error, part, wanted, parent)
            raise
        finally:
            os.close(parent)
    return descriptor


def _require_kind(error: OSError, name: str, wanted: str, parent: int) -> None:
    """Raise the OSError that says what was found where a file or a folder is wanted, if that is what the error is about."""
    if error.errno in _NOT_THE_KIND:
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except OSError:  # removed meanwhile
            return
        raise wrong_kind(mode, name, wanted) from error


def _require_artifact(descriptor: int, name: str) -> None:
    try:
        require_regular(descriptor, name)
    except OSError as error:
        raise _not_found(name, error) from error


@contextmanager
def _opened(path: Path, flags: int, replaceable_parts: int = _RUN_PARTS) -> Iterator[int | None]:
    """Open a file or folder of a run with these flags; None if it does not exist. Raises OSError."""
    try:
        descriptor = _open_path(path, flags, replaceable_parts)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _folder_below(root: int, name: str) -> Iterator[int | None]:
    """Open a folder below another one, by a path in it; None if there is none any more, or a link leads to it. Raises OSError.

    The kernel walks the path, which may have a thousand parts, and afterwards tells where it has arrived.
    """
    if not name:
        yield root
        return
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=root)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        yield None
        return
    try:
        yield descriptor if _path_of(descriptor) == f"{_path_of(root)}/{name.rstrip('/')}" else None
    finally:
        os.close(descriptor)


def _path_of(descriptor: int) -> str:
    """Return where an open folder lies, without links. Empty if that is too long to be told."""
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}").rstrip("/")  # noqa: PTH115 - no path of a file
    return ""


def _in_order(root: int, prefix: str, after: str, max_names: int, check: Callable[[], None]) -> Iterator[str]:
    """Yield the names of the files and folders in a folder, with the prefix, in their order, which is also that of all files
    below them. The name of a folder ends with `/`. Left out are files up to `after`, and folders that have no later ones.

    There may be millions, so no more than `max_names` are in memory; then the folder is looked through again. They are in one
    text: thousands of small ones, which a listing keeps until its next page, would leave gaps in memory between what stays.
    """
    after_here = after[len(prefix) :] if after.startswith(prefix) else ""
    max_bytes = MAX_NAME_BYTES - len(prefix.encode())
    count, last = max_names, ""
    while count == max_names:
        with _readable_folder_below(root, prefix) as entries:
            first = _first_names(entries, after_here, last, max_names, max_bytes, check)
        count, names = len(first), _BETWEEN.join([*first, ""])
        del first
        for last in _split(names):
            yield prefix + last


def _split(names: str) -> Iterator[str]:
    start = 0
    while (end := names.find(_BETWEEN, start)) >= 0:
        yield names[start:end]
        start = end + len(_BETWEEN)


def _first_names(
    entries: Iterable["os.DirEntry[str]"], after: str, last: str, max_names: int, max_bytes: int, check: Callable[[], None]
) -> list[str]:
    """Return the first names after `last` in their order. What can't be among them is passed over by its name alone."""
    first: list[str] = []
    bound = ""  # the last of so many names as are wanted; empty while there are fewer
    for number, entry in enumerate(entries):
        if not number % _CHECKED_ENTRIES:
            check()
        name = wire_name(entry.name)
        if (bound and name > bound) or (name <= last and not last.startswith(name)):
            continue
        found = _later_name(entry, name, after)
        if found > last and len(name.encode()) <= max_bytes:
            first.append(found)
        if len(first) == max_names + max_names // _SPARE:
            first.sort()  # quick: but for the last ones they are in order
            del first[max_names:]
            bound = first[-1]
    return sorted(first)[:max_names]


def _later_name(entry: "os.DirEntry[str]", name: str, after: str) -> str:
    """Return the name of a file after `after`, or, with `/`, of a folder that may have one; empty for anything else."""
    as_folder = f"{name}/"
    if as_folder > after or after.startswith(as_folder):
        if entry.is_dir(follow_symlinks=False):
            return as_folder
        if name > after and entry.is_file(follow_symlinks=False):
            return name
    return ""


@contextmanager
def _readable_folder_below(root: int, prefix: str) -> Iterator[Iterable["os.DirEntry[str]"]]:
    """Open a folder and yield its entries; none if it is below the root and the server may not read it. Raises OSError."""
    with ExitStack() as stack:
        entries: Iterable[os.DirEntry[str]] = ()
        try:
            descriptor = stack.enter_context(_folder_below(root, disk_name(prefix)))
            if descriptor is not None:
                entries = stack.enter_context(os.scandir(descriptor))
        except PermissionError:
            if not prefix:
                raise
        yield entries


def _status(root: int, name: str) -> os.stat_result | None:
    """Examine a file below a folder; None if it is not there any more, no regular file, or in a folder below in which the
    server may read names and nothing else."""
    parent, _, last = disk_name(name).rpartition("/")
    with suppress(FileNotFoundError, *([PermissionError] if parent else [])), _folder_below(root, parent) as descriptor:
        if descriptor is not None:
            status = os.stat(last, dir_fd=descriptor, follow_symlinks=False)
            return status if stat.S_ISREG(status.st_mode) else None
    return None


def _parts_within(folder: Path, path: Path) -> Sequence[str]:
    """Return the parts of a path below a folder. Raises OSError if it is not below."""
    if path.is_absolute() and path.is_relative_to(folder):
        path = path.relative_to(folder)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise OSError(errno.EXDEV, "it is outside the run's folder", str(path))
    return path.parts


def _parts(name: str) -> list[str]:
    parts = disk_name(name).split("/")
    if not name or any("\0" in part for part in parts) or any(part in ("", ".", "..") for part in parts):
        problem = (
            "must be a name from ListArtifacts: a relative path without `.`, `..` or empty parts" if name else "is required"
        )
        raise InvalidRequestError(violations=[FieldViolation("name", problem)])
    return parts


def _not_found(name: str, found: OSError | None = None) -> ArtifactNotFoundError:
    """Return the error for a name that is no file's. `found` says what there is instead."""
    what = f": {found.filename}: {found.strerror}" if found is not None and found.errno in _NOT_THE_KIND else ""
    return ArtifactNotFoundError(
        f"the job has no file {name!r}{what}",
        metadata={"resource_type": "evalrpc.v1.Artifact", "resource_name": name[:255]},
    )
