"""Warm runs: forked from a process that has a program in memory, and otherwise like any run."""

import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes_of_tests import is_alive, kill_job
from running import SECONDS, ended
from waiting import eventually

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Resources, RunHandle, RunKey
from evalrpc.executors.local import fork_server, warm_parent, warm_parents
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.executors.local.run import LOCAL_NODE, LocalRun
from evalrpc.executors.local.waiting_run import WaitingRun
from evalrpc.executors.local.warm_parents import WarmLimits
from evalrpc.harnesses.base import Command, Exit, Preload

LIMITS = WarmLimits(idle_seconds=1000.0, max_bytes=1024**3)

PROGRAM = """
import atexit, ctypes, json, os, random, signal, subprocess, sys, threading, time
import loaded
WHAT, *REST = sys.argv[1:]

def sleep(text):
    print(text, flush=True)
    time.sleep(1000)

def tell():
    own = {
        "argv": sys.argv[1:], "orig_argv": sys.orig_argv, "path": sys.path[0], "name": __name__, "cwd": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("EVALRPC")},
        "flags": str(sys.flags), "umask": os.umask(0), "stdin": sys.stdin.read(), "buffered": sys.stdout.write_through,
        "signals": {number.name: str(signal.getsignal(number)) for number in signal.valid_signals() if hasattr(number, "name")},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "session": os.getsid(0) == os.getppid(),
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in ("0", "1", "2")),
        "descriptors": sorted(set(os.listdir("/proc/self/fd"))), "comm": open("/proc/self/comm").read(),
        "child": subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout,
        "modules": "program" in sys.modules, "main": sys.modules["__main__"].__spec__.name,
    }
    print(json.dumps(own))

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleep("daemon")
        os._exit(0)
    time.sleep(1000)

def fail():
    return {}["missing"]

ACTS = {
    "tell": tell,
    "loader": lambda: print(loaded.PID, os.getpid(), loaded.read()),
    "random": lambda: print(random.random()),
    "exit": lambda: sys.exit(int(REST[0])),
    "text": lambda: sys.exit("what went wrong"),
    "raise": lambda: {}["missing"],
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "raise interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "segv": lambda: ctypes.string_at(0),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "leave": lambda: os._exit(7),
    "atexit": lambda: atexit.register(print, "at exit"),
    "broken atexit": lambda: atexit.register(fail),
    "thread": lambda: threading.Timer(0.05, lambda: print("from a thread")).start(),
    "unflushed": lambda: sys.stdout.write("no newline"),
    "recurse": lambda: exec("def f(): f()\\nf()"),
    "none": lambda: sys.exit(None),
    "large": lambda: sys.exit(256 + 5),
    "sleep": lambda: sleep("ready"),
    "daemon": daemon,
}
ACTS[WHAT]()
"""

LOADED = """
import os
PID = os.getpid()
def read():
    return open(os.path.join(os.path.dirname(__file__), "data")).read()
"""


TORCH = """import sys, types
    cuda = types.SimpleNamespace(is_initialized=lambda: True)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)"""


