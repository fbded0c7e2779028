"""What has come of a run so far, by what lies in its folders."""

import errno
import json
from pathlib import Path

import pytest

from evalrpc.config import HarnessSettings
from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Exit, Run
from evalrpc.harnesses.command import CommandHarness
from evalrpc.harnesses.inspect_ai.harness import InspectHarness
from evalrpc.harnesses.steps import steps_of
from evalrpc.results import layout
from evalrpc.scheduling import run_results
from evalrpc.scheduling.kept_steps import RunSteps
from evalrpc.scheduling.results_reader import ResultsReader
from evalrpc.scheduling.run_results import RunResults
from evalrpc.secrets.masking import Mask
from evalrpc.testing.recorded_runs import request_of
from evalrpc.v1.results_pb2 import ModelResult

INSPECT_SETTINGS = HarnessSettings("x", "inspect-ai")
COMMAND_SETTINGS = HarnessSettings("x", "command", command=("program",))
INSPECT = ResultsReader(InspectHarness(INSPECT_SETTINGS), INSPECT_SETTINGS)
COMMAND = ResultsReader(CommandHarness(COMMAND_SETTINGS), COMMAND_SETTINGS)
HARNESSES = {INSPECT: InspectHarness(INSPECT_SETTINGS), COMMAND: CommandHarness(COMMAND_SETTINGS)}


class Handle:
    """A run of which it is only known how its steps ended."""

    def __init__(self) -> None:
        self.exits: list[Exit] = []
        self.ends: list[int] = []
        self.last = Exit()

    def step_ends(self) -> list[int]:
        return self.ends

    def exit_status(self, step: int = 0) -> Exit:
        return self.exits[step] if step < len(self.exits) else self.last

    def end_step(self, log: Path, code: int = 0) -> None:
        self.exits.append(Exit(code=code))
        self.ends.append(log.stat().st_size)

    def wait(self, timeout_seconds: float) -> bool:
        return True

    def interrupt(self) -> None: ...

    def end(self, grace_seconds: float) -> None: ...

    def close(self) -> None: ...


def found_in(folder: Path, reader: ResultsReader, handle: Handle, *tasks: str) -> tuple[RunResults, list[Run]]:
    request = request_of(model="m", tasks=list(tasks), tasks_separately=reader is COMMAND)
    run = Run("job", 1, request, folder, folder / "output", 0)
    steps = list(steps_of(run))
    for step in steps:
        step.output_dir.mkdir(parents=True)
    (folder / "log").touch()
    return RunResults(run, reader, RunSteps(HARNESSES[reader], steps), handle, folder / "log"), steps


def inspect_log(folder: Path, task: str, status: str) -> None:
    content = {"status": status, "eval": {"task": task}, "results": {"completed_samples": 1}}
    (folder / f"2026-02-14T10-30-45-00-00_{task}_x.json").write_text(json.dumps(content))


def write_results(folder: Path, task: str) -> None:
    (folder / "20260214_103045_results.json").write_text(json.dumps({"results": {task: {"acc": 0.5}}}))


def tasks_of(found: RunResults) -> list[str]:
    return [task.task for result in found.results.values() for task in result.tasks]


def test_tasks_that_the_harness_reports_are_taken_in_as_they_come(tmp_path: Path) -> None:
    found, (step,) = found_in(tmp_path, INSPECT, Handle(), "a", "b")
    found.look()
    assert found.results == {}
    inspect_log(step.output_dir, "a", "success")
    inspect_log(step.output_dir, "b", "started")
    found.look()
    assert tasks_of(found) == ["a"]
    inspect_log(step.output_dir, "b", "success")
    found.look()
    assert tasks_of(found) == ["a", "b"]


def test_where_nothing_is_new_the_results_stay_the_same_object(tmp_path: Path) -> None:
    found, (step,) = found_in(tmp_path, INSPECT, Handle(), "a", "b")
    inspect_log(step.output_dir, "a", "success")
    found.look()
    before = found.results
    inspect_log(step.output_dir, "b", "started")
    found.look()
    assert found.results is before


