"""The recorded end of a run: written even to a full disk, read whatever the file contains."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes_of_tests import is_alive
from running import SECONDS, Runs, ended
from small_disk import small_disk
from waiting import eventually

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.executors.local import shim, traces
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.executors.local.traces import TRACES_DIR, Exits, StepEnd, read_exits
from evalrpc.files import opening
from evalrpc.harnesses.base import Exit
from evalrpc.server.validation.evaluations import MAX_TASKS

# Reading it.

NONSENSE = [
    b"\xff\xfe\n",
    b"no end of a line",
    b"12 code\n",
    b"code 0\n",
    b"x code 0\n",
    b"12 code 256\n",
    b"12 code -1\n",
    b"12 code 1e3\n",
    b"12 signal 0\n",
    b"12 signal 999\n",
    b"12 gone 1\n",
    b"9" * 400 + b" code 0\n",
    b"12 code " + b"9" * 400 + b"\n",
    "12 code \u0663\n".encode(),
]


def write_exits(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shim.EXIT_FILE
    path.write_bytes(content)
    return path


def test_what_a_shim_writes_is_read_back(tmp_path: Path) -> None:
    content = b"5 code 0\n7 signal 9\n9 code 255\n9 error /no/such: No such file\nnone left\n"
    write_exits(tmp_path, content + b"\0" * 1000)
    steps = [StepEnd(5, code=0), StepEnd(7, signal=9), StepEnd(9, code=255), StepEnd(9, error="/no/such: No such file")]
    assert read_exits(tmp_path) == Exits(steps, none_left=True)


@pytest.mark.parametrize("nonsense", NONSENSE, ids=[ascii(line)[:30] for line in NONSENSE])
def test_from_a_line_on_that_no_shim_writes_nothing_is_believed(tmp_path: Path, nonsense: bytes) -> None:
    write_exits(tmp_path, b"5 code 0\n" + nonsense + b"7 code 0\nnone left\n")
    assert read_exits(tmp_path) == Exits([StepEnd(5, code=0)], none_left=False)


def test_a_run_can_make_nobody_read_a_million_steps_again_and_again(tmp_path: Path) -> None:
    write_exits(tmp_path, b"1 code 0\n" * 400_000)
    assert MAX_TASKS < len(read_exits(tmp_path).steps) <= 2 * MAX_TASKS


def test_a_reason_that_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    write_exits(tmp_path, b"0 error caf\xe9: not found\n")
    assert read_exits(tmp_path).steps[0].error == "caf\ufffd: not found"


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "gone"])
def test_what_is_no_file_tells_nothing_and_blocks_nobody(tmp_path: Path, kind: str) -> None:
    path = write_exits(tmp_path, b"5 code 0\n")
    elsewhere = path.rename(tmp_path / "elsewhere")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(elsewhere)
    assert read_exits(tmp_path) == Exits([], none_left=False)


def test_traces_that_can_not_be_read_are_an_error_and_not_an_absence(tmp_path: Path) -> None:
    write_exits(tmp_path, b"5 code 0\n")
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        read_exits(tmp_path)
    assert read_exits(tmp_path).steps


@pytest.mark.parametrize("nonsense", NONSENSE[:3])
def test_a_run_that_has_spoilt_its_traces_is_lost_and_can_be_ended(runs: Runs, nonsense: bytes) -> None:
    path = runs.key.attempt_dir / TRACES_DIR / shim.EXIT_FILE
    handle = runs.start("import sys; open(sys.argv[1], 'wb').write(bytes.fromhex(sys.argv[2]))", str(path), nonsense.hex())
    assert handle.wait(SECONDS)
    path.write_bytes(nonsense)
    assert ended(handle) == Exit()
    handle.end(0.0)
    again = runs.find()
    assert ended(again) == Exit()
    again.end(0.0)


def test_traces_that_the_server_may_not_read_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_exits(tmp_path, b"5 code 0\n")
    (tmp_path / shim.PID_FILE).write_text("1 1")

    def forbid(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(opening.os, "open", forbid)
    assert read_exits(tmp_path) == Exits([], none_left=False)
    assert traces.has_pid(tmp_path), "something is there"


@pytest.mark.parametrize("kept", [("log",), ("run/exit",), ("log", "run/exit")])
def test_a_run_that_has_removed_its_process_id_is_not_started_again(runs: Runs, kept: tuple[str, ...]) -> None:
    handle = runs.start("raise SystemExit(3)")
    assert ended(handle) == Exit(code=3)
    for name in {"log", "run/exit", "run/pid"} - set(kept):
        (runs.key.attempt_dir / name).unlink()
    found = LocalExecutor().find(runs.key)
    assert found is not None
    runs.keep(found)
    assert found.wait(0)


def test_a_process_that_is_no_shim_is_not_taken_for_one_whatever_its_number_and_start(runs: Runs) -> None:
    own = os.getpid()
    folder = runs.key.attempt_dir / TRACES_DIR
    folder.mkdir(parents=True)
    (folder / shim.PID_FILE).write_text(f"{own} {shim.start_time(own)}")
    found = runs.find()
    assert ended(found) == Exit()
    assert runs.executor.kill_leftovers(runs.key), "nothing of the run is left, and nothing else was killed"


def test_a_fifo_in_the_place_of_its_process_id_holds_up_no_shim(runs: Runs) -> None:
    program = "import os, sys; os.unlink(sys.argv[1]); os.mkfifo(sys.argv[1]); os.unlink(sys.argv[2]); os.mkfifo(sys.argv[2])"
    trapped = (str(runs.key.attempt_dir / TRACES_DIR / shim.PID_FILE), str(runs.key.log_path))
    handle = runs.start(program, *trapped, further_steps=(("true",),))
    assert handle.wait(SECONDS)
    assert handle.exit_status(0) == Exit(code=0)
    with pytest.raises(RunFailedError, match="could not be started"):
        handle.exit_status(1)


# Writing it.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


FILLS_THE_DISK_AND_LEAVES_A_DAEMON = """
import os, sys, time
folder, note = sys.argv[1:]
DAEMON = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()} there'); time.sleep(1000)"
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-S", "-c", DAEMON, note], {})
    os._exit(0)
