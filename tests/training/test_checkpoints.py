"""Which folders are checkpoints, of which step, and when they are complete: on a real disk, with a clock of our own."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock

from evalrpc.files import fingerprints
from evalrpc.training.checkpoints import Checkpoint, CheckpointFolder, Scan, fingerprint_of, step_of

QUIET_SECONDS = 30.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def folder(out: Path, clock: ManualClock, **options: Any) -> CheckpointFolder:
    return CheckpointFolder(out, clock, quiet_seconds=QUIET_SECONDS, **options)


def save(path: Path, text: str = "weights", name: str = "model.safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(text)
    return path


def quiet_scan(checkpoints: CheckpointFolder, clock: ManualClock) -> Scan:
    """Look, and once more when all has been quiet."""
    remarks = checkpoints.scan().remarks
    clock.seconds += QUIET_SECONDS
    scan = checkpoints.scan()
    return scan._replace(remarks=[*remarks, *scan.remarks])


def steps(scan: Scan) -> list[int]:
    return [checkpoint.step for checkpoint in scan.complete]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("checkpoint_500", 500),
        ("ckpt-0000500", 500),
        ("step_500", 500),
        ("step500", 500),
        ("global_step500", 500),
        ("iter_0000500", 500),
        ("iteration-500", 500),
        ("epoch-3", 3),
        ("epoch=3-step=500", 500),
        ("epoch_3_step_500", 500),
        ("step_500-unsharded", 500),
        ("Step 500", 500),
        ("500", 500),
        ("run2-checkpoint-500", 500),
        ("model-7b-500", 500),
        ("last", None),
        ("best_model", None),
        ("runs", None),
        ("checkpoint-" + "9" * 40, None),
        ("step_٣", None),
    ],
)
def test_the_step_is_in_the_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_a_pattern_replaces_the_rules() -> None:
    pattern = re.compile(r"tokens(\d+)k")
    assert step_of("step-5-tokens700k", pattern) == 700
    assert step_of("checkpoint-500", pattern) is None


def test_a_checkpoint_is_complete_once_its_files_are_quiet(out: Path, clock: ManualClock) -> None:
    checkpoints = folder(out, clock)
    save(out / "step_1")
    scan = checkpoints.scan()
    assert (scan.complete, len(scan.unfinished)) == ([], 1)
    clock.seconds = 20
    save(out / "step_1", "more weights")
    assert steps(checkpoints.scan()) == []
    clock.seconds = 40
    assert steps(checkpoints.scan()) == [], "not quiet for long enough since it grew"
    clock.seconds = 50
    assert checkpoints.scan().complete[0][:2] == (out / "step_1", 1)


def test_a_marker_says_that_it_is_complete_and_without_it_nothing_does(out: Path, clock: ManualClock) -> None:
    checkpoints = folder(out, clock, marker="DONE")
    save(out / "step_1")
    assert steps(quiet_scan(checkpoints, clock)) == []
    save(out / "step_1", name="DONE")
    assert steps(checkpoints.scan()) == []
    assert steps(checkpoints.scan()) == [1]


def test_what_other_processes_write_after_the_marker_is_waited_for(out: Path, clock: ManualClock) -> None:
    checkpoints = folder(out, clock, marker="DONE")
    save(save(out / "step_1"), name="DONE")
    for size in range(1, 4):
        assert steps(checkpoints.scan()) == []
        save(out / "step_1", "x" * size, name="rank_1")
    first, second = (quiet_scan(checkpoints, clock).complete for _ in range(2))
    assert first == second, "one checkpoint, as it was when all had written"
    assert len(first) == 1


def test_a_marker_that_is_written_during_the_look_does_not_complete_what_was_seen_before_it(
    out: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = folder(out, clock, marker="DONE")
    save(out / "step_1")
    checkpoints.scan()

    def finish_meanwhile(path: Path) -> str | None:
        fingerprint = fingerprint_of(path)
        save(save(path, name="optimizer"), name="DONE")
        return fingerprint

    monkeypatch.setattr("evalrpc.training.checkpoints.fingerprint_of", finish_meanwhile)
    assert steps(checkpoints.scan()) == []


def test_a_checkpoint_that_is_written_anew_is_another_one_and_has_to_be_quiet_even_with_its_old_marker(
    out: Path, clock: ManualClock
) -> None:
    checkpoints = folder(out, clock, marker="DONE")
    save(save(out / "step_1"), name="DONE")
    checkpoints.scan()
    (first,) = checkpoints.scan().complete
    save(out / "step_1", "other weights")
    assert len(checkpoints.scan().unfinished) == 1
    (second,) = quiet_scan(checkpoints, clock).complete
    assert second.path == first.path
    assert second.fingerprint != first.fingerprint


def test_the_newest_comes_first(out: Path, clock: ManualClock) -> None:
    for step in (5, 100, 20):
        save(out / f"checkpoint-{step}")
    assert steps(quiet_scan(folder(out, clock), clock)) == [100, 20, 5]


def test_the_fingerprint_is_the_same_for_every_process_however_the_folder_is_named(
    out: Path, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(out / "step_1")
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(tmp_path)
    ways = [folder(way, clock) for way in (out, Path("out"), tmp_path / "link")]
    found: set[Checkpoint] = {checkpoint for way in ways for checkpoint in quiet_scan(way, clock).complete}
    assert len(found) == 1


def test_a_link_to_a_checkpoint_elsewhere_is_that_checkpoint(out: Path, clock: ManualClock, tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "elsewhere")
    out.mkdir()
    (out / "step_1").symlink_to(elsewhere)
    assert quiet_scan(folder(out, clock), clock).complete == [Checkpoint(elsewhere, 1, str(fingerprint_of(elsewhere)))]


def test_what_is_no_checkpoint_is_left_out_and_said_once(out: Path, clock: ManualClock) -> None:
    save(out / "runs")
    save(out / "tmp-checkpoint-7")
    save(out / "checkpoint-8.tmp")
    save(out / ".checkpoint-9")
    (out / "checkpoint-10").mkdir()
    (out / "step_11").write_text("a file")
    (out / "step_12").symlink_to("nowhere")
    save(out / "step_13")
    (out / "step_013").symlink_to("step_13")
    checkpoints = folder(out, clock)
    scan = quiet_scan(checkpoints, clock)
    assert steps(scan) == [13]
    assert [remark.partition(":")[0] for remark in scan.remarks] == ["runs", "step_013", "checkpoint-10"]
    assert not checkpoints.scan().remarks


def test_a_name_that_is_not_utf8_is_left_out(out: Path, clock: ManualClock) -> None:
    save(out / os.fsdecode(b"step_1\xff"))
    scan = quiet_scan(folder(out, clock), clock)
    assert not scan.complete
    assert "not UTF-8" in scan.remarks[0]


def test_a_folder_that_is_not_there_yet_is_waited_for(out: Path, clock: ManualClock) -> None:
    checkpoints = folder(out, clock)
    scan = checkpoints.scan()
    assert not scan.is_readable
    assert scan.remarks == [f"{out}: No such file or directory; there is nothing to evaluate yet"]
    save(out / "step_1")
    assert steps(quiet_scan(checkpoints, clock)) == [1]


def test_a_checkpoint_with_too_many_files_is_not_complete_and_that_is_said(
    out: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "MAX_FILES", 3)
    for number in range(4):
        save(out / "step_1", name=str(number))
    scan = quiet_scan(folder(out, clock), clock)
    assert (scan.complete, len(scan.unfinished)) == ([], 1)
    assert scan.remarks[0].startswith("step_1: not complete")


def test_links_that_lead_in_circles_do_no_harm(out: Path, clock: ManualClock) -> None:
    save(out / "step_1")
    (out / "step_1" / "up").symlink_to("..")
    scan = quiet_scan(folder(out, clock), clock)
    assert len(scan.unfinished) == 1


def test_thousands_of_checkpoints_are_all_found(out: Path, clock: ManualClock) -> None:
    for step in range(3000):
        save(out / f"step_{step}")
    assert steps(quiet_scan(folder(out, clock), clock)) == list(range(2999, -1, -1))
