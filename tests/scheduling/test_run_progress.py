"""Progress of a run of several steps, by a log that is written meanwhile."""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from clocks import ManualClock
from google.protobuf import json_format

from evalrpc.clock import Clock, Stopwatch, SystemClock
from evalrpc.config import HarnessSettings
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.command import CommandHarness
from evalrpc.scheduling.log_tail import LogFollower
from evalrpc.scheduling.run_progress import RunProgress
from evalrpc.v1 import jobs_pb2 as pb

HARNESS_SETTINGS = HarnessSettings("x", "command", command=("program",))
HARNESS = CommandHarness(HARNESS_SETTINGS)


class Run:
    """A log, the ends of steps in it, and what was published of it."""

    def __init__(self, folder: Path, *tasks: str, harness: Harness = HARNESS, clock: Clock | None = None) -> None:
        self.log = folder / "log"
        self.log.touch()
        self.ends: list[int] = []
        self.published: list[pb.Progress] = []
        job = pb.JobInfo(job_id="job-1")
        clock = clock or SystemClock()
        job.started_at.CopyFrom(clock.now())
        stopwatch = Stopwatch(clock, job.started_at.ToNanoseconds())
        follower = LogFollower(self.log)
        self.progress = RunProgress(job, follower, harness, clock, self.publish, tasks, self.step_ends, stopwatch)

    def publish(self, progress: pb.Progress, _: str) -> None:
        self.published.append(progress)

    def step_ends(self) -> Sequence[int]:
        return self.ends

    def write(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text)

    def end_step(self) -> None:
        self.ends.append(self.log.stat().st_size)

    def look(self) -> tuple[str, int, int]:
        self.progress.look()
        return stand(self.published[-1])


def stand(progress: pb.Progress) -> tuple[str, int, int]:
    return progress.current_task, progress.done, progress.total


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, "a", "b", "c")


def test_each_step_counts_on_from_those_before(run: Run) -> None:
    assert run.look() == ("a", 0, 0)
    run.write("1/4\n")
    assert run.look() == ("a", 1, 4)
    run.write("4/4\n")
    run.end_step()
    assert run.look() == ("b", 4, 4)
    assert run.published[-1].phase == pb.Progress.PHASE_STARTING
    run.write("2/10\n")
    assert run.look() == ("b", 6, 14)


def test_what_was_written_before_the_end_of_a_step_is_its_own_also_if_it_is_seen_later(run: Run) -> None:
    run.write("3/4\n")
    run.end_step()
    run.write("1/4\n")
    run.end_step()
    run.write("2/4\n")
    assert run.look() == ("c", 6, 12)


def test_a_bar_without_an_end_of_line_is_not_joined_to_what_the_next_step_says(run: Run) -> None:
    run.write("1/4\r4/4")
    run.end_step()
    run.write("0/8\n1/8\n")
    assert run.look() == ("b", 5, 12)


def test_the_end_of_the_last_step_begins_no_other(run: Run) -> None:
    for text in ("1/1\n", "2/2\n", "3/3\n"):
        run.write(text)
        run.end_step()
    assert stand(run.progress.finish()) == ("c", 6, 6)


def test_the_last_line_counts_at_the_end_also_if_nothing_ends_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "")
    run.write("1/4\r")
    assert run.look() == ("", 1, 4)
    run.write("2/4\r4/4")
    assert run.look() == ("", 2, 4), "the bar may just be being written"
    assert stand(run.progress.finish()) == ("", 4, 4)


def test_the_last_count_is_known_however_much_comes_after_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "")
    run.write("1/4\n")
    assert run.look() == ("", 1, 4)
    run.write("4/4\n" + "a line of noise\n" * 500_000)
    assert stand(run.progress.finish()) == ("", 4, 4)


def test_of_one_step_the_task_is_the_harnesss_own_affair(tmp_path: Path) -> None:
    run = Run(tmp_path, "")
    run.write("1/4\n")
    run.end_step()
    assert run.look() == ("", 1, 4)


