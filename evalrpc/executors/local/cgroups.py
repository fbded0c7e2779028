"""A cgroup (version 2) for each run, where the server may make some.

No process leaves a cgroup by forking, by leaving its session or its parent, or by changing its environment. So `cgroup.kill`
ends a run at once and as a whole, and `cgroup.events` proves that nothing is left of it. The shim of a run enters the cgroup
before it starts a program. The cgroups of runs lie below the server's own one, as with `Delegate=yes` in a unit of systemd, and
outlive it.

A process that may write to the cgroups, such as a run with the server's own account, can move itself to another cgroup. So the
search of /proc stays: whoever ends a run uses both.
"""

import errno
import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.files.errnos import require_no_shortage

_PREFIX: Final = "evalrpc-"
_NAME: Final = re.compile(rf"{_PREFIX}(?P<job_id>.+)-[0-9]+", re.DOTALL)
_NEEDED: Final = ("cgroup.kill", "cgroup.events", "cgroup.procs")
_ENTER: Final = 'echo 0 > "$0/cgroup.procs"'
_PROBE_SECONDS: Final = 10.0
_REMOVALS: Final = 50
_REMOVAL_SECONDS: Final = 0.01
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)  # the last: its processes are listed by the cgroup above
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class RunCgroup:
    """The cgroup of a run, with all cgroups below it. Every method raises OSError; a cgroup that is gone has no processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_populated(self) -> bool:
        """Tell whether it has living processes."""
        return "populated 0" not in _read(self.path / "cgroup.events", "populated 0").splitlines()

    def processes(self) -> list[int]:
        """Return the ids of its processes. Those of another namespace, which this process can't see, are left out."""
        found = (_read(Path(folder, "cgroup.procs")).split() for folder, _, _ in _walk(self.path))
        return [pid for ids in found for pid in map(int, ids) if pid]

    def kill(self) -> None:
        """Kill all its processes, also those that are forked meanwhile."""
        with suppress(FileNotFoundError):
            _write(self.path / "cgroup.kill", b"1")

    def remove(self) -> None:
        """Remove it. It must not be populated."""
        for folder, _, _ in os.walk(self.path, topdown=False):
            with suppress(FileNotFoundError):
                Path(folder).rmdir()


class Cgroups:
    """Makes and finds the cgroups of runs. May be used from several threads. Every method raises OSError."""

    def __init__(self, own: Path, mount: Path) -> None:
        self.own = own
        """The folder of the server's own cgroup."""
        self._mount = mount

    def create(self, job_id: str, attempt: int) -> RunCgroup:
        """Make the cgroup of a run, unless it is there."""
        path = self.own / _name(job_id, attempt)
        path.mkdir(mode=0o755, exist_ok=True)
        return RunCgroup(path)

    def find(self, job_id: str, attempt: int) -> RunCgroup | None:
        """Find the cgroup of a run by its name, also if it was made by an earlier server, whose cgroup was another one."""
        name = _name(job_id, attempt)
        if (self.own / name).is_dir():
            return RunCgroup(self.own / name)
        return next((RunCgroup(Path(folder, name)) for folder, names, _ in _walk(self._mount) if name in names), None)

    def jobs_with_processes(self) -> set[str]:
        """Return the ids of the jobs whose cgroups, below the server's own one, have living processes."""
        matches = {entry.path: _NAME.fullmatch(entry.name) for entry in os.scandir(self.own) if entry.is_dir()}
        return {match["job_id"] for path, match in matches.items() if match and RunCgroup(Path(path)).is_populated()}


class CgroupSupport(NamedTuple):
    """What a server can do with cgroups."""

    cgroups: Cgroups | None
    """None: it has to do without."""
    detail: str
    """Where they are, or why there are none."""


def find_cgroups(setting: str, own_process: Path = Path("/proc/self")) -> CgroupSupport:
    """Find out whether runs can have cgroups, by making one and letting a process enter it. `setting`: `auto` or `off`."""
    if setting == "off":
        return CgroupSupport(None, "not used, by the setting cgroups")
    try:
        places = list(_places(own_process))
        if not places:
            return CgroupSupport(None, "not used: cgroup v2 is not mounted here")
        own, mount = places[0]
        _probe(own)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        return CgroupSupport(None, f"not used: this account can't make cgroups of version 2 ({what})")
    return CgroupSupport(Cgroups(own, mount), f"every run has one of its own below {own}")


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a hierarchy, of which parts may vanish or be closed to this account. Raises OSError for a shortage."""
    return os.walk(folder, onerror=require_no_shortage)


def _name(job_id: str, attempt: int) -> str:
    return f"{_PREFIX}{job_id}-{attempt}"


def _places(own_process: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of this process's own cgroup, and where that hierarchy is mounted. Raises OSError."""
    lines = (own_process / "cgroup").read_text().splitlines()
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return
    for line in (own_process / "mountinfo").read_text().splitlines():
        mounted, _, kind = line.partition(" - ")
        if kind.split()[0] == "cgroup2":
            root, mount = map(_unescaped, mounted.split()[3:5])
            if Path(own).is_relative_to(root):
                yield Path(mount, Path(own).relative_to(root)), Path(mount)


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _probe(own: Path) -> None:
    """Make a cgroup, let a process enter it, and remove it. Raises OSError, SubprocessError, ValueError."""
    path = own / f"{_PREFIX}probe-{uuid.uuid4()}"
    path.mkdir()
    try:
        missing = [name for name in _NEEDED if not (path / name).exists()]
        if missing:
            raise ValueError(f"the kernel has no {missing[0]}")
        entered = subprocess.run(
            ("/bin/sh", "-c", _ENTER, str(path)), capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        if entered.returncode:
            raise ValueError(entered.stderr.strip().rpartition(": ")[2] or "a process can't enter one")
        _write(path / "cgroup.kill", b"1")
    finally:
        _remove_soon(path)


def _remove_soon(path: Path) -> None:
    """Remove a cgroup whose last process has just ended, as soon as the kernel takes it for empty."""
    for _ in range(_REMOVALS):
        with suppress(OSError):
            path.rmdir()
            return
        time.sleep(_REMOVAL_SECONDS)


def _read(path: Path, if_gone: str = "") -> str:
    try:
        return path.read_text()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return if_gone


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
