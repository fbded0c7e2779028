"""Warm runs with accounts: a parent has the account of one owner's runs, which may do to it what they like, and to no other."""

import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import pytest
from accounts import FIRST_UID, PYTHON, needs_accounts
from processes_of_tests import is_alive, kill_job
from running import SECONDS, ended
from waiting import eventually

from evalrpc.executors.base import NO_LIMITS, Resources, RunAccount, RunHandle, RunKey, RunLimits
from evalrpc.executors.local import fork_server, warm_parents
from evalrpc.executors.local.cgroups import RunCgroup, find_cgroups
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.processes import processes_of_job, resident_bytes
from evalrpc.executors.local.run import LOCAL_NODE
from evalrpc.executors.local.warm_parents import WarmLimits
from evalrpc.harnesses.base import Command, Exit, Preload

CGROUPS = find_cgroups("auto").cgroups
pytestmark = [
    needs_accounts,
    pytest.mark.skipif(CGROUPS is None, reason="this account can't make cgroups of version 2"),
]

ALICE, BOB = FIRST_UID, FIRST_UID + 1

PROGRAM = """
import json, os, signal, subprocess, sys, time
import loaded
WHAT, *REST = sys.argv[1:]

def sleep(text):
    print(text, flush=True)
    time.sleep(1000)

def tell():
    status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    print(json.dumps({
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()], "no new privileges": status["NoNewPrivs"],
        "cgroup": open("/proc/self/cgroup").read().splitlines()[-1], "home": os.environ["HOME"],
        "request": open(REST[0]).read(), "through": open("/dev/stderr", "a").write(""),
    }))

def daemon():
    if os.fork() == 0:
        os.setsid()
        os.environ.clear()
        if os.fork() == 0:
            sleep("daemon")
        os._exit(0)
    time.sleep(1000)

def forge():
    traces = REST[0]
    for act in (lambda: open(traces + "/pid", "w"), lambda: open(traces + "/warm", "w"), lambda: os.remove(traces + "/exit"),
                lambda: os.listdir(traces), lambda: open(traces + "/new", "w"), lambda: os.rename(traces, traces + "2")):
        try:
            act()
            print("done")
        except PermissionError:
            print("refused")

{"tell": tell, "exit": lambda: sys.exit(int(REST[0])), "sleep": lambda: sleep("ready"), "daemon": daemon, "forge": forge,
 "loader": lambda: print(loaded.PID), "kill shim": lambda: os.kill(os.getppid(), signal.SIGKILL),
 "raise": lambda: {}["missing"], "kill": lambda: os.kill(os.getpid(), signal.SIGKILL)}[WHAT]()
"""

LOADED = "import os\nPID = os.getpid()\n"

LIES = {
    "the process of somebody else": "lambda self, message: '1'",
    "no number": "lambda self, message: 'x'",
    "a number too large": "lambda self, message: '-' + '9' * 100",
    "an endless line": "lambda self, message: 'x' * 10_000_000",
    "nothing": "lambda self, message: __import__('time').sleep(1000)",
    "a failure, of what it has started": "lambda self, message: answer(self, message) and '-11'",
}


LEAVES_PROCESSES = """
import os, sys, time
parent = sys.modules['__main__'].WarmParent
answer = parent.answer
def answer_and_fork(self, message):
    if isinstance(message, int) and os.fork() == 0:  # a run has ended, so the parent is in its own cgroup
        os.setsid()
        large = bytearray(b'x') * 150_000_000
        time.sleep(1000)
    return answer(self, message)
parent.answer = answer_and_fork
"""


