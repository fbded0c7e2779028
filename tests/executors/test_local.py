"""Runs on this machine: started, seen to end, ended, and found again."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes_of_tests import is_alive, kill_job
from waiting import eventually

from evalrpc.errors import RunFailedError
from evalrpc.executors import child
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import TRACES_DIR, LocalExecutor, LocalRun, _orphaned_spares
from evalrpc.executors.processes import processes_of_job
from evalrpc.harnesses.base import Command, Exit

SECONDS = 30.0


@pytest.fixture
def key(tmp_path: Path) -> Iterator[RunKey]:
    key = RunKey(str(uuid.uuid4()), 1, tmp_path / "attempt-1")
    yield key
    kill_job(key.job_id)


class Runs:
    """Starts runs of Python programs, and lets go of them when the test is over."""

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.executor = LocalExecutor({**os.environ, "RANK": "3", "INHERITED": "yes"})
        self._handles: list[LocalRun] = []

    def start(self, program: str, *arguments: str, gpus: tuple[str, ...] = (), **command: object) -> LocalRun:
        argv = (sys.executable, "-c", program, *arguments)
        return self.keep(self.executor.start(self.key, Command(argv, **command), gpus))  # type: ignore[arg-type]

    def keep(self, handle: LocalRun) -> LocalRun:
        self._handles.append(handle)
        return handle

    def find(self) -> LocalRun:
        handle = LocalExecutor().find(self.key)
        assert handle is not None
        return self.keep(handle)

    def close(self) -> None:
        self.executor.close()
        for handle in self._handles:
            handle.end(0.0)
            handle.close()
        kill_job(self.key.job_id)

    def log(self) -> str:
        return self.key.log_path.read_text()

    def wait_for_log(self, text: str) -> None:
        eventually(lambda: self.key.log_path.exists() and text in self.log(), f"for {text!r} in the log")


@pytest.fixture
def runs(key: RunKey) -> Iterator[Runs]:
    runs = Runs(key)
    yield runs
    runs.close()


def ended(handle: LocalRun) -> Exit:
    assert handle.wait(SECONDS)
    return handle.exit_status()


# How a run ends.


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
def test_the_exit_code_is_the_programs_own(runs: Runs, code: int) -> None:
    assert ended(runs.start(f"raise SystemExit({code})")) == Exit(code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_the_signal_is_the_one_that_ended_the_program(runs: Runs, number: signal.Signals) -> None:
    program = f"import os, signal; signal.signal({int(signal.SIGINT)}, signal.SIG_DFL); os.kill(os.getpid(), {int(number)})"
    assert ended(runs.start(program)) == Exit(signal=int(number))


def test_a_program_that_does_not_exist_is_a_start_failure(runs: Runs, key: RunKey) -> None:
    handle = runs.keep(runs.executor.start(key, Command(("/nonexistent/program",)), ()))
    assert handle.wait(SECONDS)
    with pytest.raises(RunFailedError) as caught:
        handle.exit_status()
    assert caught.value.job_error.reason == "START_FAILED"
    assert "/nonexistent/program" in caught.value.job_error.message


@pytest.mark.parametrize(
    "command",
    [
        Command((sys.executable, "-c", "pass"), cwd=Path("/nonexistent")),
        Command((sys.executable, "-c", "pass", "x" * 10_000_000)),
        Command((sys.executable, "-c", "a\0b")),
        Command((sys.executable, "-c", "pass"), files={Path("/nonexistent/file"): b""}),
        Command((sys.executable, "-c", "pass"), env={"A": "a\0b"}),
    ],
    ids=["no folder", "argument too long", "null character", "no place for a file", "null in the environment"],
)
def test_what_can_not_be_started_is_a_start_failure(runs: Runs, key: RunKey, command: Command) -> None:
    with pytest.raises(RunFailedError) as caught:
        ended(runs.keep(runs.executor.start(key, command, ())))
    assert caught.value.job_error.reason == "START_FAILED"
    assert processes_of_job(key.job_id) == []


def test_waiting_ends_when_time_is_up_and_when_it_is_interrupted(runs: Runs) -> None:
    handle = runs.start("import time; time.sleep(1000)")
    assert not handle.wait(0)
    assert not handle.wait(0.01)
    handle.interrupt()
    assert not handle.wait(SECONDS), "an interrupt before the wait counts for it"
    threading.Timer(0.05, handle.interrupt).start()
    assert not handle.wait(SECONDS)


def test_an_ended_run_stays_ended(runs: Runs) -> None:
    handle = runs.start("pass")
    assert ended(handle) == Exit(code=0)
    handle.interrupt()
    assert handle.wait(0)
    assert handle.exit_status() == Exit(code=0)


def test_a_run_that_has_ended_leaves_no_zombie(runs: Runs) -> None:
    handle = runs.start("pass")
    ended(handle)
    assert handle._process is not None
    assert not Path(f"/proc/{handle._process.pid}").exists()


def test_a_run_that_was_ended_leaves_no_zombie(runs: Runs) -> None:
    handle = runs.start("import time; time.sleep(1000)")
    handle.end(SECONDS)
    assert handle._process is not None
    assert not Path(f"/proc/{handle._process.pid}").exists()


# What a run is given.


def test_standard_input_is_closed(runs: Runs) -> None:
    assert ended(runs.start("import sys; sys.exit(len(sys.stdin.read()))")) == Exit(code=0)


def test_output_goes_straight_to_the_log_in_its_order(runs: Runs) -> None:
    program = (
        "import sys\nfor n in range(3):\n print('out', n)\n print('err', n, file=sys.stderr)\nimport time; time.sleep(1000)"
    )
    runs.start(program)
    runs.wait_for_log("out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\n")


def test_the_log_has_every_byte_though_nobody_reads_it(runs: Runs) -> None:
    handle = runs.start("import sys\nfor _ in range(50): sys.stdout.write('x' * 100_000)")
    assert ended(handle) == Exit(code=0)
    assert runs.key.log_path.stat().st_size == 5_000_000


def test_the_environment_is_built(runs: Runs) -> None:
    program = "import os\nfor name in sorted(os.environ): print(name, '=', os.environ[name], sep='')"
    handle = runs.start(program, gpus=("2", "0"), env={"ADDED": "by the operator"})
    assert ended(handle) == Exit(code=0)
    lines = set(runs.log().splitlines())
    assert {"CUDA_VISIBLE_DEVICES=2,0", f"EVALRPC_JOB_ID={runs.key.job_id}", "EVALRPC_ATTEMPT=1"} <= lines
    assert {"INHERITED=yes", "ADDED=by the operator"} <= lines
    assert "RANK=3" not in lines


def test_a_run_has_a_session_of_its_own(runs: Runs) -> None:
    handle = runs.start("import os; print(os.getsid(0) == os.getppid(), flush=True)")
    ended(handle)
    assert runs.log() == "True\n"


def test_no_descriptor_of_the_server_reaches_a_run(runs: Runs, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        ended(runs.start("import os; print(*[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')[:3]])"))
        ended_log = runs.log()
    assert "secret" not in ended_log


def test_files_are_written_before_it_starts_and_it_starts_in_its_folder(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    handle = runs.start(
        "print(open('given.txt').read())", files={tmp_path / "here/given.txt": b"content"}, cwd=tmp_path / "here"
    )
    assert ended(handle) == Exit(code=0)
    assert runs.log() == "content\n"


def test_signals_mean_to_the_program_what_they_always_do(runs: Runs) -> None:
    ended(runs.start("import signal; print([signal.getsignal(n) for n in (1, 15)] == [signal.SIG_DFL] * 2)"))
    assert runs.log() == "True\n"


# Ending a run.

IGNORES = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
time.sleep(1000)
"""