def test_a_log_is_read_when_it_has_come_or_changed_and_then_not_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [f"t{number}" for number in range(20)]
    found, (step,) = found_in(tmp_path, INSPECT, Handle(), *tasks)
    opened: list[str] = []
    read_finished = InspectHarness.read_finished
    monkeypatch.setattr(
        InspectHarness, "read_finished", lambda self, run, name: opened.append(name) or read_finished(self, run, name)
    )
    for number, task in enumerate(tasks, start=1):
        inspect_log(step.output_dir, task, "success")
        found.look()
        found.look()
        assert len(tasks_of(found)) == number
    assert len(opened) == len(tasks)
    steps = RunSteps(HARNESSES[INSPECT], [step])
    assert RunResults(step, INSPECT, steps, Handle(), tmp_path / "log").results == {}
    again = RunResults(step, INSPECT, steps, Handle(), tmp_path / "log")
    again.look()
    assert tasks_of(again) == tasks_of(found), "made anew, it finds the same again"


def test_a_folder_with_very_many_files_is_not_looked_through_again_and_again_but_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_results, "_MAX_ENTRIES", 3)
    found, (step,) = found_in(tmp_path, INSPECT, handle := Handle(), "t")
    log = {"status": "success", "eval": {"task": "t"}, "results": {"total_samples": 1, "completed_samples": 1}}
    (step.output_dir / "2026-02-14T10-30-45-00-00_t_x.json").write_text(json.dumps(log))
    for number in range(3):
        (step.output_dir / f"{number}").touch()
    found.look()
    assert not found.results
    handle.last = Exit(code=0)
    found.finish()
    assert [task.task for task in found.results["m"].tasks] == ["t"]


@pytest.mark.parametrize("name", ["20260214_103045_results.json", "2026-02-14T10-30-46-00-00_a_y.json"])
def test_what_can_not_be_read_meanwhile_fails_no_run(tmp_path: Path, name: str) -> None:
    found, (step,) = found_in(tmp_path, INSPECT, Handle(), "a", "b")
    (step.output_dir / "dangling").symlink_to("/nonexistent")
    (step.output_dir / name).write_text("{")
    found.look()
    assert found.results == {}


def test_steps_are_taken_in_as_they_end_but_the_last_one_at_the_end_of_the_run(tmp_path: Path) -> None:
    handle = Handle()
    found, steps = found_in(tmp_path, COMMAND, handle, "a", "b")
    write_results(steps[0].output_dir, "a")
    found.look()
    assert found.results == {}
    handle.end_step(tmp_path / "log")
    found.look()
    assert tasks_of(found) == ["a"]
    write_results(steps[1].output_dir, "b")
    handle.end_step(tmp_path / "log")
    found.look()
    assert tasks_of(found) == ["a"]
    found.finish()
    assert tasks_of(found) == ["a", "b"]


def test_a_failure_is_explained_by_the_step_s_own_part_of_the_log(tmp_path: Path) -> None:
    handle, log = Handle(), tmp_path / "log"
    found, steps = found_in(tmp_path, COMMAND, handle, "a", "b", "c")
    for code, step, text in zip((0, 1, 0), steps, ("KeyError: fine\n", "ValueError: bad\n", "IndexError: fine\n"), strict=True):
        with log.open("a") as file:
            file.write(text)
        handle.end_step(log, code)
        if not code:
            write_results(step.output_dir, step.request.tasks[0])
    with pytest.raises(RunFailedError) as caught:
        found.finish()
    error = caught.value.job_error
    assert (error.message, error.exit_code, list(error.log_tail)) == ("b: ValueError: bad", 1, ["ValueError: bad"])
    assert tasks_of(found) == ["a", "c"]