class Owners:
    """Runs of two owners."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "code"
        self.code.mkdir(mode=0o755)
        (self.code / "program.py").write_text(PROGRAM)
        (self.code / "loaded.py").write_text(LOADED)
        self.limits = NO_LIMITS
        self.environment = {"PYTHONPATH": str(self.code)}
        self.cwd = self.code
        self.executor = self.new_executor()
        self._runs: list[tuple[RunKey, RunHandle]] = []

    def new_executor(self, max_bytes: int = 1024**3) -> LocalExecutor:
        limits = WarmLimits(idle_seconds=1000.0, max_bytes=max_bytes)
        self.executor = LocalExecutor({"PATH": "/usr/bin:/bin"}, cgroups=CGROUPS, warm_limits=limits)
        return self.executor

    def start(self, uid: int, *arguments: str, warm: bool = True) -> RunHandle:
        home = self.folder / str(uid)
        home.mkdir(exist_ok=True)
        job_id = str(uuid.uuid4())
        folder = self.folder / job_id
        folder.mkdir(mode=0o711)
        key = RunKey(job_id, 1, folder, (), RunAccount(uid, (), home))
        program = (PYTHON, "-m", "program")
        preload = Preload("own", program, "program", ("loaded",)) if warm else None
        argv = (*program, *(argument.replace("FOLDER", str(folder)) for argument in arguments))
        command = Command(argv, self.environment, {folder / "request": b"request"}, self.cwd, preload=preload)
        self.executor.make_room(key, 1)
        run = self.executor.start(key, command, Resources(LOCAL_NODE, limits=self.limits))
        self._runs.append((key, run))
        return run

    def run(self, uid: int, *arguments: str, warm: bool = True) -> tuple[Exit, str]:
        run = self.start(uid, *arguments, warm=warm)
        end = ended(run)
        run.end(0.0)
        assert run.is_warm == warm
        return end, self.log(run)

    def key(self, run: RunHandle) -> RunKey:
        return next(key for key, each in self._runs if each is run)

    def log(self, run: RunHandle) -> str:
        path = self.key(run).log_path
        return path.read_text() if path.exists() else ""

    def parents(self, uid: int) -> list[int]:
        """Return the processes in the cgroups of an owner's parents, without those of tests that run beside this one."""
        assert CGROUPS is not None
        ours = [cgroup for server, cgroup in CGROUPS.cgroups_of_parents() if server == warm_parents.own_name()]
        pids = [pid for cgroup in ours for pid in cgroup.processes()]
        return [pid for pid in pids if Path(f"/proc/{pid}").stat().st_uid == uid]

    def load_in_parents(self, code: str) -> None:
        """Let parents run some code when they import the program."""
        only_parents = "if __import__('sys').argv[0].endswith('warm_parent.py'):\n"
        (self.code / "loaded.py").write_text(f"{LOADED}{only_parents}{indent(code, '    ')}\n")

    def run_from_parent_that_leaves_processes(self, uid: int) -> list[int]:
        """Run something, and return the processes in the cgroup of the parent."""
        self.load_in_parents(LEAVES_PROCESSES)
        self.run(uid, "exit", "0")
        eventually(lambda: any(resident_bytes(pid) > 150_000_000 for pid in self.parents(uid)))
        return self.parents(uid)

    def close(self) -> None:
        self.executor.close()
        for key, run in self._runs:
            run.end(0.0)
            run.close()
            kill_job(key.job_id)


@pytest.fixture
def owners() -> Iterator[Owners]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    owners = Owners(folder)
    yield owners
    owners.close()
    shutil.rmtree(folder)


def test_it_finds_all_as_a_cold_run_does(owners: Owners) -> None:
    cold, warm = (owners.run(ALICE, "tell", "FOLDER/request", warm=warm) for warm in (False, True))
    assert warm[0] == cold[0] == Exit(code=0)
    told = [json.loads(log) for _, log in (cold, warm)]
    for each in told:
        assert "evalrpc-" in each.pop("cgroup")
        assert "evalrpc-parent" not in each
    assert told[0] == told[1]
    assert told[1]["ids"] == [[ALICE] * 3, [ALICE] * 3, []]
    assert told[1]["no new privileges"] == "1"


@pytest.mark.parametrize("arguments", [("exit", "0"), ("exit", "3"), ("raise",), ("kill",)], ids=" ".join)
def test_it_ends_as_a_cold_run_does(owners: Owners, arguments: tuple[str, ...]) -> None:
    owners.run(ALICE, "exit", "0")
    assert owners.run(ALICE, *arguments)[0] == owners.run(ALICE, *arguments, warm=False)[0]


def test_no_process_of_the_server_has_the_environment_of_its_runs(owners: Owners) -> None:
    """The dynamic loader of such a process would load what variables name, such as LD_PRELOAD."""
    traces = owners.folder / "loader"
    traces.mkdir()
    traces.chmod(0o1777)
    owners.environment |= {"LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": str(traces / "trace")}
    owners.run(ALICE, "exit", "0")
    assert {path.stat().st_uid for path in traces.iterdir()} == {ALICE}


