"""Only a missing file is nothing. Every reader of a run's files takes a shortage of the server, and a failing disk, for what
they are, and what a run has done to its files for that."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalrpc.errors import RunFailedError
from evalrpc.executors.local.traces import Exits, has_output, has_pid, read_devices, read_exits
from evalrpc.files import opening
from evalrpc.harnesses.inspect_ai.logs import read_logs
from evalrpc.harnesses.sample_answers import AnswersOfRun
from evalrpc.results.layout import read_results
from evalrpc.scheduling.log_tail import LogFollower, read_tail
from evalrpc.scheduling.results_reader import _is_small, _size_bytes
from evalrpc.scheduling.run_results import _files_in

NOT_THE_RUNS_FAULT = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE]

Fail = Callable[[int], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Make every opening of a file or a folder fail from then on."""

    def start(number: int) -> None:
        def refuse(path: Any, *_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number), os.fspath(path))

        monkeypatch.setattr(opening.os, "open", refuse)

    return start


READERS: dict[str, Callable[[Path], object]] = {
    "exit": lambda folder: read_exits(folder),
    "pid": lambda folder: has_pid(folder),
    "output": lambda folder: has_output(folder, folder / "log", has_log=False),
    "devices": lambda folder: read_devices(folder),
    "log tail": lambda folder: read_tail(folder / "log"),
    "results": lambda folder: read_results(folder, "m"),
    "inspect-ai's logs": read_logs,
    "answers in samples": lambda folder: AnswersOfRun(folder).count("samples.jsonl"),
    "names in a folder": _files_in,
    "size of a folder": _is_small,
    "size of a file": lambda folder: _size_bytes(folder, "file"),
}


@pytest.mark.parametrize("number", NOT_THE_RUNS_FAULT, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", READERS)
def test_what_is_not_the_runs_fault_is_raised_with_its_errno(tmp_path: Path, fail: Fail, name: str, number: int) -> None:
    fail(number)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        READERS[name](tmp_path)
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["results", "inspect-ai's logs", "answers in samples"])
def test_results_that_may_not_be_read_are_invalid_and_not_missing(tmp_path: Path, fail: Fail, name: str) -> None:
    fail(errno.EACCES)
    with pytest.raises(RunFailedError, match="can't be read: Permission denied") as caught:
        READERS[name](tmp_path)
    assert caught.value.job_error.reason == "RESULTS_INVALID"


def test_traces_that_may_not_be_read_are_there(tmp_path: Path, fail: Fail) -> None:
    fail(errno.EACCES)
    assert has_pid(tmp_path)
    assert has_output(tmp_path, tmp_path / "log", has_log=False)
    assert read_exits(tmp_path) == Exits([], none_left=False)


def test_a_log_that_may_not_be_read_says_so_and_one_that_is_not_there_says_nothing(tmp_path: Path, fail: Fail) -> None:
    assert read_tail(tmp_path / "log") == []
    fail(errno.EACCES)
    (line,) = read_tail(tmp_path / "log")
    assert line.endswith("can't be read: Permission denied (EACCES); the server's account needs access to it")


def test_lines_that_can_not_be_read_for_a_while_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")
    follower = LogFollower(log)
    assert list(follower.new_lines()) == ["one"]
    log.write_text("one\ntwo\n")
    with monkeypatch.context() as context:
        context.setattr(opening.os, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EMFILE, "")))
        assert list(follower.new_lines()) == []
        assert follower.last_output_ns() is None
    assert list(follower.new_lines()) == ["two"]
