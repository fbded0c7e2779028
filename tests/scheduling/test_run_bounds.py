"""A run that leaves more than it may is found, whatever it does, and measuring it is cheap."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from scheduler_house import CANCELLED, FAILED, House
from waiting import eventually

from evalrpc.scheduling import run_bounds
from evalrpc.scheduling.run_bounds import BoundsWatch, RunBounds
from evalrpc.testing.executor import FakeRun

MIB = 1024 * 1024


class LaterExecutor:
    """Carries out what it is given when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        self.waiting.append((Future(), work))
        return self.waiting[-1][0]

    def work(self) -> int:
        """Do it. Return how much there was."""
        done, self.waiting = self.waiting, []
        for future, work in done:
            future.set_result(work())
        return len(done)


class Watched:
    """A run's log and output folder, and the watch over them."""

    def __init__(self, folder: Path, max_log_bytes: int = 0, max_output_bytes: int = 0) -> None:
        self.log, self.output = folder / "log", folder / "output"
        self.log.touch()
        self.output.mkdir()
        self.clock = ManualClock(1000.0)
        self.measurer = LaterExecutor()
        bounds = RunBounds(max_log_bytes, max_output_bytes)
        measurer: Any = self.measurer
        self.watch = BoundsWatch(bounds, self.log, self.output, self.clock, measurer, lambda: False)

    def reason(self) -> str:
        return self.watch.failure.job_error.reason if self.watch.failure else ""


def test_a_log_counts_what_it_occupies(tmp_path: Path) -> None:
    watched = Watched(tmp_path, max_log_bytes=MIB)
    os.truncate(watched.log, 4 * 1024**4)
    assert not watched.watch.look()
    with watched.log.open("r+b") as log:
        log.write(bytes(MIB + 8192))
    assert watched.watch.look()
    assert watched.reason() == "LOG_TOO_LARGE"
    assert str(MIB) in str(watched.watch.failure)
    assert "max_log_bytes" in str(watched.watch.failure)


def test_the_output_is_measured_elsewhere_now_and_then_and_never_twice_at_a_time(tmp_path: Path) -> None:
    watched = Watched(tmp_path, max_output_bytes=MIB)
    (watched.output / "sub").mkdir()
    (watched.output / "sub" / "file").write_bytes(bytes(MIB))
    for _ in range(3):
        assert not watched.watch.look()
        watched.clock.seconds += 100
    assert watched.measurer.work() == 1
    assert watched.watch.look(), "known from then on"
    assert watched.reason() == "OUTPUT_TOO_LARGE"
    assert str(MIB) in str(watched.watch.failure)


def test_the_longer_measuring_takes_the_less_often_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, max_output_bytes=MIB)

    def measure(*_: object) -> int:
        watched.clock.seconds += 3
        return 0

    monkeypatch.setattr(run_bounds, "disk_bytes", measure)
    rests = []
    for _ in range(3):
        watched.watch.look()
        begin = watched.clock.seconds
        while not watched.measurer.work():
            watched.clock.seconds += 1
            watched.watch.look()
        rests.append(watched.clock.seconds - begin - 3)
    assert rests == [0, 60, 60]


def test_what_can_not_be_measured_is_within_its_bounds(tmp_path: Path) -> None:
    watched = Watched(tmp_path, max_log_bytes=1, max_output_bytes=1)
    watched.log.unlink()
    os.mkfifo(watched.log)
    watched.output.rmdir()
    watched.output.symlink_to("/usr")
    watched.watch.look_closely()
    assert watched.watch.failure is None


def test_without_bounds_nothing_is_measured(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.log.write_bytes(bytes(MIB))
    watched.watch.look_closely()
    assert not watched.watch.look()
    assert watched.measurer.work() == 0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, bounds=RunBounds(max_log_bytes=MIB, max_output_bytes=MIB))
    house.scheduler.start()
    yield house
    house.close()


def fill_log(house: House, run: FakeRun) -> None:
    """Put a log in place as a whole: file systems may take up the room of a write before there is anything to read."""
    filled = run.key.log_path.with_suffix(".filled")
    filled.write_bytes(b"a line\n" * 400_000)
    filled.replace(run.key.log_path)


def fill_output(house: House, run: FakeRun) -> None:
    output_dir = Path(house.job(run.key.job_id).attempts[-1].output_dir)
    (output_dir / "file").write_bytes(bytes(2 * MIB))


FILLED = [(fill_log, "LOG_TOO_LARGE"), (fill_output, "OUTPUT_TOO_LARGE")]


@pytest.mark.parametrize(("fill", "reason"), FILLED)
@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_a_run_that_leaves_too_much_is_ended_and_its_job_fails_for_good(
    house: House,
    fill: Callable[[House, FakeRun], None],
    reason: str,
    ends_by_itself: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_bounds, "_INTERVAL_SECONDS", 0.0)
    job_id = house.submit(max_attempts=3)
    run = house.wait_until_running(job_id)
    fill(house, run)
    if ends_by_itself:
        run.finish(0)
    job = house.wait_for(job_id, FAILED)
    assert run.has_ended
    assert (job.error.reason, job.attempt) == (reason, 1)
    assert str(MIB) in job.error.message
    assert bool(job.error.log_tail) == (fill is fill_log)
    eventually(house.is_empty)


def test_a_run_that_an_earlier_server_started_is_watched_too(tmp_path: Path) -> None:
    first = House(tmp_path)
    first.scheduler.start()
    job_id = first.submit()
    fill_log(first, first.wait_until_running(job_id))
    first.close()
    second = House(tmp_path, first.executor, bounds=RunBounds(max_log_bytes=MIB))
    second.scheduler.start()
    assert second.wait_for(job_id, FAILED).error.reason == "LOG_TOO_LARGE"
    second.close()


def test_a_cancel_of_a_run_that_has_left_too_much_cancels_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    monkeypatch.setattr(FakeRun, "end", lambda run, _: (house.cancel(job_id), run.kill()))
    fill_log(house, run)
    assert house.wait_for(job_id, CANCELLED)


def test_a_run_within_its_bounds_completes(tmp_path: Path) -> None:
    house = House(tmp_path, bounds=RunBounds(max_log_bytes=4 * MIB, max_output_bytes=4 * MIB))
    house.scheduler.start()
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    fill_log(house, run)
    fill_output(house, run)
    run.finish(1)
    assert house.wait_for(job_id, FAILED).error.reason == "HARNESS_FAILED", "the harness decides"
    house.close()
