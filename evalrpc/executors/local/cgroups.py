"""A cgroup (version 2) for each run, where the server may make some.

No process leaves a cgroup by forking, by leaving its session or its parent, or by changing its environment. So `cgroup.kill`
ends a run at once and as a whole, and `cgroup.events` proves that nothing is left of it. The shim of a run enters the cgroup
before it starts a program. The cgroups of runs lie below the server's own one, as with `Delegate=yes` in a unit of systemd, and
outlive it.

Where the controllers `memory` and `pids` can be enabled for them, they also limit what a run takes. The kernel enables none
below a cgroup that has processes of its own. So for that the server is to be started in a cgroup named `evalrpc-server`, as by
`DelegateSubgroup=evalrpc-server` in the unit, and those of runs lie beside it. It does not move there by itself: once they are
enabled, and runs go on, systemd could start no other server in the cgroup of the unit.

A process that may write to the cgroups, such as a run with the server's own account, can move itself to another cgroup. So the
search of /proc stays: whoever ends a run uses both.
"""

import errno
import os
import re
import subprocess
import time
import uuid
from collections.abc import Generator, Iterator, Sequence, Set
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.executors.base import NO_LIMITS, RunLimits
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.tree_walk import folders_from
from evalrpc.files.trees import remove_tree

MEMORY: Final = "memory"
"""The controller that limits memory."""
PIDS: Final = "pids"
"""The controller that limits the number of processes and threads."""
SERVER_CGROUP: Final = "evalrpc-server"
"""The name of a server's own cgroup, if those of its runs are to lie beside it."""

_PREFIX: Final = "evalrpc-"
_NAME: Final = re.compile(rf"{_PREFIX}(?P<job_id>.+)-[0-9]+", re.DOTALL)
_PARENT: Final = f"{_PREFIX}parent."
_NEEDED: Final = ("cgroup.kill", "cgroup.events", "cgroup.procs")
_ENTER: Final = 'echo 0 > "$0/cgroup.procs"'
_SUBTREE_CONTROL: Final = "cgroup.subtree_control"
_NO_LIMIT: Final = "max"
_SHIM_PROCESSES: Final = 1
_PROBE_LIMITS: Final = RunLimits(2**30, 2**10)
_PROBE_SECONDS: Final = 10.0
_REMOVALS: Final = 50
_REMOVAL_SECONDS: Final = 0.01
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)  # the last: its processes are listed by the cgroup above
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class RunCgroup:
    """The cgroup of a run, or of a parent of warm runs, with all cgroups below it. Every method raises OSError; a cgroup that
    is gone has no processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_populated(self) -> bool:
        """Tell whether it has living processes."""
        return "populated 0" not in _read(self.path / "cgroup.events", "populated 0").splitlines()

    def processes(self) -> list[int]:
        """Return the ids of its processes. Those of another namespace, which this process can't see, are left out."""
        with closing(_walk(self.path)) as cgroups:
            found = [_read("cgroup.procs", dir_fd=cgroup).split() for cgroup, _ in cgroups]
        return [pid for ids in found for pid in map(int, ids) if pid]

    def memory_bytes(self) -> int | None:
        """Return how much memory is charged to it; None where it has no controller that knows."""
        current = _read(self.path / "memory.current")
        return int(current) if current else None

    def add(self, pid: int) -> None:
        """Move a process here. What that has forked already stays where it is."""
        _write(self.path / "cgroup.procs", str(pid))

    def kill(self) -> None:
        """Kill all its processes, also those that are forked meanwhile."""
        with suppress(FileNotFoundError):
            _write(self.path / "cgroup.kill", "1")

    def find_memory_kill(self) -> str | None:
        """Say for people why the kernel has killed processes of it for want of memory. None: it has killed none."""
        events = dict(line.split() for line in _read(self.path / "memory.events").splitlines())
        if not int(events.get("oom_kill", 0)):
            return None
        if not int(events.get("oom", 0)):  # it had not reached a limit of its own
            return "the run was killed since the memory of the server's machine, or of its service, was exhausted"
        limit = _read(self.path / "memory.max").strip()
        return f"the run needed more than the {limit} bytes of memory that this server allows (max_run_memory_bytes)"

    def remove(self) -> None:
        """Remove it. It must not be populated."""
        remove_tree(self.path)  # the files of a cgroup, which nobody can remove, go with it
        if self.path.exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self.path))

    def remove_killed(self) -> None:
        """Kill all its processes, and remove it once they have ended, unless that takes long."""
        self.kill()
        _remove_soon(self.path)