def test_steps_without_end_add_up_to_no_more_than_a_field_holds(tmp_path: Path) -> None:
    run = Run(tmp_path, "a", "b", harness=Vast(HARNESS_SETTINGS))
    run.write("a line\n")
    run.end_step()
    run.write("a line\n")
    assert run.look() == ("b", 2**63 - 1, 2**63 - 1)


class Vast(CommandHarness):
    """A harness of someone else's, which reads the impossible out of every line."""

    def read_progress(self, line: str, progress: pb.Progress) -> bool:
        progress.done = progress.total = 2**63 - 1
        progress.time_left.seconds = 10**14
        progress.rate_per_second = math.nan
        progress.last_output_at.seconds = -(10**14)
        return True


def test_what_can_not_be_is_unknown_whichever_harness_has_read_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "", harness=Vast(HARNESS_SETTINGS))
    run.write("a line\n")
    run.look()
    progress = run.published[-1]
    assert not any(progress.HasField(name) for name in ("time_left", "rate_per_second"))
    assert progress.last_output_at.ToSeconds() == int(run.log.stat().st_mtime)
    assert json_format.MessageToJson(progress)


class Broken(CommandHarness):
    """A harness that fails at some lines, each time in a way of its own."""

    def read_progress(self, line: str, progress: pb.Progress) -> bool:
        if line.startswith("bad"):
            raise RecursionError(line)
        if line.startswith("worse"):
            progress.current_task = "\ud800"
        return super().read_progress(line, progress)


def test_a_line_that_the_harness_can_not_read_says_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, "a", "b", harness=Broken(HARNESS_SETTINGS))
    run.write("1/4\nbad\n2/4\nworse\nbad")
    assert run.look() == ("a", 2, 4)
    run.end_step()
    run.write("3/4\nbad\n")
    assert run.look() == ("b", 5, 8)
    assert stand(run.progress.finish()) == ("b", 5, 8)
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert record.exc_info
    assert record.__dict__["job_id"] == "job-1"


@pytest.mark.parametrize("seconds", [-1, 253_370_764_800, 10**12])
def test_a_log_of_an_impossible_time_was_written_nobody_knows_when(
    run: Run, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write("1/4\n")
    monkeypatch.setattr(LogFollower, "last_output_ns", lambda _: seconds * 10**9)  # few disks can keep such a time
    run.look()
    assert not run.published[-1].HasField("last_output_at")
    assert json_format.MessageToJson(run.published[-1])


def test_a_log_of_another_time_is_as_old_as_it_says(run: Run) -> None:
    run.write("1/4\n")
    os.utime(run.log, (5, 5))
    run.look()
    assert run.published[-1].last_output_at.seconds == 5


@pytest.mark.parametrize("jump_seconds", [86_400, -86_400])
def test_the_time_of_day_may_jump_while_a_run_goes_on(tmp_path: Path, jump_seconds: float) -> None:
    clock = ManualClock(1e6)
    run = Run(tmp_path, "", clock=clock)
    run.look()
    clock.seconds, clock.jump_seconds = 1e6 + 10, jump_seconds
    assert run.progress.elapsed_ns() == 10 * 10**9
    run.look()
    assert run.published[-1].elapsed.ToSeconds() == 10


@pytest.mark.parametrize(("begun_seconds", "elapsed_seconds"), [(1e6, 10), (1e6 + 4, 6), (2**33, 0)])
def test_how_long_a_run_goes_on_is_told_once_by_the_time_of_its_begin(begun_seconds: float, elapsed_seconds: float) -> None:
    """Which may be that of a file, and so in the future."""
    clock = ManualClock(1e6 + 10)
    stopwatch = Stopwatch(clock, int(begun_seconds * 1e9))
    assert stopwatch.elapsed_ns() == elapsed_seconds * 10**9
    clock.seconds += 5
    assert stopwatch.elapsed_ns() == (elapsed_seconds + 5) * 10**9