def test_steps_that_never_began_are_named(tmp_path: Path) -> None:
    handle = Handle()
    found, _ = found_in(tmp_path, COMMAND, handle, "a", "b", "c")
    handle.end_step(tmp_path / "log", 2)
    with pytest.raises(RunFailedError) as caught:
        found.finish()
    assert caught.value.job_error.message == ("a: the harness exited with code 2 and wrote nothing; also failed: b; not run: c")


def test_more_than_is_kept_of_a_job_fails_the_step_that_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_KEPT_BYTES", 1024 * 1024)
    handle = Handle()
    found, steps = found_in(tmp_path, COMMAND, handle, "a", "b")
    for step in steps:
        rows = {f"{step.request.tasks[0]} {number}": {"acc": 1} for number in range(10_000)}
        (step.output_dir / "20260214_103045_results.json").write_text(json.dumps({"results": rows}))
        handle.end_step(tmp_path / "log")
    with pytest.raises(RunFailedError, match="at most 1048576 are kept"):
        found.finish()
    assert len(tasks_of(found)) == 10_000


@pytest.mark.parametrize("lack", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
@pytest.mark.parametrize("read", ["look", "finish"])
def test_a_step_that_could_not_be_read_for_want_of_something_is_read_by_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Exception, read: str
) -> None:
    handle = Handle()
    found, steps = found_in(tmp_path, COMMAND, handle, "a", "b")
    for step in steps:
        write_results(step.output_dir, step.request.tasks[0])
        handle.end_step(tmp_path / "log")
    read_results, lacks = CommandHarness.read_results, [lack]

    def lacking(harness: CommandHarness, run: Run, exit_status: Exit, log_tail: list[str]) -> object:
        if lacks:
            raise lacks.pop()
        return read_results(harness, run, exit_status, log_tail)

    monkeypatch.setattr(CommandHarness, "read_results", lacking)
    with pytest.raises(type(lack)):
        getattr(found, read)()
    found.finish()
    assert tasks_of(found) == ["a", "b"]


def test_a_finished_task_that_could_not_be_read_for_want_of_something_is_read_by_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, (step,) = found_in(tmp_path, INSPECT, Handle(), "a", "b")
    inspect_log(step.output_dir, "a", "success")

    def lacking(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(InspectHarness, "read_finished", lacking)
        found.look()
    assert found.results == {}
    found.look()
    assert tasks_of(found) == ["a"]


class Telling(CommandHarness):
    """A harness that tells all that it knows."""

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> dict[str, ModelResult]:
        return {"m": ModelResult(warnings=["sk-123 is a secret", *log_tail])}


def test_secrets_in_what_a_run_has_printed_and_in_warnings_are_masked(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "log").write_text("the key is sk-123\n")
    run = Run("job", 1, request_of(model="m", tasks=["t"]), tmp_path, tmp_path / "output", 0)
    harness, handle = Telling(COMMAND_SETTINGS), Handle()
    reader, steps = ResultsReader(harness, COMMAND_SETTINGS), RunSteps(harness, [run])
    found = RunResults(run, reader, steps, handle, tmp_path / "log", Mask(["sk-123"]))
    handle.end_step(tmp_path / "log")
    found.finish()
    assert list(found.results["m"].warnings) == ["****** is a secret", "the key is ******"]


def test_a_harness_never_sees_a_secret_in_the_log_so_it_can_not_cut_one_in_two(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "log").write_text("ValueError: sk-123\n")
    run = Run("job", 1, request_of(model="m", tasks=["t"]), tmp_path, tmp_path / "output", 0)
    harness, handle = HARNESSES[COMMAND], Handle()
    found = RunResults(run, COMMAND, RunSteps(harness, [run]), handle, tmp_path / "log", Mask(["sk-123"]))
    handle.end_step(tmp_path / "log", code=1)
    with pytest.raises(RunFailedError, match=r"ValueError: \*\*\*\*\*\*") as caught:
        found.finish()
    assert list(caught.value.job_error.log_tail) == ["ValueError: ******"]
