"""Cgroups of runs: found out, made, and what they prove. The logic is tried on a folder that looks like a hierarchy of cgroups,
and what only a kernel can show on a real one, where this account may make cgroups."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from deep_folders import make_folders_below
from processes_of_tests import is_alive
from running import CLEANING_UP, SECONDS, Runs, ended
from waiting import eventually

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import NO_LIMITS, RunKey
from evalrpc.executors.local import run
from evalrpc.executors.local.cgroups import MEMORY, Cgroups, RunCgroup, find_cgroups
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.harnesses.base import Exit

REAL = find_cgroups("auto").cgroups
needs_cgroups = pytest.mark.skipif(REAL is None, reason="this account can't make cgroups of version 2")

# On a folder.


def fake(folder: Path, processes: str = "", populated: int = 0) -> RunCgroup:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text(processes)
    (folder / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    (folder / "cgroup.kill").touch()
    return RunCgroup(folder)


def proc(folder: Path, cgroup: str, *mounts: str) -> Path:
    folder.mkdir()
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))
    return folder


def test_what_the_kernel_says_of_a_cgroup_is_read(tmp_path: Path) -> None:
    cgroup = fake(tmp_path / "run", "12\n0\n", populated=1)
    fake(tmp_path / "run" / "below", "34\n", populated=1)
    assert cgroup.is_populated()
    assert sorted(cgroup.processes()) == [12, 34], "also those of cgroups below, and none of another namespace"
    cgroup.kill()
    assert (tmp_path / "run" / "cgroup.kill").read_text() == "1"
    assert not fake(tmp_path / "run", populated=0).is_populated()


def test_cgroups_deeper_than_any_path_is_long_hide_no_others(tmp_path: Path) -> None:
    cgroup = fake(tmp_path / "evalrpc-deep-1", "1\n", populated=1)
    os.close(make_folders_below(cgroup.path, 3000))
    made = Cgroups(tmp_path / "z", tmp_path)
    (tmp_path / "z").mkdir()
    made.create("job", 1)
    assert (found := Cgroups(tmp_path / "elsewhere", tmp_path).find("job", 1)) is not None
    assert found.path == tmp_path / "z" / "evalrpc-job-1"
    assert cgroup.processes() == [1]
    cgroup.remove()
    assert not cgroup.path.exists()


def test_a_cgroup_that_is_gone_has_no_processes(tmp_path: Path) -> None:
    cgroup = RunCgroup(tmp_path / "gone")
    cgroup.kill()
    cgroup.remove()
    assert (cgroup.is_populated(), cgroup.processes()) == (False, [])


def test_a_cgroup_of_a_parent_that_can_not_be_limited_is_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"memory\.max"):
        Cgroups(tmp_path, tmp_path, {MEMORY}).create_for_parent(NO_LIMITS, "server")
    assert not list(tmp_path.iterdir())


def test_the_memory_that_is_charged_to_a_cgroup_is_known_where_it_has_the_controller(tmp_path: Path) -> None:
    cgroup = fake(tmp_path / "run")
    assert cgroup.memory_bytes() is None
    (tmp_path / "run" / "memory.current").write_text("12345\n")
    assert cgroup.memory_bytes() == 12345


def test_events_that_do_not_say_so_prove_no_end(tmp_path: Path) -> None:
    cgroup = fake(tmp_path / "run")
    for text in ("", "frozen 0\n", "populated 1\n", "populated 01\n"):
        (tmp_path / "run" / "cgroup.events").write_text(text)
        assert cgroup.is_populated()


def test_the_cgroup_of_a_run_is_found_by_its_name_wherever_an_earlier_server_made_it(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "a" / "b"
    mine.mkdir()
    cgroups, earlier = Cgroups(mine, tmp_path), Cgroups(other, tmp_path)
    other.mkdir(parents=True)
    made = earlier.create("job", 2)
    found = cgroups.find("job", 2)
    assert found is not None
    assert found.path == made.path
    assert cgroups.find("job", 1) is None
    assert cgroups.find("other", 2) is None
    own = cgroups.create("job", 2)
    assert (again := cgroups.find("job", 2)) is not None
    assert again.path == own.path == cgroups.create("job", 2).path


def test_jobs_whose_cgroups_have_processes_are_known(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path, tmp_path)
    fake(tmp_path / "evalrpc-one-1", populated=1)
    fake(tmp_path / "evalrpc-two-1", populated=0)
    fake(tmp_path / "evalrpc-other-one-12", populated=1)
    fake(tmp_path / "system.slice", populated=1)
    assert cgroups.jobs_with_processes() == {"one", "other-one"}


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    assert find_cgroups("off") == (None, "not used, by the setting cgroups")


@pytest.mark.parametrize(
    ("cgroup", "mounts"),
    [
        ("12:pids:/user.slice\n1:name=systemd:/\n", ["36 25 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids"]),
        ("0::/here\n", ["36 25 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids"]),
        ("0::/here\n", ["36 25 0:31 /elsewhere /sys/fs/cgroup rw - cgroup2 cgroup2 rw"]),
        ("0::/here\n", []),
    ],
    ids=["only version 1", "version 2 not mounted", "another part of it mounted", "nothing mounted"],
)
def test_without_version_2_it_says_so(tmp_path: Path, cgroup: str, mounts: list[str]) -> None:
    assert find_cgroups("auto", proc(tmp_path / "proc", cgroup, *mounts)) == (None, "not used: cgroup v2 is not mounted here")


@pytest.mark.parametrize(("root", "own"), [("/", "/a/b"), ("/a", "/a/b"), ("/a/b", "/a/b")])
def test_why_none_can_be_made_is_said(tmp_path: Path, root: str, own: str) -> None:
    """In a folder on a disk: the kernel puts no files into what is made there."""
    mount = tmp_path / "a mount"
    (mount / os.path.relpath(own, root)).mkdir(parents=True)
    line = rf"36 25 0:31 {root} {str(mount).replace(' ', chr(92) + '040')} rw shared:9 - cgroup2 cgroup2 rw"
    found = find_cgroups("auto", proc(tmp_path / "proc", f"1:name=systemd:/x\n0::{own}\n", line))
    assert found.cgroups is None
    assert "the kernel has no cgroup.kill" in found.detail
    assert not [path for path in mount.rglob("*") if "probe" in path.name]


def test_a_hierarchy_that_can_not_be_written_is_not_used(tmp_path: Path) -> None:
    line = f"36 25 0:31 / {tmp_path / 'gone'} rw - cgroup2 cgroup2 rw"
    found = find_cgroups("auto", proc(tmp_path / "proc", "0::/\n", line))
    assert found == (None, "not used: this account can't make cgroups of version 2 (No such file or directory)")


def test_a_run_that_can_not_enter_its_cgroup_starts_no_program(runs: Runs, tmp_path: Path) -> None:
    runs.executor = LocalExecutor(cgroups=Cgroups(tmp_path / "none", tmp_path / "none"))
    with pytest.raises(RunFailedError, match="could not be started") as caught:
        runs.start("print('it runs')")
    assert caught.value.job_error.reason == "START_FAILED"
    processes = tmp_path / "none" / f"evalrpc-{runs.key.job_id}-1" / "cgroup.procs"
    processes.mkdir(parents=True)
    with pytest.raises(RunFailedError, match=r"could not be started.*: Is a directory"):
        ended(runs.start("print('it runs')"))
    processes.rmdir()
    assert not runs.key.log_path.exists()


def test_a_run_whose_cgroup_says_that_something_is_left_has_not_ended(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_KILL_SECONDS", 0.1)
    runs.executor = LocalExecutor(cgroups=Cgroups(tmp_path, tmp_path))
    cgroup = fake(tmp_path / f"evalrpc-{runs.key.job_id}-1", populated=1)
    handle = runs.start("pass")
    assert ended(handle) == Exit(code=0)
    with pytest.raises(RunFailedError, match="could not be killed") as caught:
        handle.end(0.0)
    assert caught.value.job_error.reason == "PROCESS_UNKILLABLE"
    assert (cgroup.path / "cgroup.kill").read_text() == "1"
    assert not runs.executor.kill_leftovers(runs.key)
    fake(cgroup.path, populated=0)
    assert runs.executor.kill_leftovers(runs.key)


# On a real hierarchy.

ESCAPES_ALL = """
import os, signal, sys, time
shim, note, traces = os.getppid(), sys.argv[1], sys.argv[2]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execve(sys.executable, [sys.executable, "-S", "-c",
            "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()} there\\\\n'); time.sleep(1000)", note], {})
    os._exit(0)
