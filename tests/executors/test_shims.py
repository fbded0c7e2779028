"""Which process is the shim of a run, whatever runs write into their traces, and whatever other processes pretend to be."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accounts import FIRST_UID, PYTHON, needs_accounts
from processes_of_tests import is_alive, read_pid
from running import SECONDS, Runs, ended
from waiting import eventually

from evalrpc.executors.base import Device, RunKey
from evalrpc.executors.local import shim
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.processes import processes_of_job, processes_of_script
from evalrpc.executors.local.shims import find_shim, run_name
from evalrpc.executors.local.traces import TRACES_DIR, write_devices
from evalrpc.harnesses.base import Exit

SLEEPS = "import time; print('ready', flush=True); time.sleep(1000)"

PRETENDS = """
import os, sys, time
open("/proc/self/comm", "w").write("evalrpc-run")
claim = os.memfd_create(sys.argv[1]) if len(sys.argv) > 1 else None
print("pretends", os.getpid(), flush=True)
time.sleep(1000)
"""
"""Takes the name of a shim, and the claim that is given."""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Runs]:
    """The runs of another job."""
    other = Runs(RunKey(str(uuid.uuid4()), 1, tmp_path / "other"))
    yield other
    other.close()


def pid_file(runs: Runs) -> Path:
    return runs.key.attempt_dir / TRACES_DIR / shim.PID_FILE


def shim_of(runs: Runs) -> int:
    pid = find_shim(runs.key.job_id, runs.key.attempt)
    assert pid is not None
    return pid


def identity(pid: int) -> str:
    return f"{pid} {shim.start_time(pid)}"


@contextmanager
def pretender(*claim: str) -> Iterator[int]:
    with subprocess.Popen((sys.executable, "-S", "-c", PRETENDS, *claim), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("pretends")
        yield process.pid
        assert process.poll() is None, "it must not have been ended"
        process.kill()


def test_the_shim_of_a_run_is_found_while_it_lives(runs: Runs) -> None:
    assert find_shim(runs.key.job_id, 1) is None
    handle = runs.start(SLEEPS)
    runs.wait_for_log("ready")
    assert shim_of(runs) == handle._shim
    assert read_pid(pid_file(runs).parent) == (handle._shim, shim.start_time(shim_of(runs)))
    assert find_shim(runs.key.job_id, 2) is None, "another attempt is another run"
    handle.end(0.0)
    assert find_shim(runs.key.job_id, 1) is None


@pytest.mark.parametrize("content", ["", "1 1", "garbage\n", None])
def test_a_run_that_spoils_its_process_id_is_found_and_ended_all_the_same(runs: Runs, content: str | None) -> None:
    pid = runs.start(SLEEPS)._shim
    runs.wait_for_log("ready")
    pid_file(runs).unlink()
    if content is not None:
        pid_file(runs).write_text(content)
    found = runs.find()
    assert found._shim == pid
    assert not found.wait(0)
    found.end(0.0)
    assert processes_of_job(runs.key.job_id) == []


@pytest.mark.parametrize("is_living", [True, False])
def test_a_run_that_writes_the_process_id_of_another_job_does_not_have_that_ended(
    runs: Runs, other: Runs, *, is_living: bool
) -> None:
    neighbour = other.start(SLEEPS)
    other.wait_for_log("ready")
    handle = runs.start(SLEEPS)
    runs.wait_for_log("ready")
    if not is_living:
        handle.end(0.0)
    shutil.copy(pid_file(other), pid_file(runs))
    server = LocalExecutor()
    found = runs.find()
    assert found.wait(0) is not is_living
    found.end(0.0)
    assert server.kill_leftovers(runs.key)
    assert not neighbour.wait(0)
    assert is_alive(processes_of_job(other.key.job_id)[0])


def test_a_run_that_writes_the_process_id_of_another_process_does_not_have_that_ended(runs: Runs) -> None:
    assert ended(runs.start("pass")) == Exit(code=0)
    with pretender() as pid:
        pid_file(runs).write_text(identity(pid))
        found = runs.find()
        assert found.wait(0)
        found.end(0.0)
        assert runs.executor.kill_leftovers(runs.key)


def test_a_process_of_a_run_that_claims_to_be_the_shim_of_another_yields_to_the_real_one(runs: Runs, other: Runs) -> None:
    """Whether it was there before that shim, or came after it."""
    claim = shim.CLAIM + f"{other.key.job_id} 1"
    early = runs.start(PRETENDS, claim)
    runs.wait_for_log("pretends")
    neighbour = other.start(SLEEPS)
    other.wait_for_log("ready")
    assert shim_of(other) == neighbour._shim
    early.end(0.0)
    assert shim_of(other) == neighbour._shim
    late = Runs(RunKey(str(uuid.uuid4()), 1, runs.key.attempt_dir.with_name("late")))
    try:
        late.start(PRETENDS, claim)
        late.wait_for_log("pretends")
        assert shim_of(other) == neighbour._shim
    finally:
        late.close()


def test_a_process_of_another_user_is_no_shim(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretender(shim.CLAIM + f"{runs.key.job_id} 1") as pid:
        assert shim_of(runs) == pid
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert find_shim(runs.key.job_id, 1) is None


def test_no_program_inherits_what_its_shim_holds(runs: Runs) -> None:
    handle = runs.start("import os; print(*(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')[:-1]))")
    assert ended(handle) == Exit(code=0)
    assert "memfd" not in runs.log()


# What else a run may forge.

LEAVES_A_DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("left", os.getpid(), flush=True)
        time.sleep(1000)
    os._exit(0)
while "left" not in open(sys.argv[1] + "/log").read():
    time.sleep(0.01)
with open(sys.argv[1] + "/run/exit", "r+") as exits:
    exits.write("0 code 0\\nnone left\\n")
os.kill(os.getppid(), 9)
"""