class Cgroups:
    """Makes and finds the cgroups of runs. May be used from several threads. Every method raises OSError."""

    def __init__(self, folder: Path, mount: Path, controllers: Set[str] = frozenset()) -> None:
        self.controllers = controllers
        """What they can limit: some of MEMORY and PIDS."""
        self._folder = folder
        self._mount = mount

    def create(self, job_id: str, attempt: int, limits: RunLimits = NO_LIMITS) -> RunCgroup:
        """Make the cgroup of a run, unless it is there, and limit it as far as the controllers can."""
        path = self._folder / _name(job_id, attempt)
        path.mkdir(mode=0o755, exist_ok=True)
        _set_limits(path, limits, self.controllers)
        return RunCgroup(path)

    def create_for_parent(self, limits: RunLimits, owner: str) -> RunCgroup:
        """Make a cgroup for a parent of warm runs, which may take as much as a run. `owner` names the server."""
        path = self._folder / f"{_PARENT}{owner}.{uuid.uuid4().hex}"
        path.mkdir(mode=0o755)
        try:
            _set_limits(path, limits, self.controllers)
        except OSError:
            path.rmdir()
            raise
        return RunCgroup(path)

    def cgroups_of_parents(self) -> Iterator[tuple[str, RunCgroup]]:
        """Yield the cgroups of parents, each with its `owner`."""
        for entry in os.scandir(self._folder):
            if entry.name.startswith(_PARENT):
                yield entry.name.removeprefix(_PARENT).rpartition(".")[0], RunCgroup(Path(entry.path))

    def find(self, job_id: str, attempt: int) -> RunCgroup | None:
        """Find the cgroup of a run by its name, also if it was made by an earlier server, whose cgroup was another one."""
        name = _name(job_id, attempt)
        if (self._folder / name).is_dir():
            return RunCgroup(self._folder / name)
        with closing(_walk(self._mount)) as cgroups:
            return next((RunCgroup(Path(_path_of(cgroup), name)) for cgroup, names in cgroups if name in names), None)

    def jobs_with_processes(self) -> set[str]:
        """Return the ids of the jobs whose cgroups, where this server makes them, have living processes."""
        matches = {entry.path: _NAME.fullmatch(entry.name) for entry in os.scandir(self._folder) if entry.is_dir()}
        return {match["job_id"] for path, match in matches.items() if match and RunCgroup(Path(path)).is_populated()}


class CgroupSupport(NamedTuple):
    """What a server can do with cgroups."""

    cgroups: Cgroups | None
    """None: it has to do without."""
    detail: str
    """Where they are, or why there are none."""


def find_cgroups(setting: str, own_process: Path = Path("/proc/self"), *, is_trial: bool = False) -> CgroupSupport:
    """Find out whether runs can have cgroups, and with which limits, by making one and letting a process enter it. `setting`:
    `auto` or `off`. The controllers that this takes stay enabled, except in a trial."""
    if setting == "off":
        return CgroupSupport(None, "not used, by the setting cgroups")
    try:
        places = list(_places(own_process))
        if not places:
            return CgroupSupport(None, "not used: cgroup v2 is not mounted here")
        own, mount = places[0]
        folder = own.parent if own.name == SERVER_CGROUP and own != mount else own
        controllers, lacks = _probe_with_controllers(folder, is_trial=is_trial)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        return CgroupSupport(None, f"not used: this account can't make cgroups of version 2 ({what})")
    detail = "; ".join([f"every run has one of its own below {folder}", *lacks])
    return CgroupSupport(Cgroups(folder, mount, controllers), detail)


def _walk(top: Path) -> Generator[tuple[int, Sequence[str]], None, None]:
    """Yield each cgroup of a hierarchy as an open folder, with the names of those in it. Parts of it may vanish or be closed to
    this account, and a run may have made it deeper than any path is long. Raises OSError for a shortage."""
    with closing(folders_from(top)) as cgroups:
        for cgroup, inner in cgroups:
            inner += _names_in(cgroup)
            yield cgroup, tuple(inner)


