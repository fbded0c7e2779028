"""Short commands: what they print is returned, and they don't outlive the server."""

import sys
import threading
from pathlib import Path

import pytest
from processes_of_tests import is_alive
from waiting import eventually

from evalrpc.executors.base import CommandOutput
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.harnesses.base import Command

SECONDS = 300.0


def python(program: str, **more: object) -> Command:
    return Command((sys.executable, "-S", "-c", program), **more)  # type: ignore[arg-type]


def test_both_streams_are_returned_however_it_ended() -> None:
    output = LocalExecutor().run_to_end(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), SECONDS)
    assert output == CommandOutput(b"out\n", b"err\n")


def test_it_runs_in_its_folder_and_in_the_environment_of_a_run_without_gpus(tmp_path: Path) -> None:
    executor = LocalExecutor({"RANK": "3", "INHERITED": "yes"})
    program = "import os; print(os.getcwd(), os.environ.get('RANK'), *map(os.environ.get, ('INHERITED', 'ADDED')), sep='|')"
    program += "; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    output = executor.run_to_end(python(program, cwd=tmp_path, env={"ADDED": "by the operator"}), SECONDS)
    assert output.stdout.decode().splitlines() == [f"{tmp_path}|None|yes|by the operator", "''"]


def test_it_is_killed_when_it_takes_too_long() -> None:
    with pytest.raises(TimeoutError, match=r"longer than 0\.1 seconds"):
        LocalExecutor().run_to_end(python("import time; time.sleep(1000)"), 0.1)


def test_what_can_not_be_started_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        LocalExecutor().run_to_end(Command(("/nonexistent/program",)), SECONDS)


def test_a_close_ends_what_runs_and_nothing_more_is_started(tmp_path: Path) -> None:
    executor, errors = LocalExecutor(), []

    def run() -> None:
        program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
        try:
            executor.run_to_end(Command((sys.executable, "-S", "-c", program, str(tmp_path / "pid"))), SECONDS)
        except OSError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    executor.close()
    thread.join(SECONDS)
    assert errors == ["the server stops"]
    assert not is_alive(pid)
    with pytest.raises(OSError, match="the server stops"):
        executor.run_to_end(python("print(1)"), SECONDS)
