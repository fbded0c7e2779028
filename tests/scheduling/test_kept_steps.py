"""Which steps a retry takes over, by what lies in the folders of the attempts."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from evalrpc.config import HarnessSettings
from evalrpc.files import opening
from evalrpc.harnesses.base import Run
from evalrpc.harnesses.command import CommandHarness
from evalrpc.harnesses.steps import steps_of
from evalrpc.scheduling.kept_steps import RunSteps, keep_steps, kept_from
from evalrpc.testing.recorded_runs import request_of

HARNESS = CommandHarness(HarnessSettings("x", "command", command=("program", "{output_dir}", "{tasks}")))
OTHER = CommandHarness(HarnessSettings("x", "command", command=("program", "--new", "{output_dir}", "{tasks}")))


def attempt(folder: Path, number: int, **fields: Any) -> list[Run]:
    request = request_of(model="m", tasks=["a", "b", "c"], tasks_separately=True, **fields)
    base = folder / f"attempt-{number}"
    steps = list(steps_of(Run("job", number, request, base, base / "output", 0)))
    for step in steps:
        step.attempt_dir.mkdir(parents=True, exist_ok=True)
        step.output_dir.mkdir(parents=True, exist_ok=True)
    return steps


def finish(harness: CommandHarness, steps: list[Run], *numbers: int) -> None:
    for number in numbers:
        (steps[number].output_dir / "sub").mkdir(exist_ok=True)
        (steps[number].output_dir / "sub" / "results").write_text(f"of {number}")
        RunSteps(harness, steps).note_finished(steps[number])


def kept(steps: list[Run]) -> list[int]:
    return [kept_from(step) for step in steps]


def test_what_has_finished_is_kept_with_its_files(tmp_path: Path) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    finish(HARNESS, before, 0, 2)
    keep_steps(HARNESS, after, [before])
    assert kept(after) == [1, 0, 1]
    assert [path.read_text() for path in sorted(tmp_path.glob("attempt-2/output/*/sub/results"))] == ["of 0", "of 2"]
    steps = RunSteps(HARNESS, after)
    assert (steps.to_run, steps.kept, steps.are_several) == ([after[1]], [(after[0], 1), (after[2], 1)], True)


def test_a_step_is_kept_over_several_attempts(tmp_path: Path) -> None:
    first, second, third = (attempt(tmp_path, number) for number in (1, 2, 3))
    finish(HARNESS, first, 0)
    keep_steps(HARNESS, second, [first])
    finish(HARNESS, second, 1)
    keep_steps(HARNESS, third, [first, second])
    assert kept(third) == [1, 2, 0]


def test_keeping_twice_is_keeping_once(tmp_path: Path) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    finish(HARNESS, before, 0)
    for _ in range(2):
        keep_steps(HARNESS, after, [before])
    assert kept(after) == [1, 0, 0]


def test_one_step_at_least_runs(tmp_path: Path) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    finish(HARNESS, before, 0, 1, 2)
    keep_steps(HARNESS, after, [before])
    assert kept(after) == [1, 1, 0]


def test_a_step_with_another_command_or_request_is_not_kept(tmp_path: Path) -> None:
    before = attempt(tmp_path, 1)
    finish(HARNESS, before, 0)
    for number, harness, fields in (
        (2, OTHER, {}),
        (3, CommandHarness(HarnessSettings("y", "command", command=("program",))), {}),
    ):
        after = attempt(tmp_path, number, **fields)
        keep_steps(harness, after, [before])
        assert kept(after) == [0, 0, 0]


@pytest.mark.parametrize("damage", ["gone", "cut", "fifo", "folder"])
def test_a_damaged_note_keeps_nothing_and_holds_nobody(tmp_path: Path, damage: str) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    finish(HARNESS, before, 0)
    note = before[0].attempt_dir / "finished"
    content = note.read_bytes()
    note.unlink()
    if damage == "cut":
        note.write_bytes(content[:-1])
    elif damage == "fifo":
        os.mkfifo(note)
    elif damage == "folder":
        note.mkdir()
    keep_steps(HARNESS, after, [before])
    assert kept(after) == [0, 0, 0]


@pytest.mark.parametrize("name", ["finished", "kept"])
def test_what_lies_in_the_place_of_a_note_is_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    other = tmp_path / "other"
    other.write_text("mine")
    (before[0].attempt_dir / name).symlink_to(other)
    os.mkfifo(after[0].attempt_dir / name)
    finish(HARNESS, before, 0)
    keep_steps(HARNESS, after, [before])
    assert kept(after) == [1, 0, 0]
    assert other.read_text() == "mine"


def test_a_link_to_another_folder_is_no_output_to_keep(tmp_path: Path) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    finish(HARNESS, before, 0)
    output = before[0].output_dir
    output.rename(tmp_path / "elsewhere")
    output.symlink_to(tmp_path / "elsewhere")
    keep_steps(HARNESS, after, [before])
    assert kept(after) == [0, 0, 0]
    assert not list(after[0].output_dir.iterdir())


def test_a_number_that_is_none_is_not_believed(tmp_path: Path) -> None:
    steps = attempt(tmp_path, 2)
    (steps[0].attempt_dir / "kept").write_text("one")
    assert kept(steps) == [0, 0, 0]


def test_a_shortage_of_the_server_is_not_taken_for_a_step_that_was_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = attempt(tmp_path, 1), attempt(tmp_path, 2)
    finish(HARNESS, before, 0)
    keep_steps(HARNESS, after, [before])
    with monkeypatch.context() as context:
        context.setattr(opening.os, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EMFILE, "no more")))
        with pytest.raises(OSError, match="no more"):
            RunSteps(HARNESS, after)


def test_the_last_attempt_notes_nothing(tmp_path: Path) -> None:
    steps = attempt(tmp_path, 1)
    RunSteps(HARNESS, steps, is_last_attempt=True).note_finished(steps[0])
    assert not (steps[0].attempt_dir / "finished").exists()