def _names_in(cgroup: int) -> list[str]:
    """Return the names of the cgroups in one. Raises OSError for a shortage."""
    try:
        with os.scandir(cgroup) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:  # it is gone
        require_no_shortage(error)
        return []


def _path_of(cgroup: int) -> str:
    return os.readlink(f"/proc/self/fd/{cgroup}")  # noqa: PTH115 - no path of a file


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


def _probe_with_controllers(folder: Path, *, is_trial: bool) -> tuple[Set[str], list[str]]:
    """Enable the controllers, and probe whether cgroups can be made. Return which controllers these have, and why not others.
    Raises OSError, SubprocessError, ValueError."""
    before = _enabled(folder)
    lacks = [f"they can't limit {name}: {why}" for name in (MEMORY, PIDS) if (why := _enable(name, folder))]
    try:
        controllers = _enabled(folder) & {MEMORY, PIDS}
        _probe(folder, controllers)
    finally:
        if is_trial:
            for name in _enabled(folder) - before:
                _write(folder / _SUBTREE_CONTROL, f"-{name}")
    return controllers, lacks


def _enabled(folder: Path) -> Set[str]:
    """Return the controllers that cgroups in this folder have."""
    return set(_read(folder / _SUBTREE_CONTROL).split())


def _enable(controller: str, folder: Path) -> str:
    """Enable a controller for the cgroups in this folder. Return why that is impossible, or nothing."""
    if controller in _enabled(folder):
        return ""
    if controller not in _read(folder / "cgroup.controllers").split():
        return f"{folder} has no controller {controller} of version 2"
    # The kernel would enable `pids` even so, but then let no process into a cgroup below.
    if not _is_root(folder) and _read(folder / "cgroup.procs"):
        return f"{folder} has processes itself; start the server in a cgroup below it that is named {SERVER_CGROUP}"
    try:
        _write(folder / _SUBTREE_CONTROL, f"+{controller}")
    except OSError as error:
        return f"{folder / _SUBTREE_CONTROL} can't be written ({error.strerror})"
    return ""


def _is_root(folder: Path) -> bool:
    """Tell whether a cgroup is the root of all, whose processes stand in the way of nothing."""
    return not (folder / "cgroup.events").exists()


def _set_limits(path: Path, limits: RunLimits, controllers: Set[str]) -> None:
    """Limit a cgroup as far as its controllers can. Past its memory, all its processes are killed at once: what would be left
    of a run could only hang or give wrong results."""
    if MEMORY in controllers:
        _write(path / "memory.max", str(limits.memory_bytes or _NO_LIMIT))
        _write(path / "memory.oom.group", "1" if limits.memory_bytes else "0")
        with suppress(FileNotFoundError):  # a kernel without swap
            _write(path / "memory.swap.max", "0" if limits.memory_bytes else _NO_LIMIT)
    if PIDS in controllers:
        _write(path / "pids.max", str(limits.processes + _SHIM_PROCESSES) if limits.processes else _NO_LIMIT)


def _probe(folder: Path, controllers: Set[str]) -> None:
    """Make a cgroup with limits, let a process enter it, and remove it. Raises OSError, SubprocessError, ValueError."""
    path = folder / f"{_PREFIX}probe-{uuid.uuid4()}"
    path.mkdir()
    try:
        missing = [name for name in _NEEDED if not (path / name).exists()]
        if missing:
            raise ValueError(f"the kernel has no {missing[0]}")
        _set_limits(path, _PROBE_LIMITS, controllers)
        entered = subprocess.run(
            ("/bin/sh", "-c", _ENTER, str(path)), capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        if entered.returncode:
            raise ValueError(entered.stderr.strip().rpartition(": ")[2] or "a process can't enter one")
        _write(path / "cgroup.kill", "1")
    finally:
        _remove_soon(path)


def _remove_soon(path: Path) -> None:
    """Remove a cgroup whose last process has just ended, as soon as the kernel takes it for empty."""
    for _ in range(_REMOVALS):
        with suppress(OSError):
            path.rmdir()
            return
        time.sleep(_REMOVAL_SECONDS)


def _read(path: Path | str, if_gone: str = "", dir_fd: int | None = None) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)) as file:  # noqa: PTH123 - of a descriptor
            return file.read()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return if_gone


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
