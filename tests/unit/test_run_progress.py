"""Progress of a run of several steps, by a log that is written meanwhile."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from evalrpc.clock import SystemClock
from evalrpc.config import HarnessSettings
from evalrpc.harnesses.command import CommandHarness
from evalrpc.logs import LogFollower
from evalrpc.run_progress import RunProgress
from evalrpc.v1 import job_pb2 as pb

HARNESS = CommandHarness(HarnessSettings("x", "command", command=("program",)))


class Run:
    """A log, the ends of steps in it, and what was published of it."""

    def __init__(self, folder: Path, *tasks: str) -> None:
        self.log = folder / "log"
        self.log.touch()
        self.ends: list[int] = []
        self.published: list[pb.Progress] = []
        job = pb.JobInfo()
        job.started_at.GetCurrentTime()
        follower = LogFollower(self.log)
        self.progress = RunProgress(job, follower, HARNESS, SystemClock(), self.published.append, tasks, self.step_ends)

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


def test_of_one_step_the_task_is_the_harnesss_own_affair(tmp_path: Path) -> None:
    run = Run(tmp_path, "")
    run.write("1/4\n")
    run.end_step()
    assert run.look() == ("", 1, 4)
