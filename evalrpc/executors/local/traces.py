"""Reserve space for what the shim of a run leaves in `attempt_dir/run`, and read it.

A run may write there too. So only what a shim would write is believed of `exit`: from the first other line on, nothing is known
of how the run ended. That no process is left is believed only where nothing better is known. Of `pid` only its presence counts:
it says that the run has begun, and a shim is recognised by itself (`shims.py`).
"""

import errno
import json
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.executors.local.shim import EXIT_FILE, NONE_LEFT, PID_FILE, sync, write_pid
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.handover import make_passable
from evalrpc.files.opening import open_regular_file
from evalrpc.files.private import make_private_folder

TRACES_DIR: Final = "run"
DEVICES_FILE: Final = "devices.json"
WARM_FILE: Final = "warm"

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # see `evalrpc.files.opening`

_PRIVATE_MODE: Final = 0o600
_OF_SHIM_MODE: Final = 0o620

_UID_BYTES: Final = 10
_STEP_BYTES: Final = 64
_LEAST_BYTES: Final = 4096  # one block, which also holds the reason why a program could not be started
_MAX_EXITS_BYTES: Final = 4 * 1024 * 1024
_MAX_STEPS: Final = 2000
"""More than any run has. A run may write a million lines here, and they are read again and again."""
_STEP: Final = re.compile(rb"(?P<log_size>\d{1,18}) (?:code (?P<code>\d{1,3})|signal (?P<signal>\d{1,3})|error (?P<error>.*))")
_NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class StepEnd(NamedTuple):
    """How a step ended. One of the last three fields is set."""

    log_size_bytes: int
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    """Why it could not be started."""


class Exits(NamedTuple):
    """How the finished steps ended."""

    steps: list[StepEnd]
    none_left: bool
    """Whether the shim has seen that no process of the run is left."""


def traces_dir(attempt_dir: Path) -> Path:
    """Return the folder of the traces of an attempt's run."""
    return attempt_dir / TRACES_DIR