@pytest.mark.parametrize("restarted", [False, True])
def test_a_run_that_records_itself_that_nothing_is_left_of_it_is_searched_for_all_the_same(
    runs: Runs, *, restarted: bool
) -> None:
    handle = runs.start(LEAVES_A_DAEMON, str(runs.key.attempt_dir))
    assert handle.wait(SECONDS)
    left = int(runs.log().split()[1])
    assert is_alive(left)
    (runs.find() if restarted else handle).end(0.0)
    eventually(lambda: not is_alive(left))


def test_a_run_that_records_the_devices_of_another_job_does_not_get_them(runs: Runs) -> None:
    assert ended(runs.start("pass", gpus=("0",))) == Exit(code=0)
    write_devices(runs.key.attempt_dir / TRACES_DIR, {"0": None, "1": 5})
    server = LocalExecutor(devices=[Device("0"), Device("1")])
    found = server.find(RunKey(runs.key.job_id, 1, runs.key.attempt_dir, devices=("0",)))
    assert found is not None
    assert runs.keep(found).devices == ("0",)


@pytest.mark.parametrize("name", ["run/exit", "run/pid.new", "run/devices.json", "given.txt"])
def test_a_fifo_that_an_earlier_attempt_has_put_there_holds_up_nobody(runs: Runs, name: str) -> None:
    """A run may make the folder of its next attempt before the server does."""
    path = runs.key.attempt_dir / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    if name == "run/exit":
        with pytest.raises(OSError, match="No such device or address"):
            runs.executor.make_room(runs.key, 1)
    handle = runs.start("pass", files={runs.key.attempt_dir / "given.txt": b""})
    assert handle.wait(SECONDS)


@needs_accounts
@pytest.mark.parametrize("arguments", [(), ("executors/local/shim.py", "1", "1")])
def test_a_process_of_another_account_is_no_shim_and_no_fork_server(key: RunKey, arguments: tuple[str, ...]) -> None:
    """Neither by the claim and the name, nor by the command line. It would hold up what a restarted server finds."""
    command = (PYTHON, "-S", "-c", PRETENDS, shim.CLAIM + run_name(key.job_id, 1), *arguments)
    account = {"user": FIRST_UID, "group": FIRST_UID, "extra_groups": ()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/", **account) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline().startswith("pretends")
            assert find_shim(key.job_id, 1) is None
            assert process.pid not in {found.pid for found in processes_of_script(Path(shim.__file__), 2)}
        finally:
            process.kill()
