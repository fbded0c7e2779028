"""Runs on this machine: started, waited for, ended, and found again."""

import array
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes_of_tests import is_alive
from running import CLEANING_UP, SECONDS, Runs, ended
from waiting import eventually

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Resources, RunKey
from evalrpc.executors.local import leftovers, run, shim
from evalrpc.executors.local.fork_server import ForkServer
from evalrpc.executors.local.leftovers import _about_to_begin
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.executors.local.run import LocalRun
from evalrpc.executors.local.traces import TRACES_DIR
from evalrpc.harnesses.base import Command, Exit

NOWHERE = Resources("local")

# How a run ends.


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
def test_the_exit_code_is_the_programs_own(runs: Runs, code: int) -> None:
    assert ended(runs.start(f"raise SystemExit({code})")) == Exit(code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_the_signal_is_the_one_that_ended_the_program(runs: Runs, number: signal.Signals) -> None:
    program = f"import os, signal; signal.signal({int(signal.SIGINT)}, signal.SIG_DFL); os.kill(os.getpid(), {int(number)})"
    assert ended(runs.start(program)) == Exit(signal=int(number))


def test_a_program_that_does_not_exist_is_a_start_failure(runs: Runs, key: RunKey) -> None:
    handle = runs.keep(runs.executor.start(key, Command(("/nonexistent/program",)), NOWHERE))
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
        ended(runs.keep(runs.executor.start(key, command, NOWHERE)))
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
    handle = runs.executor.start(runs.key, Command(program("pass")), NOWHERE)
    ended(handle)
    handle.close()
    assert not Path(f"/proc/{handle._shim}").exists()


def test_a_run_that_was_ended_leaves_no_zombie(runs: Runs) -> None:
    handle = runs.executor.start(runs.key, Command(SLEEPS), NOWHERE)
    handle.end(SECONDS)
    handle.close()
    assert not Path(f"/proc/{handle._shim}").exists()


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
    ended(
        runs.start("""
import signal
print([signal.getsignal(n) for n in (1, 10, 15)] == [signal.SIG_DFL] * 3, signal.pthread_sigmask(signal.SIG_BLOCK, []))
""")
    )
    assert runs.log() == "True set()\n"


def test_a_program_whose_reader_is_gone_is_ended_by_that_as_in_any_shell(runs: Runs) -> None:
    ended(runs.keep(runs.executor.start(runs.key, Command(("sh", "-c", "(yes; echo $? >&2) | head -n 1")), NOWHERE)))
    assert sorted(runs.log().split()) == [str(128 + signal.SIGPIPE), "y"]


# Ending a run. Its processes write each line with one call: an unbuffered print writes word by word.

IGNORES = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready %d\\n" % os.getpid())
time.sleep(1000)
"""

FAMILY = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", r'''{IGNORES}'''])
stranger = subprocess.Popen([sys.executable, "-c", r'''{IGNORES}'''], start_new_session=True)
os.write(1, b"parent %d\\n" % os.getpid())
time.sleep(1000)
"""


def family(runs: Runs) -> list[int]:
    """Return the ids of a process of the run, its child, and a child that left the session, once all three are there."""
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
    ready = f"open({str(runs.key.log_path)!r}).read().count('ready') == 2"
    program = FAMILY.rpartition("time.sleep")[0] + f"while not {ready}: time.sleep(0.01)\nraise SystemExit(7)"
    handle = runs.start(program)
    pids = family(runs)
    assert ended(handle) == Exit(code=7)
    handle.end(0.0)
    assert not any(is_alive(pid) for pid in pids)
    assert handle.exit_status() == Exit(code=7)


def test_a_program_has_its_time_to_clean_up(runs: Runs) -> None:
    handle = runs.start(CLEANING_UP)
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


# What a program leaves behind when it ends or is ended, wherever it went.

ESCAPES = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-S", "-c", sys.argv[1]], {})
    os._exit(0)
while "escaped" not in open(sys.argv[2]).read():
    time.sleep(0.01)
"""

ESCAPED = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("escaped", os.getpid(), flush=True)
"""

SLEEPING = "time.sleep(1000)"


def escape(runs: Runs, end: str, then: str = SLEEPING) -> tuple[str, str, str]:
    """Return a program that starts another one that leaves its session, has another environment, and loses its parent."""
    return ESCAPES + end, ESCAPED + then, str(runs.key.log_path)


def escaped(runs: Runs) -> int:
    runs.wait_for_log("escaped")
    return int(runs.log().split()[1])


def test_an_end_leaves_nothing_of_what_left_the_session_and_the_environment(runs: Runs) -> None:
    handle = runs.start(*escape(runs, "sys.exit(7)"))
    assert ended(handle) == Exit(code=7)
    assert not is_alive(escaped(runs))


def test_a_cancel_leaves_nothing_of_what_left_the_session_and_the_environment(runs: Runs) -> None:
    handle = runs.start(*escape(runs, SLEEPING))
    pid = escaped(runs)
    assert pid not in processes_of_job(runs.key.job_id)
    handle.end(0.1)
    assert not is_alive(pid)


def test_a_cancel_by_another_server_leaves_nothing_of_it_either(runs: Runs) -> None:
    start_elsewhere_and_kill(runs, *escape(runs, SLEEPING))
    pid = escaped(runs)
    runs.find().end(0.1)
    assert not is_alive(pid)


@pytest.mark.parametrize("end", ["sys.exit(7)", SLEEPING])
def test_what_forks_and_ends_without_end_is_caught(runs: Runs, tmp_path: Path, end: str) -> None:
    """Each of its processes lives for some milliseconds, in its own session."""
    beat = tmp_path / "beat"
    then = f"""
while True:
    open({str(beat)!r}, "w").close()
    time.sleep(0.003)
    if os.fork(): os._exit(0)
    os.setsid()
"""
    handle = runs.start(*escape(runs, end, then))
    eventually(beat.exists)
    if end != SLEEPING:
        assert ended(handle) == Exit(code=7)
    handle.end(0.1)
    beat.unlink()
    assert handle.wait(SECONDS)
    assert shim.NONE_LEFT in (runs.key.attempt_dir / TRACES_DIR / shim.EXIT_FILE).read_text()
    assert not beat.exists()


def test_a_run_that_leaves_nothing_is_ended_without_a_search(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = runs.start("pass")
    assert ended(handle) == Exit(code=0)
    with monkeypatch.context() as context:
        context.setattr(leftovers, "processes_of_job", lambda *_: pytest.fail("it looked for processes"))
        handle.end(0.0)


def test_where_no_process_can_be_adopted_a_search_ends_what_is_left(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "shim.py"
    script.write_text(Path(shim.__file__).read_text().replace("_PR_SET_CHILD_SUBREAPER = 36", "_PR_SET_CHILD_SUBREAPER = -1"))
    monkeypatch.setattr(shim, "__file__", str(script))
    handle = runs.start("import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid); sys.exit(7)", *SLEEPS)
    assert ended(handle) == Exit(code=7)
    left = int(next(filter(str.isdigit, runs.log().split())))
    assert is_alive(left)
    handle.end(0.0)
    assert not is_alive(left)


def test_what_has_lost_its_parent_has_its_time_to_clean_up_too(runs: Runs) -> None:
    worker = """
import os, signal, sys, time
launcher = os.getppid()
def stop(*_):
    while os.getppid() == launcher: time.sleep(0.01)
    print("cleaned up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(1000)
"""
    handle = runs.start("import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(1000)", *program(worker))
    runs.wait_for_log("ready")
    handle.end(SECONDS)
    assert "cleaned up" in runs.log()


def test_what_has_lost_its_parent_leaves_no_zombie_while_the_run_goes_on(runs: Runs) -> None:
    handle = runs.start("""
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    os._exit(0)
time.sleep(1000)
""")
    pid = int(eventually(lambda: runs.key.log_path.exists() and runs.log().strip()))
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert not handle.wait(0)


def test_a_stopped_shim_does_not_keep_a_run_from_being_ended(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHIM_SECONDS", 0.1)
    handle = runs.start(SLEEPS[-1])
    runs.wait_for_log("ready")
    assert handle._shim is not None
    os.kill(handle._shim, signal.SIGSTOP)
    handle.end(0.1)
    assert handle.wait(0)
    assert processes_of_job(runs.key.job_id) == []


# The fork server.


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def fork_server_of(runs: Runs) -> int:
    runs.executor.prepare()
    assert runs.executor._fork_server is not None
    return runs.executor._fork_server.pid


def test_a_run_starts_also_when_the_fork_server_was_killed(runs: Runs) -> None:
    kill(fork_server_of(runs))
    assert ended(runs.start("raise SystemExit(3)")) == Exit(code=3)


def test_a_run_goes_on_and_tells_how_it_ended_though_its_fork_server_was_killed(runs: Runs, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    handle = runs.start(WAITS.format(flag=str(flag), end="raise SystemExit(3)"))
    kill(fork_server_of(runs))
    assert not handle.wait(0.01)
    flag.touch()
    assert ended(handle) == Exit(code=3)


def test_an_order_that_a_killed_fork_server_had_not_read_is_carried_out_once_by_the_next(runs: Runs) -> None:
    first = fork_server_of(runs)
    os.kill(first, signal.SIGSTOP)
    timer = threading.Thread(target=lambda: (eventually(lambda: unread(first)), kill(first)))
    timer.start()
    assert ended(runs.start("print('once')")) == Exit(code=0)
    timer.join()
    assert fork_server_of(runs) != first
    assert runs.log() == "once\n"


def test_an_order_that_a_killed_fork_server_had_carried_out_is_not_carried_out_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_before_it_answers(fork_server: ForkServer, order: Mapping[str, object]) -> int:
        fork(fork_server, order)
        kill(fork_server.pid)
        raise BrokenPipeError

    fork = ForkServer.fork
    monkeypatch.setattr(ForkServer, "fork", killed_before_it_answers)
    assert ended(runs.start("print('once'); raise SystemExit(3)")) == Exit(code=3)
    assert runs.log() == "once\n"


def test_fork_servers_that_end_at_once_are_a_start_failure(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with pytest.raises(RunFailedError) as caught:
        runs.executor.start(runs.key, Command(("true",)), NOWHERE)
    assert caught.value.job_error.reason == "START_FAILED"


def test_an_order_of_a_killed_server_is_carried_out_and_found(runs: Runs) -> None:
    """The order is in the pipe to the fork server, and has left no other trace yet."""
    with server_elsewhere(runs, "print('once', flush=True); raise SystemExit(3)") as (server, fork_server):
        os.kill(fork_server, signal.SIGSTOP)
        tell(server)
        eventually(lambda: unread(fork_server), "for the order to lie in the pipe")
        server.kill()
    threading.Timer(0.2, os.kill, [fork_server, signal.SIGCONT]).start()
    assert ended(runs.find()) == Exit(code=3)
    assert runs.log() == "once\n"


def test_the_fork_server_heeds_no_signal_that_asks_it_to_end(runs: Runs) -> None:
    """A service manager may signal all processes of a service while the server still drains."""
    pid = fork_server_of(runs)
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == f"{shim.FORK_SERVER_NAME}\n")
    eventually(lambda: blocks(pid, signal.SIGTERM))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert ended(runs.start("raise SystemExit(3)")) == Exit(code=3)
    assert fork_server_of(runs) == pid


def test_nothing_is_left_of_a_server_that_was_killed_before_it_had_a_run(runs: Runs) -> None:
    with server_elsewhere(runs, "") as (server, fork_server):
        server.kill()
    eventually(lambda: not is_alive(fork_server))
    eventually(lambda: not _about_to_begin(None))  # other servers on this machine may have some, but only for a moment


def test_a_closed_executor_leaves_nothing_behind(runs: Runs) -> None:
    pid = fork_server_of(runs)
    runs.executor.close()
    runs.executor.close()
    assert not Path(f"/proc/{pid}").exists()


def unread(pid: int) -> int:
    """Return how many unread bytes are in the pipe that is the standard input of a process."""
    count = array.array("i", [0])
    with Path(f"/proc/{pid}/fd/0").open("rb") as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def blocks(pid: int, number: signal.Signals) -> bool:
    (blocked,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:"))
    return bool(int(blocked.split()[1], 16) >> (number - 1) & 1)


# Finding a run again.

SERVER = """
import sys, time
from pathlib import Path
from evalrpc.executors.base import Resources, RunKey
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.harnesses.base import Command
job_id, attempt_dir, *command = sys.argv[1:]
executor = LocalExecutor()
executor.prepare()
print(executor._fork_server.pid, flush=True)
input()
executor.start(RunKey(job_id, 1, Path(attempt_dir)), Command((sys.executable, "-c", *command)), Resources("local"))
print("started", flush=True)
time.sleep(1000)
"""


@contextmanager
def server_elsewhere(runs: Runs, *command: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Yield a server that starts the run on `tell`, and the process id of its fork server."""
    arguments = (sys.executable, "-c", SERVER, runs.key.job_id, str(runs.key.attempt_dir), *command)
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server, int(server.stdout.readline())


def tell(server: "subprocess.Popen[str]") -> None:
    assert server.stdin is not None
    server.stdin.write("\n")
    server.stdin.flush()


def start_elsewhere_and_kill(runs: Runs, *command: str) -> None:
    """Let a server start the run, then kill that server at once."""
    with server_elsewhere(runs, *command) as (server, _):
        tell(server)
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
    first = runs.keep(runs.executor.start(key, Command(("/nonexistent/program",)), NOWHERE))
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
    pid_file = runs.key.attempt_dir / TRACES_DIR / shim.PID_FILE
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
    kill(handle._shim)
    assert ended(handle) == Exit(signal=int(signal.SIGKILL))
    handle.end(0.1)
    assert processes_of_job(runs.key.job_id) == []


def test_a_run_that_never_started_is_not_found(runs: Runs) -> None:
    assert runs.executor.find(runs.key) is None


def test_another_process_that_got_the_number_is_not_taken_for_the_run(runs: Runs) -> None:
    traces = runs.key.attempt_dir / TRACES_DIR
    traces.mkdir(parents=True)
    (traces / shim.PID_FILE).write_text(f"{os.getpid()} 12345")
    handle = runs.find()
    assert ended(handle) == Exit(None, None)
    handle.end(0.0)


@pytest.mark.parametrize("content", ["", "x y", "1", f"{2**40} 5", "-5 5"])
def test_a_broken_pid_file_is_a_run_that_vanished(runs: Runs, content: str) -> None:
    traces = runs.key.attempt_dir / TRACES_DIR
    traces.mkdir(parents=True)
    (traces / shim.PID_FILE).write_text(content)
    assert ended(runs.find()) == Exit(None, None)


def test_a_process_without_traces_is_waited_for_rather_than_started_twice(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server died right after the start, and the shim has left no trace yet when the next server first looks."""
    start_elsewhere_and_kill(runs, SLEEPS[-1])
    runs.wait_for_log("ready")
    looks: list[bool] = []

    def look(key: RunKey) -> bool:
        looks.append(len(looks) > 0 and has_left_traces(key))
        return looks[-1]

    has_left_traces = leftovers._has_left_traces
    monkeypatch.setattr(leftovers, "_has_left_traces", look)
    handle = runs.find()
    assert looks == [False, True]
    assert not handle.wait(0)


def test_a_run_that_has_removed_its_traces_is_found_at_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    start_elsewhere_and_kill(runs, SLEEPS[-1])
    runs.wait_for_log("ready")
    shutil.rmtree(runs.key.attempt_dir)
    monkeypatch.setattr(leftovers.time, "sleep", lambda _: pytest.fail("it waited"))
    assert not runs.find().wait(0)
    monkeypatch.undo()


def test_no_descriptors_are_left_open(runs: Runs) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    for round_number in range(3):
        if round_number == 1:
            before = descriptors()
        handle = runs.executor.start(runs.key, Command((sys.executable, "-c", "pass")), NOWHERE)
        assert handle.wait(SECONDS)
        handle.close()
    eventually(lambda: descriptors() <= before, "for none to be left, of other tests either")


def test_a_start_time_tells_processes_of_one_number_apart() -> None:
    mine = shim.start_time(os.getpid())
    assert mine == shim.start_time(os.getpid())
    time.sleep(0.02)  # more than a kernel tick
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as other:
        assert shim.start_time(other.pid) != mine


# Several steps.


def start_steps(runs: Runs, *steps: tuple[str, ...]) -> LocalRun:
    return runs.keep(runs.executor.start(runs.key, Command(steps[0], further_steps=steps[1:]), NOWHERE))


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", text)


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