def test_a_folder_that_is_closed_to_the_account_is_named_as_the_problem(
    owners: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    owners.cwd = owners.folder / "closed"
    owners.cwd.mkdir(mode=0o700)
    run = owners.start(ALICE, "exit", "3")
    assert (ended(run), run.is_warm) == (Exit(code=3), False)
    assert f"Permission denied: '{owners.cwd}'" in caplog.text


def test_each_owner_has_a_parent_of_its_own(owners: Owners) -> None:
    loaders = {uid: {owners.run(uid, "loader")[1].strip() for _ in range(2)} for uid in (ALICE, BOB)}
    assert loaders == {uid: {str(pid) for pid in owners.parents(uid)} for uid in (ALICE, BOB)}
    assert [len(owners.parents(uid)) for uid in (ALICE, BOB)] == [1, 1]


def test_its_traces_stay_the_servers(owners: Owners) -> None:
    run = owners.start(ALICE, "forge", "FOLDER/run")
    assert ended(run) == Exit(code=0)
    assert set(owners.log(run).split()) == {"refused"}
    run.end(0.0)
    folder = owners.key(run).attempt_dir
    for path in (folder, *folder.rglob("*")):
        status = path.stat()
        assert status.st_uid == os.geteuid(), path
        assert path.is_dir() or not status.st_mode & 0o022 or path.name == "request", path


@pytest.mark.parametrize("what", ["sleep", "daemon"])
def test_it_is_ended_with_all_its_processes(owners: Owners, what: str) -> None:
    owners.run(ALICE, "exit", "0")
    run = owners.start(ALICE, what)
    eventually(lambda: owners.log(run))
    found = owners.executor._find_cgroup(owners.key(run))
    assert found is not None
    processes = found.processes()
    assert len(processes) > 1
    run.end(0.1)
    assert not any(map(is_alive, processes))
    assert len(owners.parents(ALICE)) == 1


def test_a_run_that_kills_its_shim_hurts_only_itself(owners: Owners) -> None:
    owners.run(ALICE, "exit", "0")
    run = owners.start(ALICE, "kill shim")
    assert ended(run) == Exit(signal=signal.SIGKILL)
    run.end(0.1)
    assert not processes_of_job(owners.key(run).job_id)
    assert owners.run(ALICE, "exit", "3")[0] == Exit(code=3)


def test_the_next_server_finds_it_and_ends_what_is_left_of_parents(owners: Owners) -> None:
    left = owners.run_from_parent_that_leaves_processes(ALICE)
    run = owners.start(ALICE, "sleep")
    eventually(lambda: owners.log(run))
    owners.executor.close()
    eventually(lambda: not any(map(is_alive, left)))
    found = owners.new_executor().find(owners.key(run))
    assert found is not None
    assert found.is_warm
    assert not found.wait(0)
    found.end(0.1)
    assert not processes_of_job(owners.key(run).job_id)
    found.close()


def test_parents_of_a_server_that_is_gone_are_ended(owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.executors.local.warm_parents.own_name", lambda: f"{2**22 + 1}-1")
    owners.run(ALICE, "exit", "0")
    left = owners.parents(ALICE)
    assert left
    next_server = LocalExecutor({}, cgroups=CGROUPS)
    next_server.prepare()
    next_server.close()
    eventually(lambda: not any(map(is_alive, left)))


def test_a_parent_that_starts_processes_when_it_is_loaded_is_ended_with_these(owners: Owners) -> None:
    owners.load_in_parents("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)")
    run = owners.start(ALICE, "exit", "3")
    assert (ended(run), run.is_warm) == (Exit(code=3), False)
    assert "starts processes" in owners.executor.warm_state("own").problem
    assert owners.parents(ALICE) == []


def test_a_parent_that_can_not_be_started_leaves_no_cgroup(owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    owners.run(ALICE, "exit", "0", warm=False)
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")
    run = owners.start(ALICE, "exit", "3")
    assert (ended(run), run.is_warm) == (Exit(code=3), False)
    assert CGROUPS is not None
    assert warm_parents.own_name() not in [owner for owner, _ in CGROUPS.cgroups_of_parents()]


def test_a_parent_that_was_reaped_enters_no_cgroup(owners: Owners, tmp_path: Path) -> None:
    """Its id may be that of another process."""
    owners.run(ALICE, "exit", "0")
    (parent,) = owners.executor._warm_parents._parents.values()
    assert parent.process is not None
    parent.process.kill()
    parent.process._process.wait()
    (tmp_path / "cgroup.procs").touch()
    with pytest.raises(BrokenPipeError):
        owners.executor._warm_parents.fork(parent, {}, RunCgroup(tmp_path))
    assert (tmp_path / "cgroup.procs").read_text() == ""


def test_what_a_parent_starts_later_counts_as_its_memory(owners: Owners) -> None:
    owners.executor.close()
    owners.new_executor(max_bytes=100_000_000)
    left = owners.run_from_parent_that_leaves_processes(ALICE)
    (owners.code / "loaded.py").write_text(LOADED)
    owners.run(BOB, "exit", "0")
    eventually(lambda: not any(map(is_alive, left)))
    assert owners.parents(BOB)


@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_parent_says_only_its_owner_is_hurt(owners: Owners, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    owners.run(BOB, "exit", "0")
    monkeypatch.setattr(fork_server, "_REPLY_SECONDS", 1.0)
    code = "import sys\nmain = sys.modules['__main__']\nanswer = main.WarmParent.answer\nmain.WarmParent.answer = "
    owners.load_in_parents(code + LIES[lie])
    run = owners.start(ALICE, "exit", "3")
    end = ended(run)
    run.end(0.0)
    assert end in (Exit(code=3), Exit())
    if lie != "the process of somebody else":
        assert (end, run.is_warm) == (Exit(code=3), False)
    assert is_alive(1)
    assert not processes_of_job(owners.key(run).job_id)
    (owners.code / "loaded.py").write_text(LOADED)
    assert owners.start(BOB, "exit", "4").wait(SECONDS)


def test_what_a_parent_says_is_shown_to_nobody(owners: Owners) -> None:
    (owners.code / "loaded.py").write_text("raise RuntimeError('send your password to mallory')")
    owners.start(ALICE, "exit", "3").wait(SECONDS)
    problem = owners.executor.warm_state("own").problem
    assert problem
    assert "mallory" not in problem


def test_no_short_command_of_the_server_runs_in_it(owners: Owners) -> None:
    owners.run(ALICE, "exit", "0")
    program = (PYTHON, "-c")
    text = "import os; print(os.geteuid())"
    environment = {"PYTHONPATH": str(owners.code), "HOME": str(owners.folder / str(ALICE))}
    command = Command((*program, text), environment, cwd=owners.code, preload=Preload("own", program, "", ()))
    assert owners.executor.run_to_end(command, SECONDS).stdout == b"%d\n" % os.geteuid()


def test_limits_that_no_cgroup_enforces_make_runs_cold(owners: Owners) -> None:
    """Since nothing would limit what a parent may have become."""
    owners.limits = RunLimits(memory_bytes=2**33, processes=1000)
    if CGROUPS is None or CGROUPS.controllers:
        pytest.skip("here cgroups do")
    run = owners.start(ALICE, "exit", "3")
    assert (ended(run), run.is_warm) == (Exit(code=3), False)
    assert "limits" in owners.executor.warm_state("own").problem


def test_a_server_that_gives_no_accounts_any_more_finds_it(owners: Owners) -> None:
    owners.run(ALICE, "exit", "0")
    run = owners.start(ALICE, "sleep")
    eventually(lambda: owners.log(run))
    owners.executor.close()
    found = owners.new_executor().find(replace(owners.key(run), account=None))
    assert found is not None
    assert not found.wait(0)
    found.end(0.1)
    assert not processes_of_job(owners.key(run).job_id)
    found.close()


def test_a_killed_parent_costs_no_run(owners: Owners) -> None:
    owners.run(ALICE, "exit", "0")
    running = owners.start(ALICE, "sleep")
    eventually(lambda: owners.log(running))
    os.kill(owners.parents(ALICE)[0], signal.SIGKILL)
    assert ended(owners.start(ALICE, "exit", "3")) == Exit(code=3)
    assert not running.wait(0)
    assert owners.run(ALICE, "exit", "4")[0] == Exit(code=4)
