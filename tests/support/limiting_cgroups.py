"""A cgroup as a unit of systemd has it with `DelegateSubgroup=evalrpc-server`, where the kernel has what limits runs there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import eventually

from evalrpc.executors.local.cgroups import MEMORY, PIDS, SERVER_CGROUP

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def unit_of_server() -> Iterator[Path]:
    """Have this process, and the servers that it starts, where a server is to be started, and in the end where it was before.
    Yields the cgroup of the unit."""
    controllers = _ROOT / "cgroup.controllers"
    if not {MEMORY, PIDS} <= set(controllers.read_text().split() if controllers.exists() else ()):
        pytest.skip("the kernel has no controllers memory and pids of cgroup version 2: see scripts/test-cgroup-limits")
    try:
        (_ROOT / "cgroup.subtree_control").write_text(f"+{MEMORY} +{PIDS}")
        unit = _ROOT / f"evalrpc-test-{os.getpid()}"
        (unit / SERVER_CGROUP).mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"this account can't make cgroups of version 2: {error.strerror}")
    before = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    move_here(unit / SERVER_CGROUP)
    yield unit
    move_here(_ROOT / before.lstrip("/"))
    remove(unit / SERVER_CGROUP)
    remove(unit)


def move_here(cgroup: Path) -> None:
    """Move this process into a cgroup."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def remove(cgroup: Path) -> None:
    """Remove a cgroup once its last process has gone."""
    eventually(lambda: not (cgroup / "cgroup.procs").read_text())
    cgroup.rmdir()