while not os.path.exists(note) or "there" not in open(note).read():
    time.sleep(0.01)
open(traces + "/exit", "r+").write("0 code 0\\nnone left\\n")
open(traces + "/pid", "w").write("1 1")
os.kill(shim, signal.SIGKILL)
"""
"""Starts a process that leaves its session, its parent and its environment, forges its traces, and kills its shim."""


MAKES_CGROUPS = """
import os, sys
os.chdir(sys.argv[1])
for _ in range(40):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
if os.fork() == 0:
    os.setsid()
    open("cgroup.procs", "w").write("0")
    os.execvp("sleep", ["sleep", "1000"])
"""


@pytest.fixture
def real() -> Cgroups:
    assert REAL is not None
    return REAL


@pytest.fixture
def contained(runs: Runs, real: Cgroups) -> Iterator[Runs]:
    """Runs with cgroups of their own."""
    runs.executor = LocalExecutor({**os.environ}, cgroups=real)
    yield runs
    cgroup = real.find(runs.key.job_id, 1)
    if cgroup is not None:
        cgroup.kill()
        eventually(lambda: not cgroup.is_populated())
        cgroup.remove()


def escaped_pid(note: Path) -> int:
    return int(eventually(lambda: note.exists() and note.read_text().endswith("\n") and note.read_text().split())[0])


@needs_cgroups
def test_a_run_is_in_its_cgroup_from_the_start_and_leaves_none_behind(contained: Runs, real: Cgroups) -> None:
    handle = contained.start("print(open('/proc/self/cgroup').read())")
    assert ended(handle) == Exit(code=0)
    assert f"/evalrpc-{contained.key.job_id}-1\n" in contained.log()
    handle.end(0.0)
    assert real.find(contained.key.job_id, 1) is None


@needs_cgroups
def test_a_run_that_makes_cgroups_within_its_own_is_ended_and_leaves_none_behind(contained: Runs, real: Cgroups) -> None:
    """Deeper than any path is long: each name has 200 bytes."""
    handle = contained.start(MAKES_CGROUPS, str(real.create(contained.key.job_id, 1).path))
    assert handle.wait(SECONDS)
    handle.end(0.0)
    assert handle.exit_status() == Exit(code=0), contained.log()
    assert real.find(contained.key.job_id, 1) is None


@needs_cgroups
@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_escapes_by_any_means_but_its_cgroup(
    contained: Runs, real: Cgroups, tmp_path: Path, *, restarted: bool
) -> None:
    note, traces = tmp_path / "note", contained.key.attempt_dir / "run"
    handle = contained.start(ESCAPES_ALL, str(note), str(traces))
    assert handle.wait(SECONDS)
    pid = escaped_pid(note)
    assert is_alive(pid)
    assert pid not in processes_of_job(contained.key.job_id), "a search does not find it"
    if restarted:
        found = LocalExecutor(cgroups=real).find(contained.key)
        assert found is not None
        handle = contained.keep(found)
        assert handle.wait(0)
    handle.end(0.0)
    assert not is_alive(pid)
    assert real.find(contained.key.job_id, 1) is None


@needs_cgroups
def test_what_is_left_in_a_cgroup_is_known_and_killed_after_a_restart(contained: Runs, real: Cgroups, tmp_path: Path) -> None:
    note, traces = tmp_path / "note", contained.key.attempt_dir / "run"
    handle = contained.start(ESCAPES_ALL, str(note), str(traces))
    assert handle.wait(SECONDS)
    pid = escaped_pid(note)
    server = LocalExecutor(cgroups=real)
    assert contained.key.job_id in server.jobs_with_processes()
    assert not server.kill_leftovers(contained.key)
    eventually(lambda: server.kill_leftovers(contained.key), "for nothing to be left")
    assert not is_alive(pid)
    assert contained.key.job_id not in server.jobs_with_processes()


@needs_cgroups
def test_a_cgroup_has_its_time_to_clean_up_too(contained: Runs) -> None:
    handle = contained.start(CLEANING_UP)
    contained.wait_for_log("ready")
    handle.end(SECONDS)
    assert "cleaned up" in contained.log()
    assert ended(handle) == Exit(code=0)


@needs_cgroups
def test_ending_a_cgroup_touches_no_other(contained: Runs, real: Cgroups, tmp_path: Path) -> None:
    other = Runs(RunKey(str(uuid.uuid4()), 1, tmp_path / "other"))
    other.executor = LocalExecutor(cgroups=real)
    try:
        neighbour = other.start("print('ready', flush=True); import time; time.sleep(1000)")
        other.wait_for_log("ready")
        handle = contained.start(
            "import os, signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(1000)"
        )
        contained.wait_for_log("ready")
        handle.end(0.0)
        assert handle.wait(SECONDS)
        assert not neighbour.wait(0)
    finally:
        other.close()


@needs_cgroups
def test_a_fork_bomb_is_ended_as_a_whole(contained: Runs, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    bomb = f"""
import os, time
for _ in range(4): os.fork()
while True:
    open({str(beat)!r}, "w").close()
    if os.fork(): os._exit(0)
    os.setsid()
"""
    handle = contained.start(bomb)
    eventually(beat.exists)
    handle.end(0.0)
    beat.unlink()
    assert handle.wait(SECONDS)
    assert processes_of_job(contained.key.job_id) == []
    assert not beat.exists()
