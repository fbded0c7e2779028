"""What a run may take of its machine: by rlimits on any machine, and by cgroups where the kernel has their controllers, such as
the one of `scripts/test-cgroup-limits`. What is tried on a folder only shows what is written where."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import FIRST_UID, PYTHON, needs_accounts
from limiting_cgroups import move_here, remove, unit_of_server
from running import SECONDS, Runs, ended

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Resources, RunAccount, RunKey, RunLimits
from evalrpc.executors.local.cgroups import MEMORY, PIDS, SERVER_CGROUP, Cgroups, RunCgroup, find_cgroups
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.limits import rlimits_of
from evalrpc.executors.local.run import LOCAL_NODE, LocalRun
from evalrpc.harnesses.base import Command, Exit

MIB = 1024 * 1024
LIMITS = RunLimits(memory_bytes=256 * MIB, processes=20)

ALLOCATES = "import sys; print('ready', flush=True); data = bytearray(int(sys.argv[1])); print('has it')"
FORKS = """
import os, sys, time
count = 0
try:
    while count < 100:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
finally:
    print(f"started {count}", flush=True)
"""
"""Starts up to 100 processes, and says how many it could."""


def start(runs: Runs, program: str, *arguments: str, limits: RunLimits, gpus: tuple[str, ...] = ()) -> LocalRun:
    python = sys.executable if runs.key.account is None else PYTHON
    command = Command((python, "-S", "-c", program, *arguments))
    return runs.keep(runs.executor.start(runs.key, command, Resources(LOCAL_NODE, gpus, limits)))


def started_count(runs: Runs) -> int:
    return int(runs.log().rpartition("started ")[2].split()[0])


# By rlimits.


def test_a_program_can_not_allocate_more_address_space_than_its_run_may_have(runs: Runs) -> None:
    handle = start(runs, ALLOCATES, str(2**31), limits=RunLimits(memory_bytes=512 * MIB))
    assert ended(handle) == Exit(code=1)
    assert "MemoryError" in runs.log()


def test_a_program_within_its_limits_is_left_alone(runs: Runs) -> None:
    assert ended(start(runs, ALLOCATES, str(64 * MIB), limits=RunLimits(512 * MIB, 100))) == Exit(code=0)
    assert "has it" in runs.log()


def test_a_run_with_gpus_has_no_limit_of_address_space(runs: Runs) -> None:
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_AS))"
    own = resource.getrlimit(resource.RLIMIT_AS)
    assert ended(start(runs, program, limits=RunLimits(512 * MIB), gpus=("0",))) == Exit(code=0)
    assert str(own) in runs.log()


def test_a_limit_is_never_above_that_of_the_server_itself() -> None:
    program = """