class WarmRuns:
    """Runs of one program, as jobs of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "code"
        self.code.mkdir()
        (self.code / "program.py").write_text(PROGRAM)
        (self.code / "loaded.py").write_text(LOADED)
        (self.code / "data").write_text("data")
        self.executor = self.new_executor()
        self._runs: list[tuple[RunKey, LocalRun | WaitingRun]] = []

    def new_executor(self, limits: WarmLimits = LIMITS) -> LocalExecutor:
        self.executor = LocalExecutor({"PATH": os.environ["PATH"]}, warm_limits=limits)
        return self.executor

    def command(self, *arguments: str, **changes: Any) -> Command:
        program = (sys.executable, "-m", "program")
        preload = Preload("own", program, "program", ("loaded",))
        command = Command((*program, *arguments), env={"PYTHONPATH": str(self.code)}, preload=preload)
        return replace(command, **changes)

    def start(self, *arguments: str, gpus: tuple[str, ...] = (), **changes: Any) -> LocalRun | WaitingRun:
        job_id = str(uuid.uuid4())
        key = RunKey(job_id, 1, self.folder / job_id)
        run = self.executor.start(key, self.command(*arguments, **changes), Resources(LOCAL_NODE, gpus))
        self._runs.append((key, run))
        return run

    def cold(self, *arguments: str, **changes: Any) -> tuple[Exit, str]:
        run = self.start(*arguments, **{"preload": None, **changes})
        return ended(run), self.log(run)

    def warm(self, *arguments: str, **changes: Any) -> tuple[Exit, str]:
        run = self.start(*arguments, **changes)
        assert run.is_warm
        return ended(run), self.log(run)

    def heat(self) -> None:
        """Have a parent made."""
        ended(self.start("none"))
        assert self.executor.warm_state("own").is_warm

    @property
    def parents(self) -> list[int]:
        return [parent.process.pid for parent in self.executor._warm_parents._parents.values() if parent.process]

    def key(self, run: RunHandle) -> RunKey:
        return next(key for key, each in self._runs if each is run)

    def log(self, run: RunHandle) -> str:
        path = self.key(run).log_path
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, run: RunHandle, text: str) -> None:
        eventually(lambda: text in self.log(run), text)

    def close(self) -> None:
        self.executor.close()
        for key, run in self._runs:
            run.end(0.0)
            run.close()
            kill_job(key.job_id)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[WarmRuns]:
    runs = WarmRuns(tmp_path)
    yield runs
    runs.close()


def test_all_runs_are_forked_from_one_process_for_which_the_first_one_waits(runs: WarmRuns) -> None:
    first = runs.start("loader")
    assert ended(first) == Exit(code=0)
    assert first.is_warm
    told = [runs.log(first).split(), *(runs.warm("loader")[1].split() for _ in range(3))]
    assert {loader for loader, _, _ in told} == {str(runs.parents[0])}
    assert len({own for _, own, _ in told}) == 4


def slow_to_load(runs: WarmRuns) -> Path:
    """Let parents never finish loading. Return a file that is there once one has begun."""
    path = runs.folder / "begun"
    code = f"import pathlib, time; pathlib.Path({str(path)!r}).touch(); time.sleep(1000)"
    (runs.code / "loaded.py").write_text(f"{LOADED}\nif __import__('sys').argv[0].endswith('warm_parent.py'):\n    {code}\n")
    return path


def test_a_run_that_waits_hears_an_interrupt_and_can_be_ended(runs: WarmRuns) -> None:
    begun = slow_to_load(runs)
    run = runs.start("exit", "3")
    assert not run.wait(0)
    eventually(begun.exists)
    interrupter = threading.Timer(0.05, run.interrupt)
    interrupter.start()
    assert not run.wait(SECONDS)
    interrupter.join()
    run.end(0.0)
    assert run.wait(0)
    assert (run.exit_status(), run.is_warm, runs.log(run)) == (Exit(), False, "")
    assert runs.executor.find(runs.key(run)) is None


def test_the_next_server_starts_a_run_that_still_waited(runs: WarmRuns) -> None:
    begun = slow_to_load(runs)
    run = runs.start("exit", "3")
    eventually(begun.exists)
    run.close()
    runs.executor.close()
    (runs.code / "loaded.py").write_text(LOADED)
    assert runs.new_executor().find(runs.key(run)) is None
    assert ended(runs.start("exit", "3")) == Exit(code=3)


def test_a_run_that_can_not_begin_once_it_has_waited_says_so(runs: WarmRuns) -> None:
    run = runs.start("exit", "3")
    runs.key(run).attempt_dir.write_text("in the way")
    assert run.wait(SECONDS)
    with pytest.raises(RunFailedError) as caught:
        run.exit_status()
    assert caught.value.job_error.reason == "START_FAILED"


def test_one_that_failed_is_tried_again_beside_runs_that_do_not_wait(runs: WarmRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs.code / "loaded.py").write_text("import sys\nassert not sys.argv[0].endswith('warm_parent.py')\n")
    assert ended(runs.start("exit", "3")) == Exit(code=3)
    assert runs.executor.warm_state("own").problem
    begun = slow_to_load(runs)
    monkeypatch.setattr(warm_parents, "_RETRY_SECONDS", 0.0)
    for _ in range(2):
        run = runs.start("exit", "3")
        assert (ended(run), run.is_warm) == (Exit(code=3), False)
    eventually(begun.exists)


def test_where_no_parent_can_be_started_a_run_begins_without_one(runs: WarmRuns) -> None:
    run = runs.start("exit", "3", env={"PYTHONPATH": str(runs.code), "TEXT": "no program\0can have that"})
    assert run.wait(SECONDS)
    with pytest.raises(RunFailedError, match="embedded null byte"):
        run.exit_status()
    assert "embedded null byte" in runs.executor.warm_state("own").problem


@pytest.mark.parametrize(
    "arguments",
    [
        *(("exit", code) for code in ("0", "1", "3", "-1", "255")),
        *((what,) for what in ("none", "large", "text", "raise", "interrupt", "raise interrupt", "leave")),
        *((what,) for what in ("kill", "abort", "segv", "terminate")),
        *((what,) for what in ("atexit", "broken atexit", "thread", "unflushed", "recurse")),
    ],
    ids=" ".join,
)
def test_it_ends_as_a_cold_run_does_with_the_same_log(runs: WarmRuns, arguments: tuple[str, ...]) -> None:
    runs.heat()
    cold, warm = runs.cold(*arguments), runs.warm(*arguments)
    assert warm[0] == cold[0]
    assert without_frames(warm[1]) == without_frames(cold[1])


def without_frames(log: str) -> list[str]:
    """Leave out the lines of a traceback that are not of the program."""
    own = f'  File "{warm_parent.__file__}"'
    lines = [
        line for before, line in pairwise(["", *re.sub("0x[0-9a-f]+", "0x", log).splitlines()]) if not before.startswith(own)
    ]
    return [line for line in lines if not line.startswith((own, '  File "<frozen runpy>"'))]


def test_the_program_finds_all_as_in_a_process_of_its_own(runs: WarmRuns, tmp_path: Path) -> None:
    runs.heat()
    changes = {"cwd": tmp_path, "umask": 0o027}
    ended(runs.start("none", **changes))  # its folder makes it another kind
    eventually(lambda: len(runs.parents) == 2)
    cold, warm = (json.loads(run("tell", "a", "b", **changes)[1]) for run in (runs.cold, runs.warm))
    for found in (cold, warm):
        log = found["files"].pop()
        assert log.endswith("/log")
        found["files"] = [path for path in found["files"] if not path.endswith("/log")]
    assert warm == cold


def test_secrets_and_gpus_are_those_of_the_run(runs: WarmRuns) -> None:
    runs.heat()
    told = json.loads(runs.warm("tell", secrets={"KEY": "secret"}, gpus=("1",))[1])["environment"]
    assert (told["KEY"], told["CUDA_VISIBLE_DEVICES"]) == ("secret", "1")
    assert "KEY" not in json.loads(runs.warm("tell")[1])["environment"]
    assert len(runs.parents) == 1


def test_each_run_has_random_numbers_of_its_own(runs: WarmRuns) -> None:
    runs.heat()
    assert len({runs.warm("random")[1] for _ in range(3)}) == 3


def test_each_step_is_forked(runs: WarmRuns) -> None:
    runs.heat()
    command = runs.command("loader")
    run = runs.start("loader", further_steps=(command.argv, (sys.executable, "-c", "print('another program')")))
    assert not run.is_warm, "one step is another program, so none is"
    run = runs.start("loader", further_steps=(command.argv, command.argv))
    assert run.is_warm
    assert ended(run) == Exit(code=0)
    assert {line.split()[0] for line in runs.log(run).splitlines()} == {str(runs.parents[0])}
    assert [run.exit_status(step) for step in range(3)] == [Exit(code=0)] * 3


@pytest.mark.parametrize("what", ["sleep", "daemon"])
def test_it_is_ended_with_all_its_processes(runs: WarmRuns, what: str) -> None:
    runs.heat()
    run = runs.start(what)
    runs.wait_for_log(run, {"sleep": "ready", "daemon": "daemon"}[what])
    run.end(0.1)
    assert not processes_of_job(runs.key(run).job_id)
    assert is_alive(runs.parents[0])


@pytest.mark.parametrize("what", ["sleep", "daemon"])
def test_its_processes_are_found_though_the_shim_was_killed(runs: WarmRuns, what: str) -> None:
    runs.heat()
    run = runs.start(what)
    assert run.is_warm
    runs.wait_for_log(run, {"sleep": "ready", "daemon": "daemon"}[what])
    os.kill(run._shim or 0, signal.SIGKILL)
    assert run.wait(SECONDS)
    left = processes_of_job(runs.key(run).job_id)
    assert left
    run.end(0.1)
    assert not any(map(is_alive, left))


def test_a_killed_parent_costs_no_run(runs: WarmRuns) -> None:
    runs.heat()
    running = runs.start("sleep")
    runs.wait_for_log(running, "ready")
    os.kill(runs.parents[0], signal.SIGKILL)
    assert ended(runs.start("exit", "3")) == Exit(code=3)
    eventually(lambda: runs.start("none").is_warm)
    assert not running.wait(0)
    running.end(0.1)
    assert not processes_of_job(runs.key(running).job_id)


def test_a_parent_that_somebody_has_stopped_is_replaced(runs: WarmRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.heat()
    monkeypatch.setattr(fork_server, "_REPLY_SECONDS", 0.2)
    stopped = runs.parents
    os.kill(stopped[0], signal.SIGSTOP)
    assert ended(runs.start("exit", "3")) == Exit(code=3)
    monkeypatch.undo()
    eventually(lambda: runs.start("none").is_warm)
    assert runs.parents != stopped


def test_a_server_that_stops_waits_for_no_parent_that_somebody_has_stopped(
    runs: WarmRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.heat()
    parent = runs.parents[0]
    os.kill(parent, signal.SIGSTOP)
    monkeypatch.setattr(fork_server, "_END_SECONDS", 3600.0)  # the test would time out if it waited
    runs.executor.close()
    assert not is_alive(parent)


def test_a_parent_is_not_ended_while_it_forks(runs: WarmRuns) -> None:
    """Once it has ended, its id may be that of another process, which would be put into a cgroup in its place."""
    runs.heat()
    (parent,) = runs.executor._warm_parents._parents.values()
    closing = threading.Thread(target=runs.executor.close)
    with parent.forking:
        closing.start()
        eventually(lambda: parent.process is None)
        closing.join(0.5)
        assert closing.is_alive()
    closing.join(SECONDS)
    assert not closing.is_alive()


def test_the_next_server_finds_it_and_its_parent_ends_with_the_server(runs: WarmRuns) -> None:
    runs.heat()
    run, parent = runs.start("sleep"), runs.parents[0]
    runs.wait_for_log(run, "ready")
    runs.executor.close()
    assert not is_alive(parent)
    found = runs.new_executor().find(runs.key(run))
    assert found is not None
    assert found.is_warm
    assert not found.wait(0)
    found.end(0.1)
    assert not processes_of_job(runs.key(run).job_id)
    found.close()


@pytest.mark.parametrize("change", ["module", "size", "new module", "gone"])
def test_what_has_changed_since_is_read_anew_and_a_new_parent_is_made(runs: WarmRuns, change: str) -> None:
    runs.heat()
    match change:
        case "module":
            (runs.code / "loaded.py").write_text(LOADED + "\nprint('new code')\n")
        case "size":
            with (runs.code / "loaded.py").open("a") as file:
                file.write("print('new code')\n")
        case "new module":
            (runs.code / "json.py").write_text("")
        case "gone":
            (runs.code / "loaded.py").rename(runs.code / "other.py")
            (runs.code / "loaded.py").write_text(LOADED)
    old = runs.parents
    run = runs.start("none")
    ended(run)
    assert not run.is_warm
    if change in ("module", "size"):
        assert "new code" in runs.log(run)
    eventually(lambda: runs.parents and runs.parents != old)
    assert not any(map(is_alive, old))
    assert runs.start("none").is_warm


def test_data_that_is_read_during_the_run_may_change(runs: WarmRuns) -> None:
    runs.heat()
    (runs.code / "data").write_text("new")
    assert runs.warm("loader")[1].split()[2] == "new"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", "threads"),
        ("raise RuntimeError('no such device')", "no such device"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(1)", "has ended"),
        ("import os; os.utime(__file__)", "changed while"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "has ended"),
        ("import os; os.environ['CUDA_VISIBLE_DEVICES']", "CUDA_VISIBLE_DEVICES"),
        ("import os; COPY = dict(os.environ)", "CUDA_VISIBLE_DEVICES"),
        ("import os; os.environ.get('PYTORCH_NVML_BASED_CUDA_CHECK')", "CUDA_VISIBLE_DEVICES"),
        (TORCH, "CUDA is initialised"),
    ],
)
def test_what_must_not_be_forked_runs_cold_and_says_why(runs: WarmRuns, code: str, problem: str) -> None:
    (runs.code / "loaded.py").write_text(f"{LOADED}\nif __import__('sys').argv[0].endswith('warm_parent.py'):\n    {code}\n")
    for _ in range(2):
        assert ended(runs.start("exit", "3", gpus=("0",))) == Exit(code=3)
        eventually(lambda: runs.executor.warm_state("own").problem or runs.executor.warm_state("own").is_warm)
    run = runs.start("exit", "3", gpus=("0",))
    assert (ended(run), run.is_warm) == (Exit(code=3), False)
    assert problem in runs.executor.warm_state("own").problem


def test_what_it_prints_when_it_is_imported_disturbs_nobody(runs: WarmRuns) -> None:
    code = "import sys, os; print('noise'); sys.stderr.write('noise'); os.write(1, b'noise'); os.write(2, b'noise')"
    (runs.code / "loaded.py").write_text(f"{LOADED}\nif __import__('sys').argv[0].endswith('warm_parent.py'):\n    {code}\n")
    runs.heat()
    assert "noise" not in runs.warm("loader")[1]


def test_a_variable_that_differs_takes_another_parent(runs: WarmRuns) -> None:
    runs.heat()
    run = runs.start("none", env={"PYTHONPATH": str(runs.code), "HF_HOME": "/elsewhere"})
    assert not run.is_warm
    eventually(lambda: len(runs.parents) == 2)


def test_a_parent_that_is_not_used_ends(runs: WarmRuns) -> None:
    runs.new_executor(LIMITS._replace(idle_seconds=0.0))
    ended(runs.start("none"))
    eventually(lambda: not runs.executor._warm_parents._parents)
    assert runs.executor.warm_state("own") == (False, "")


def test_parents_need_no_more_memory_than_they_may(runs: WarmRuns) -> None:
    runs.heat()
    size_bytes = int(Path(f"/proc/{runs.parents[0]}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    runs.executor.close()
    runs.new_executor(LIMITS._replace(max_bytes=int(1.5 * size_bytes)))
    runs.heat()
    first = runs.parents
    ended(runs.start("none", cwd=runs.folder))
    eventually(lambda: runs.parents and runs.parents != first and len(runs.parents) == 1)
    runs.executor.close()
    runs.new_executor(LIMITS._replace(max_bytes=size_bytes // 2))
    ended(runs.start("none"))
    eventually(lambda: "warm_max_bytes" in runs.executor.warm_state("own").problem)
    assert not runs.parents


def test_a_server_that_stops_waits_for_no_parent_in_the_making(runs: WarmRuns) -> None:
    begun = slow_to_load(runs)
    runs.start("none")
    eventually(begun.exists)
    closing = time.monotonic()
    runs.executor.close()
    assert time.monotonic() - closing < SECONDS / 2


def test_four_at_once_are_served(runs: WarmRuns) -> None:
    runs.heat()
    started = [runs.start("exit", str(code)) for code in range(1, 5)]
    assert [ended(run).code for run in started] == [1, 2, 3, 4]
    assert all(run.is_warm for run in started)


def script(runs: WarmRuns, text: str, *arguments: str) -> Command:
    program = (sys.executable, "-c")
    preload = Preload("own", program, "", ())
    return Command((*program, text, *arguments), env={"PYTHONPATH": str(runs.code)}, preload=preload)


def test_a_short_command_is_forked_too_and_prints_as_ever(runs: WarmRuns) -> None:
    runs.heat()
    text = "import loaded, sys; print(loaded.PID, *sys.argv); sys.stderr.write('problem'); sys.exit(3)"
    output = runs.executor.run_to_end(script(runs, text, "a b"), SECONDS)
    assert output.stdout.decode().split() == [str(runs.parents[0]), "-c", "a", "b"]
    assert output.stderr == b"problem"


def test_a_short_command_that_takes_too_long_is_killed(runs: WarmRuns) -> None:
    runs.heat()
    path = runs.folder / "pid"
    text = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    with pytest.raises(TimeoutError):
        runs.executor.run_to_end(script(runs, text), 1.0)
    assert not path.exists() or not is_alive(int(path.read_text() or 0))
    assert runs.start("none").is_warm


def test_without_a_parent_that_is_up_to_date_a_short_command_is_started_anew(runs: WarmRuns) -> None:
    tells = script(runs, "import os, loaded; print(loaded.PID == os.getpid())")
    assert runs.executor.run_to_end(tells, SECONDS).stdout == b"True\n"
    runs.heat()
    assert runs.executor.run_to_end(tells, SECONDS).stdout == b"False\n"
    (runs.code / "loaded.py").write_text(LOADED + "\n")
    assert runs.executor.run_to_end(tells, SECONDS).stdout == b"True\n"


def test_runs_of_an_account_are_cold_without_cgroups(runs: WarmRuns) -> None:
    """Only a cgroup holds what a parent of an owner may have become."""
    runs.heat()
    order = {"account": (1, []), "steps": [], "env": {}, "cwd": "", "rlimits": []}
    assert runs.executor._warm_parents.find(runs.command("none"), order) is None
    assert "cgroups" in runs.executor.warm_state("own").problem


def test_without_memory_for_them_no_run_is_warm(runs: WarmRuns) -> None:
    runs.new_executor(LIMITS._replace(max_bytes=0))
    ended(runs.start("none"))
    assert not runs.executor._warm_parents._parents