FAMILY = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''{IGNORES}'''])
stranger = subprocess.Popen([sys.executable, "-c", '''{IGNORES}'''], start_new_session=True)
print("parent", os.getpid(), flush=True)
time.sleep(1000)
"""


def family(runs: Runs) -> list[int]:
    """Return a process of the run, its child, and a child that left the session, once all three are there."""
    eventually(lambda: runs.key.log_path.exists() and runs.log().count("ready") == 2 and "parent" in runs.log())
    return [int(line.split()[1]) for line in runs.log().splitlines()]


def test_the_whole_tree_is_ended_with_what_ignores_sigterm_and_left_the_session(runs: Runs) -> None:
    handle = runs.start(FAMILY)
    pids = family(runs)
    assert len(pids) == 3
    handle.end(0.1)
    assert not any(is_alive(pid) for pid in pids)
    assert processes_of_job(runs.key.job_id) == []
    assert handle.wait(SECONDS)


def test_what_outlives_its_run_is_ended_too(runs: Runs) -> None:
    program = FAMILY.replace('time.sleep(1000)\n"""', "").rpartition("time.sleep")[0] + "\nraise SystemExit(7)"
    handle = runs.start(program)
    assert ended(handle) == Exit(code=7)
    pids = family(runs)
    handle.end(0.0)
    assert not any(is_alive(pid) for pid in pids)
    assert handle.exit_status() == Exit(code=7)


def test_a_program_has_its_time_to_clean_up(runs: Runs) -> None:
    program = """
import signal, sys, time
def stop(*_):
    print("cleaned up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(1000)
"""
    handle = runs.start(program)
    runs.wait_for_log("ready")
    handle.end(SECONDS)
    assert "cleaned up" in runs.log()
    assert ended(handle) == Exit(code=0)


def test_a_stopped_process_is_ended(runs: Runs) -> None:
    handle = runs.start("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    eventually(lambda: any(b") T " in Path(f"/proc/{pid}/stat").read_bytes() for pid in processes_of_job(runs.key.job_id)))
    handle.end(0.1)
    assert ended(handle) == Exit(signal=int(signal.SIGKILL))


def test_ending_a_run_touches_no_other(runs: Runs, tmp_path: Path) -> None:
    other = Runs(RunKey(str(uuid.uuid4()), 1, tmp_path / "other"))
    try:
        neighbour = other.start("import time; time.sleep(1000)")
        handle = runs.start("import time; time.sleep(1000)")
        handle.end(0.1)
        assert not neighbour.wait(0)
        eventually(lambda: processes_of_job(other.key.job_id), "for the program of the other run")
        assert not neighbour.wait(0)
    finally:
        other.close()


def test_ending_twice_is_ending_once(runs: Runs) -> None:
    handle = runs.start("import time; time.sleep(1000)")
    handle.end(0.1)
    handle.end(0.1)
    assert handle.wait(0)


# What is started ahead of time.


def test_a_run_starts_also_when_what_was_started_ahead_of_time_was_killed(runs: Runs) -> None:
    runs.executor.prepare()
    spare = runs.executor._spares[0]
    spare.kill()
    spare.wait()
    assert ended(runs.start("raise SystemExit(3)")) == Exit(code=3)


def test_nothing_is_left_of_a_server_that_was_killed_before_it_had_a_run(runs: Runs) -> None:
    program = "import evalrpc.executors.local as local; local.LocalExecutor().prepare(); print('ready', flush=True); input()"
    with subprocess.Popen((sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        server.kill()
    eventually(lambda: not _orphaned_spares(), "for the end of what it had started ahead of time")


def test_a_closed_executor_leaves_nothing_behind(runs: Runs) -> None:
    runs.executor.prepare()
    spares = list(runs.executor._spares)
    runs.executor.close()
    assert spares
    assert all(spare.returncode == 0 for spare in spares)


# Finding a run again.

SERVER = """
import sys, time
from pathlib import Path
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import LocalExecutor
from evalrpc.harnesses.base import Command
job_id, attempt_dir, program = sys.argv[1:]
LocalExecutor().start(RunKey(job_id, 1, Path(attempt_dir)), Command((sys.executable, "-c", program)), ())
print("started", flush=True)
time.sleep(1000)
"""


def start_elsewhere_and_kill(runs: Runs, program: str) -> None:
    """Let a server start the run, and kill that server at once."""
    arguments = (sys.executable, "-c", SERVER, runs.key.job_id, str(runs.key.attempt_dir), program)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "started\n"
        server.kill()


WAITS = "import os, time\nwhile not os.path.exists({flag!r}): time.sleep(0.01)\n{end}"


@pytest.mark.parametrize(
    ("end", "expected"),
    [("raise SystemExit(0)", Exit(code=0)), ("raise SystemExit(5)", Exit(code=5)), ("os.kill(os.getpid(), 9)", Exit(signal=9))],
)
def test_a_run_that_outlived_its_server_is_found_and_its_true_end_is_seen(
    runs: Runs, tmp_path: Path, end: str, expected: Exit
) -> None:
    flag = tmp_path / "flag"
    start_elsewhere_and_kill(runs, WAITS.format(flag=str(flag), end=end))
    handle = runs.find()
    assert not handle.wait(0.01)
    flag.touch()
    assert ended(handle) == expected


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_ended_while_no_server_was_there_still_tells_how(runs: Runs, code: int) -> None:
    start_elsewhere_and_kill(runs, f"raise SystemExit({code})")
    eventually(lambda: not processes_of_job(runs.key.job_id))
    handle = runs.find()
    assert ended(handle) == Exit(code=code)
    handle.end(0.0)


def test_a_run_that_could_not_be_started_still_tells_so_after_a_restart(runs: Runs, key: RunKey) -> None:
    first = runs.keep(runs.executor.start(key, Command(("/nonexistent/program",)), ()))
    assert first.wait(SECONDS)
    with pytest.raises(RunFailedError):
        runs.find().exit_status()


def test_a_run_found_again_can_be_ended_with_its_whole_tree(runs: Runs) -> None:
    start_elsewhere_and_kill(runs, FAMILY)
    pids = family(runs)
    handle = runs.find()
    handle.end(0.1)
    assert not any(is_alive(pid) for pid in pids)
    assert handle.wait(SECONDS)


def test_a_run_found_again_can_be_interrupted(runs: Runs) -> None:
    start_elsewhere_and_kill(runs, "import time; time.sleep(1000)")
    handle = runs.find()
    handle.interrupt()
    assert not handle.wait(SECONDS)


def test_a_run_whose_child_script_was_killed_vanished(runs: Runs) -> None:
    start_elsewhere_and_kill(runs, "import time; time.sleep(1000)")
    pid_file = runs.key.attempt_dir / TRACES_DIR / child.PID_FILE
    pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text()).split()[0])
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    handle = runs.find()
    assert ended(handle) == Exit(None, None)
    handle.end(0.1)
    assert processes_of_job(runs.key.job_id) == [], "the program itself must not go on alone"


def test_a_run_whose_child_script_is_killed_under_our_eyes_is_seen_to_end(runs: Runs) -> None:
    handle = runs.start("import time; print('ready', flush=True); time.sleep(1000)")
    runs.wait_for_log("ready")
    assert handle._process is not None
    handle._process.kill()
    assert ended(handle) == Exit(signal=int(signal.SIGKILL))
    handle.end(0.1)
    assert processes_of_job(runs.key.job_id) == []


def test_a_run_that_never_started_is_not_found(runs: Runs) -> None:
    assert runs.executor.find(runs.key) is None


def test_another_process_that_got_the_number_is_not_taken_for_the_run(runs: Runs) -> None:
    traces = runs.key.attempt_dir / TRACES_DIR
    traces.mkdir(parents=True)
    (traces / child.PID_FILE).write_text(f"{os.getpid()} 12345")
    handle = runs.find()
    assert ended(handle) == Exit(None, None)
    handle.end(0.0)


@pytest.mark.parametrize("content", ["", "x y", "1", f"{2**40} 5", "-5 5"])
def test_a_broken_pid_file_is_a_run_that_vanished(runs: Runs, content: str) -> None:
    traces = runs.key.attempt_dir / TRACES_DIR
    traces.mkdir(parents=True)
    (traces / child.PID_FILE).write_text(content)
    assert ended(runs.find()) == Exit(None, None)


def test_a_process_without_a_pid_file_is_waited_for_rather_than_started_twice(runs: Runs) -> None:
    """The server died right after the start, and the child script has not written its file yet."""
    start_elsewhere_and_kill(runs, "import time; time.sleep(1000)")
    pid_file = runs.key.attempt_dir / TRACES_DIR / child.PID_FILE
    eventually(pid_file.exists)
    hidden = pid_file.rename(pid_file.with_name("hidden"))
    timer = threading.Timer(0.2, lambda: hidden.rename(pid_file))
    timer.start()
    handle = runs.find()
    timer.join()
    assert not handle.wait(0)


def test_no_descriptors_are_left_open(runs: Runs) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    for round_number in range(3):
        if round_number == 1:
            before = descriptors()
        handle = runs.executor.start(runs.key, Command((sys.executable, "-c", "pass")), ())
        assert handle.wait(SECONDS)
        handle.close()
    assert descriptors() == before


def test_a_start_time_tells_processes_of_one_number_apart() -> None:
    mine = child.start_time(os.getpid())
    assert mine == child.start_time(os.getpid())
    time.sleep(0.02)  # a tick of the kernel
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as other:
        assert child.start_time(other.pid) != mine


# Several steps.


def start_steps(runs: Runs, *steps: tuple[str, ...]) -> LocalRun:
    return runs.keep(runs.executor.start(runs.key, Command(steps[0], further_steps=steps[1:]), ()))


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


SLEEPS = program("import time; print('ready', flush=True); time.sleep(1000)")


def test_steps_run_one_after_the_other_whatever_became_of_those_before(runs: Runs) -> None:
    exits = [program(f"import sys; print({number}); sys.exit({number})") for number in (0, 3)]
    handle = start_steps(runs, *exits, ("/nonexistent/program",), program("print('last')"))
    assert handle.wait(SECONDS)
    assert runs.log() == "0\n3\nlast\n"
    assert [handle.exit_status(step) for step in (0, 1, 3)] == [Exit(code=0), Exit(code=3), Exit(code=0)]
    with pytest.raises(RunFailedError, match="/nonexistent/program: No such file or directory"):
        handle.exit_status(2)
    assert handle.step_ends() == [2, 4, 4, 9], "where each ended in the log"


def test_what_has_ended_is_known_while_the_next_step_runs_also_to_another_server(runs: Runs) -> None:
    handle = start_steps(runs, program("print('one')"), SLEEPS)
    eventually(lambda: handle.step_ends() == [4], "for the end of the first step")
    found = runs.find()
    assert (found.step_ends(), found.exit_status(0)) == ([4], Exit(code=0))


def test_no_step_is_started_once_the_run_is_to_end(runs: Runs) -> None:
    handle = start_steps(runs, SLEEPS, program("print('more')"))
    runs.wait_for_log("ready")
    handle.end(SECONDS)
    assert runs.log() == "ready\n"