import resource
from evalrpc.executors.local import shim
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
shim.limit(resource.RLIMIT_NOFILE, 1000)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (60, 60)
shim.limit(resource.RLIMIT_NOFILE, 40)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (40, 40)
"""
    subprocess.run((sys.executable, "-c", program), check=True)


@needs_accounts
def test_the_runs_of_an_owner_can_not_start_more_processes_together_than_one_may_have(key: RunKey, tmp_path: Path) -> None:
    account = RunAccount(FIRST_UID, (), tmp_path)
    runs = Runs(RunKey(key.job_id, key.attempt, key.attempt_dir, account=account))
    try:
        handle = start(runs, FORKS, limits=RunLimits(processes=20))
        assert ended(handle) == Exit(code=1)
        assert "BlockingIOError" in runs.log()
        assert started_count(runs) < 20
    finally:
        runs.close()


@pytest.mark.parametrize(
    ("gpus", "controllers", "has_account", "expected"),
    [
        ((), set(), True, {resource.RLIMIT_AS, resource.RLIMIT_NPROC}),
        ((), set(), False, {resource.RLIMIT_AS}),
        (("0",), set(), True, {resource.RLIMIT_NPROC}),
        ((), {MEMORY}, True, {resource.RLIMIT_NPROC}),
        ((), {PIDS}, True, {resource.RLIMIT_AS}),
        ((), {MEMORY, PIDS}, True, set()),
    ],
)
def test_rlimits_bind_only_what_they_can_and_no_cgroup_does(
    gpus: tuple[str, ...], controllers: set[str], expected: set[int], *, has_account: bool
) -> None:
    assert {of for of, _ in rlimits_of(Resources("", gpus, LIMITS), controllers, has_account=has_account)} == expected
    assert rlimits_of(Resources("", gpus), controllers, has_account=has_account) == []


# On a folder.


def fake_limits(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("memory.max", "memory.oom.group", "memory.swap.max", "pids.max"):
        (folder / name).touch()


def written(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("limits", "controllers", "expected"),
    [
        (
            LIMITS,
            {MEMORY, PIDS},
            {"memory.max": "268435456", "memory.oom.group": "1", "memory.swap.max": "0", "pids.max": "21"},
        ),
        (
            RunLimits(),
            {MEMORY, PIDS},
            {"memory.max": "max", "memory.oom.group": "0", "memory.swap.max": "max", "pids.max": "max"},
        ),
        (LIMITS, {PIDS}, {"memory.max": "", "memory.oom.group": "", "memory.swap.max": "", "pids.max": "21"}),
        (LIMITS, set(), {"memory.max": "", "memory.oom.group": "", "memory.swap.max": "", "pids.max": ""}),
    ],
    ids=["limited", "not limited", "one controller", "no controllers"],
)
def test_limits_are_written_where_there_is_a_controller(
    tmp_path: Path, limits: RunLimits, controllers: set[str], expected: dict[str, str]
) -> None:
    fake_limits(tmp_path / "evalrpc-job-1")
    assert written(Cgroups(tmp_path, tmp_path, controllers).create("job", 1, limits).path) == expected


def test_a_run_whose_limits_can_not_be_set_does_not_start(runs: Runs, tmp_path: Path) -> None:
    runs.executor = LocalExecutor(cgroups=Cgroups(tmp_path, tmp_path, {MEMORY}))
    with pytest.raises(RunFailedError, match="could not be started") as caught:
        start(runs, "print('it runs')", limits=LIMITS)
    assert caught.value.job_error.reason == "START_FAILED"
    assert not runs.key.log_path.exists()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\n", None),
        ("low 0\nhigh 0\nmax 9\noom 2\noom_kill 0\n", None),
        ("", None),
        (
            "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n",
            "the run needed more than the 268435456 bytes of memory that this server allows (max_run_memory_bytes)",
        ),
        (
            "low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n",
            "the run was killed since the memory of the server's machine, or of its service, was exhausted",
        ),
    ],
    ids=["pressure", "nothing killed", "no controller", "its own limit", "not its own limit"],
)
def test_why_the_kernel_killed_a_run_is_read(tmp_path: Path, events: str, message: str | None) -> None:
    (tmp_path / "memory.max").write_text("268435456\n")
    (tmp_path / "memory.events").write_text(events)
    assert RunCgroup(tmp_path).find_memory_kill() == message


# On a real hierarchy.


@pytest.fixture(scope="module")
def unit() -> Iterator[Path]:
    with unit_of_server() as unit:
        yield unit


@pytest.fixture
def cgroups(unit: Path) -> Cgroups:
    found, detail = find_cgroups("auto")
    assert found is not None
    assert detail == f"every run has one of its own below {unit}"
    return found


@pytest.fixture
def limited(runs: Runs, cgroups: Cgroups) -> Runs:
    runs.executor = LocalExecutor({**os.environ}, cgroups=cgroups)
    return runs


def failure(handle: LocalRun) -> RunFailedError:
    with pytest.raises(RunFailedError) as caught:
        handle.exit_status()
    return caught.value


MEMORY_MESSAGE = "the run needed more than the 268435456 bytes of memory that this server allows (max_run_memory_bytes)"


def test_a_server_beside_its_runs_can_limit_them(cgroups: Cgroups) -> None:
    assert cgroups.controllers == {MEMORY, PIDS}


def test_a_trial_leaves_the_controllers_as_they_were(unit: Path) -> None:
    control = unit / "cgroup.subtree_control"
    control.write_text("-memory -pids")
    assert find_cgroups("auto", is_trial=True).cgroups.controllers == {MEMORY, PIDS}  # type: ignore[union-attr]
    assert control.read_text().split() == []


def test_a_server_in_a_cgroup_of_another_name_says_why_it_can_not_limit_runs(unit: Path) -> None:
    inside = unit / "other"
    inside.mkdir()
    move_here(inside)
    try:
        (unit / "cgroup.subtree_control").write_text("+memory +pids")
        found, detail = find_cgroups("auto")
        assert found is not None
        assert found.controllers == set()
        for name in (MEMORY, PIDS):
            assert f"can't limit {name}: {inside} has processes itself; start the server in a cgroup below it" in detail
    finally:
        move_here(unit / SERVER_CGROUP)
        remove(inside)


def test_a_run_that_needs_more_memory_is_killed_as_a_whole_and_says_so(limited: Runs, cgroups: Cgroups) -> None:
    program = f"import os, time\nif os.fork() == 0: time.sleep(1000)\n{ALLOCATES}"
    handle = start(limited, program, str(512 * MIB), limits=LIMITS)
    assert handle.wait(SECONDS)
    handle.end(0.0)
    error = failure(handle).job_error
    assert (error.reason, error.message) == ("OUT_OF_MEMORY", MEMORY_MESSAGE)
    assert cgroups.find(limited.key.job_id, 1) is None
    assert "has it" not in limited.log()


def test_a_run_that_is_killed_while_no_server_is_there_says_so_too(limited: Runs, cgroups: Cgroups, tmp_path: Path) -> None:
    waits = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    handle = start(limited, waits + ALLOCATES, str(512 * MIB), limits=LIMITS)
    limited.executor.close()
    (tmp_path / "go").touch()
    assert handle.wait(SECONDS)
    found = LocalExecutor(cgroups=cgroups).find(limited.key)
    assert found is not None
    limited.keep(found).end(0.0)
    error = failure(found).job_error
    assert (error.reason, error.message) == ("OUT_OF_MEMORY", MEMORY_MESSAGE)


def test_a_run_with_gpus_is_limited_by_its_cgroup_too(limited: Runs) -> None:
    handle = start(limited, ALLOCATES, str(512 * MIB), limits=LIMITS, gpus=("0",))
    assert handle.wait(SECONDS)
    handle.end(0.0)
    assert failure(handle).job_error.reason == "OUT_OF_MEMORY"


def test_a_run_within_its_memory_is_left_alone(limited: Runs) -> None:
    handle = start(limited, ALLOCATES, str(64 * MIB), limits=LIMITS)
    assert handle.wait(SECONDS)
    handle.end(0.0)
    assert handle.exit_status() == Exit(code=0)
    assert "has it" in limited.log()


def test_a_run_can_not_start_more_processes_than_it_may_have(limited: Runs) -> None:
    handle = start(limited, FORKS, limits=LIMITS)
    assert ended(handle) == Exit(code=1)
    assert started_count(limited) == LIMITS.processes - 1, "besides the program itself"
    handle.end(0.0)


def test_what_one_run_takes_is_not_counted_for_another(limited: Runs, cgroups: Cgroups, tmp_path: Path) -> None:
    other = Runs(RunKey(f"{limited.key.job_id[:-4]}abcd", 1, tmp_path / "other"))
    other.executor = limited.executor
    try:
        neighbour = start(
            other, f"{ALLOCATES}; sys.stdout.flush(); __import__('time').sleep(1000)", str(128 * MIB), limits=LIMITS
        )
        other.wait_for_log("has it")
        handle = start(limited, ALLOCATES, str(512 * MIB), limits=LIMITS)
        assert handle.wait(SECONDS)
        handle.end(0.0)
        assert failure(handle).job_error.reason == "OUT_OF_MEMORY"
        assert not neighbour.wait(0)
    finally:
        other.close()