while not os.path.exists(note) or "there" not in open(note).read():
    time.sleep(0.01)
with open(folder + "/filling", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
"""


@pytest.mark.parametrize("steps", [1, 300])
def test_a_disk_that_is_full_as_a_run_ends_loses_neither_its_outcome_nor_its_daemons(
    runs: Runs, disk: Path, tmp_path: Path, steps: int
) -> None:
    runs.key = RunKey(runs.key.job_id, 1, disk / "attempt-1")
    runs.executor.make_room(runs.key, steps)
    note = tmp_path / "note"
    further = (("sh", "-c", "exit 3"),) * (steps - 1)
    handle = runs.start(FILLS_THE_DISK_AND_LEAVES_A_DAEMON, str(disk), str(note), further_steps=further)
    assert handle.wait(SECONDS)
    assert [handle.exit_status(step).code for step in range(steps)] == [0] + [3] * (steps - 1)
    assert read_exits(runs.key.attempt_dir / TRACES_DIR).none_left
    assert not is_alive(int(note.read_text().split()[0]))
    with pytest.raises(OSError, match="No space left"):
        (disk / "more").write_bytes(bytes(4096))


def test_a_disk_without_room_for_the_traces_is_known_before_the_start(runs: Runs, disk: Path) -> None:
    (disk / "filling").write_bytes(bytes(1024 * 1024))
    with pytest.raises(OSError, match="No space left") as caught:
        runs.executor.make_room(RunKey(runs.key.job_id, 1, disk / "attempt-1"), 1)
    assert caught.value.errno == errno.ENOSPC


def test_making_room_again_changes_nothing_of_a_run_that_has_ended(runs: Runs) -> None:
    runs.executor.make_room(runs.key, 1)
    assert ended(runs.start("raise SystemExit(3)")) == Exit(code=3)
    runs.executor.make_room(runs.key, 1)
    assert ended(runs.find()) == Exit(code=3)


def test_where_no_room_can_be_kept_a_run_starts_all_the_same(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(traces.os, "posix_fallocate", unsupported)
    runs.executor.make_room(runs.key, 1)
    assert ended(runs.start("raise SystemExit(3)")) == Exit(code=3)


# A server without descriptors.


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Use up the descriptors of this process, so that it can't open a file."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, limits[1]))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)


def test_without_descriptors_nothing_is_started_and_later_it_is_once(runs: Runs) -> None:
    runs.executor.prepare()
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        runs.start("pass")
    assert runs.executor.find(runs.key) is None
    assert ended(runs.start("raise SystemExit(3)")) == Exit(code=3)


def test_a_look_at_processes_that_is_not_possible_does_not_pass_for_their_absence(runs: Runs) -> None:
    handle = runs.start("import time; print('ready', flush=True); time.sleep(1000)")
    runs.wait_for_log("ready")
    with no_descriptors():
        for look in (
            lambda: handle.end(0.0),
            lambda: runs.executor.kill_leftovers(runs.key),
            lambda: runs.executor.find(runs.key),
            lambda: processes_of_job(runs.key.job_id),
        ):
            with pytest.raises(OSError, match="Too many open files"):
                look()
        assert not handle.wait(0)
    handle.end(0.0)
    assert processes_of_job(runs.key.job_id) == []


def test_leftovers_are_killed_and_known_to_be_gone(runs: Runs) -> None:
    handle = runs.start("import time; print('ready', flush=True); time.sleep(1000)")
    runs.wait_for_log("ready")
    server = LocalExecutor()
    assert not server.kill_leftovers(runs.key)
    eventually(lambda: server.kill_leftovers(runs.key), "for nothing to be left")
    assert handle.wait(SECONDS)