def make_room(folder: Path, step_count: int) -> None:
    """Make the folder and preallocate what the shim will write at the end. A disk that is full by then does not lose how the
    run ended, unless its file system can't preallocate.

    Raises OSError, also if the disk is full already.
    """
    make_private_folder(folder)
    descriptor = os.open(folder / EXIT_FILE, _CREATE, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, max(_LEAST_BYTES, _STEP_BYTES * (step_count + 1)))
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_devices(folder: Path, devices: Mapping[str, int | None]) -> None:
    """Record which devices a run holds, and how many bytes of each were in use before it. Without this record, as on a full
    disk, a later server only can't tell whether their memory was freed."""
    with suppress(OSError), open(os.open(folder / DEVICES_FILE, _CREATE | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
        file.write(json.dumps(devices))


def read_devices(folder: Path) -> Mapping[str, int | None]:
    """Read what `write_devices` wrote; empty if missing or malformed. Raises OSError, as `read_exits`."""
    try:
        devices = json.loads(_read(folder / DEVICES_FILE))
    except (ValueError, RecursionError):
        return {}
    is_sound = isinstance(devices, dict) and all(used is None or isinstance(used, int) for used in devices.values())
    return devices if is_sound else {}


def note_warm(folder: Path, uid: int | None) -> None:
    """Record that a run is about to be forked from a parent, and which account its shim will have. Raises OSError."""
    with open(os.open(folder / WARM_FILE, _CREATE | os.O_TRUNC, _PRIVATE_MODE), "w") as file:  # noqa: PTH123
        file.write("" if uid is None else str(uid))


def forget_warm(folder: Path) -> None:
    """Record that it was not. Raises OSError."""
    (folder / WARM_FILE).unlink(missing_ok=True)


def was_warm(folder: Path) -> bool:
    """Tell whether `note_warm` was called."""
    return (folder / WARM_FILE).exists()


def uid_of_shim(folder: Path) -> int | None:
    """Return the account that `note_warm` recorded; None: this one's. Raises OSError, as `read_exits`."""
    uid = _read(folder / WARM_FILE, _UID_BYTES)
    return int(uid) if uid.isdigit() else None


def open_to_account(folder: Path, log_path: Path, uid: int) -> None:
    """Let a shim with another account write what it has to leave: how its steps end, and the log. Both stay this account's, in
    folders in which the other one can make and remove nothing. Raises OSError."""
    make_passable(folder)
    for path in (folder / EXIT_FILE, log_path):
        _set_rights(path, _CREATE, uid, _OF_SHIM_MODE)


def close_to_account(folder: Path, log_path: Path) -> None:
    """Take both back. Raises OSError."""
    for path in (folder / EXIT_FILE, log_path):
        with suppress(FileNotFoundError):
            _set_rights(path, _CREATE & ~os.O_CREAT, os.getegid(), _PRIVATE_MODE)


def remove_traces(folder: Path, log_path: Path) -> None:
    """Remove both, so that whoever has opened them can write to nothing that counts. Raises OSError."""
    for path in (folder / EXIT_FILE, log_path):
        path.unlink(missing_ok=True)


def note_pid(folder: Path, pid: int) -> None:
    """Record that a run has begun, in place of a shim that can't. Without this record, as on a full disk, its other traces say
    so."""
    path = str(folder / PID_FILE)
    with suppress(OSError):
        if write_pid(path, pid) is None:
            sync(path)


def _set_rights(path: Path, flags: int, gid: int, mode: int) -> None:
    descriptor = os.open(path, flags, _PRIVATE_MODE)
    try:
        os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def has_pid(folder: Path) -> bool:
    """Tell whether the shim of a run has left its process id. Raises OSError, as `read_exits`."""
    return _may_exist(folder / PID_FILE)


def has_output(folder: Path, log_path: Path, *, has_log: bool) -> bool:
    """Tell whether a run has left anything else, as it may have removed the process id. `has_log`: whether its log is there
    before it begins, and so says nothing while it is empty. Raises OSError, as `read_exits`."""
    has_printed = bool(_read(log_path, 1)) if has_log else _may_exist(log_path)
    return has_printed or _read(folder / EXIT_FILE)[:1] not in (b"", b"\0")


def read_exits(folder: Path) -> Exits:
    """Read how the steps of a run ended. Raises OSError if the server is temporarily short of a resource."""
    steps: list[StepEnd] = []
    for line in _read(folder / EXIT_FILE).partition(b"\0")[0].split(b"\n", _MAX_STEPS)[:-1]:
        if line == NONE_LEFT.encode():
            return Exits(steps, none_left=True)
        end = _parse_step(line)
        if end is None:
            break
        steps.append(end)
    return Exits(steps, none_left=False)


def _parse_step(line: bytes) -> StepEnd | None:
    match = _STEP.fullmatch(line)
    if match is None:
        return None
    log_size_bytes = int(match["log_size"])
    if match["code"] is not None:
        code = int(match["code"])
        return StepEnd(log_size_bytes, code=code) if code <= 0xFF else None
    if match["signal"] is not None:
        number = int(match["signal"])
        return StepEnd(log_size_bytes, signal=number) if 0 < number < signal.NSIG else None
    return StepEnd(log_size_bytes, error=match["error"].decode(errors="replace"))


def _read(path: Path, size: int = _MAX_EXITS_BYTES) -> bytes:
    """Read a file; empty if there is none, or if the run has put something there that can't be read. Raises OSError for a
    shortage of the server and for a failing disk, which say nothing about the run."""
    try:
        with open_regular_file(path) as descriptor:
            return b"" if descriptor is None else os.pread(descriptor, size, 0)
    except OSError as error:
        require_no_shortage(error)
        return b""


def _may_exist(path: Path) -> bool:
    """Tell whether there is a file, or anything else; True if that can't be determined. Raises OSError, as `read_exits`."""
    try:
        with open_regular_file(path) as descriptor:
            return descriptor is not None
    except OSError as error:
        require_no_shortage(error)
        return True
