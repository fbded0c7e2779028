"""A running job gives way to one that comes first: with a real store, and an executor of the test."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from scheduler_house import CANCELLED, CLOCK, COMPLETED, FAILED, QUEUED, SECONDS, SETTINGS, House
from waiting import eventually

from evalrpc.errors import IllegalTransitionError, RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.harnesses.base import Exit, Run
from evalrpc.harnesses.command import CommandHarness
from evalrpc.jobs import transitions
from evalrpc.scheduling.placement import Preemption
from evalrpc.testing.executor import FakeExecutor, FakeRun
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

ONE_GPU = {"local": ("0",)}


class Succeeding(CommandHarness):
    """A run that ends well has results."""

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        return super().read_results(run, exit_status, log_tail) if exit_status.code else {"m": ModelResult(results="/r.json")}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, FakeExecutor(ONE_GPU), Succeeding(SETTINGS))
    house.scheduler.start()
    yield house
    house.close()


def preemptible(house: House, **fields: Any) -> tuple[str, FakeRun]:
    """Start a preemptible job that holds the only GPU."""
    job_id = house.submit(preemptible=True, **fields)
    return job_id, house.wait_until_running(job_id)


def second_run(house: House, job_id: str) -> FakeRun:
    """Wait for the second attempt of a job to run."""
    return eventually(lambda: (run := house.executor.runs[job_id]).key.attempt == 2 and run, "for its second run")


def reasons(job: pb.JobInfo) -> list[str]:
    return [attempt.error.reason for attempt in job.attempts]


def test_a_preemptible_job_gives_way_and_runs_again_when_the_other_has_ended(house: House) -> None:
    job_id, run = preemptible(house)
    first = house.submit(priority=1)
    house.wait_until_running(first)
    assert run.has_ended, "it was ended before the other one began"
    waiting = house.job(job_id)
    assert (waiting.status, waiting.attempt, reasons(waiting)) == (QUEUED, 1, ["PREEMPTED"])
    assert not waiting.HasField("retry_at")
    assert list(waiting.attempts[0].gpus) == ["0"]
    assert not waiting.gpus
    house.wait_until_running(first).finish(0)
    house.wait_for(first, COMPLETED)
    second_run(house, job_id).finish(0)
    job = house.wait_for(job_id, COMPLETED)
    assert (job.attempt, job.attempt_count, job.max_attempts) == (2, 2, 1), "an attempt that gave way does not count"
    assert reasons(job) == ["PREEMPTED", ""]
    assert house.store.status_counts()[QUEUED] == 0


def test_a_job_that_is_not_preemptible_or_comes_first_goes_on(house: House) -> None:
    job_id = house.submit()
    run = house.wait_until_running(job_id)
    other = house.submit(priority=1)
    later, _ = house.submit(priority=0), house.submit(priority=-1)
    assert not run.has_ended
    run.finish(0)
    house.wait_until_running(other).finish(0)
    house.wait_until_running(later)
    assert house.executor.started[:3] == [job_id, other, later]


def test_a_failure_after_it_gave_way_is_the_first_attempt_that_counts(house: House) -> None:
    job_id, _ = preemptible(house)
    first = house.submit(priority=1)
    house.wait_until_running(first).finish(0)
    second_run(house, job_id).finish(1)
    assert reasons(house.wait_for(job_id, FAILED)) == ["PREEMPTED", "HARNESS_FAILED"]


def test_whatever_ended_the_run_meanwhile_it_gave_way(house: House) -> None:
    """Its own failure, just when it is to end, is no failure: as after a cancel."""
    job_id, run = preemptible(house)
    run.interrupt = lambda: run.finish(7)  # type: ignore[method-assign]
    house.wait_until_running(house.submit(priority=1))
    assert reasons(house.job(job_id)) == ["PREEMPTED"]


def test_a_run_that_succeeds_before_it_is_ended_has_succeeded(house: House) -> None:
    job_id, run = preemptible(house)
    run.interrupt = lambda: run.finish(0)  # type: ignore[method-assign]
    house.wait_until_running(house.submit(priority=1))
    job = house.wait_for(job_id, COMPLETED)
    assert reasons(job) == [""], "it did not give way"


def test_a_cancel_while_it_gives_way_cancels_it(house: House) -> None:
    job_id, run = preemptible(house)

    def cancelled_meanwhile(_: float) -> None:
        house.cancel(job_id)
        run.kill()

    run.end = cancelled_meanwhile  # type: ignore[method-assign]
    house.wait_until_running(house.submit(priority=1))
    job = house.wait_for(job_id, CANCELLED)
    assert (job.error.reason, reasons(job)) == ("CANCELLED", ["CANCELLED"])


def test_a_job_that_is_being_cancelled_is_not_asked_to_give_way(house: House) -> None:
    job_id, _ = preemptible(house)
    job = house.job(job_id)
    transitions.request_cancel(job, "", CLOCK.now())
    with pytest.raises(IllegalTransitionError, match="is not preemptible, or is being cancelled"):
        transitions.request_preemption(job)


def test_a_run_that_can_not_be_ended_fails_and_its_gpu_goes_to_nobody(house: House) -> None:
    job_id, run = preemptible(house)

    def refuse(_: float) -> None:
        raise RunFailedError("PROCESS_UNKILLABLE", "process 7 could not be killed")

    run.end = refuse  # type: ignore[method-assign]
    first = house.submit(priority=1)
    assert house.wait_for(job_id, FAILED).error.reason == "PROCESS_UNKILLABLE"
    assert "process 7" in house.executor.quarantined()["0"]
    assert house.job(first).status == QUEUED


def test_the_next_server_sees_to_it_that_a_job_gives_way_that_was_asked_to(tmp_path: Path) -> None:
    first = House(tmp_path, FakeExecutor(ONE_GPU))
    first.scheduler.start()
    job_id, run = preemptible(first)
    first.scheduler.stop()  # it is killed just when it has asked the job to give way
    first.store.update(job_id, transitions.request_preemption).result(SECONDS)
    other = first.submit(priority=1)
    first.close()
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    second.wait_until_running(other)
    assert run.has_ended
    assert reasons(second.job(job_id)) == ["PREEMPTED"]
    second.close()


def test_a_run_that_was_half_ended_by_a_killed_server_gave_way_too(tmp_path: Path) -> None:
    first = House(tmp_path, FakeExecutor(ONE_GPU))
    first.scheduler.start()
    job_id, run = preemptible(first)
    first.scheduler.stop()
    first.store.update(job_id, transitions.request_preemption).result(SECONDS)
    run.finish(143)  # as if SIGTERM had reached it already
    first.close()
    second = House(tmp_path, first.executor)
    second.scheduler.start()
    job = eventually(lambda: (job := second.job(job_id)).attempt == 2 and job, "for its second attempt")
    assert reasons(job) == ["PREEMPTED", ""]
    second.close()


def test_while_one_gives_way_no_second_one_is_asked_to_and_what_comes_free_is_kept(tmp_path: Path) -> None:
    house = House(tmp_path, FakeExecutor({"local": ("0", "1")}))
    house.scheduler.start()
    jobs = [preemptible(house) for _ in range(2)]
    for _, run in jobs:
        run.end = lambda _: house.dependencies.stopping.wait(SECONDS) and None  # type: ignore[method-assign]
    first, behind = house.submit(priority=1), house.submit()
    eventually(lambda: any(map(transitions.is_giving_way, map(house.job, (job_id for job_id, _ in jobs)))), "for the request")
    giving_way = [job_id for job_id, _ in jobs if transitions.is_giving_way(house.job(job_id))]
    assert giving_way == [jobs[1][0]], "the youngest alone"
    assert "other jobs give way to it" in house.queue_state.described(house.job(first)).wait_reason
    assert house.job(behind).status == QUEUED
    house.close()


def test_steps_that_have_finished_are_not_repeated_after_it_gave_way(tmp_path: Path) -> None:
    """Whatever `max_attempts` says, there is another attempt, which takes over what this one has finished."""
    house = House(tmp_path, FakeExecutor(ONE_GPU), Succeeding(SETTINGS))
    house.scheduler.start()
    request = pb.EvaluateRequest(tasks=["u"], tasks_separately=True)
    job_id, run = preemptible(house, request=request)
    assert len(run.command.further_steps) == 1
    run.finish(0)  # its first step
    key: RunKey = run.key
    eventually((key.attempt_dir / "task-1" / "finished").exists, "for the first step to be read")
    house.wait_until_running(house.submit(priority=1)).finish(0)
    assert not second_run(house, job_id).command.further_steps, "only the second step is left"
    assert run.exit_status(0) == Exit(code=0)
    house.close()


def test_it_does_not_give_way_again_before_the_interval_is_over(tmp_path: Path) -> None:
    house = House(tmp_path, FakeExecutor(ONE_GPU), Succeeding(SETTINGS), preemption_interval_seconds=3600.0)
    house.scheduler.start()
    job_id, _ = preemptible(house)
    house.wait_until_running(house.submit(priority=1)).finish(0)
    second = second_run(house, job_id)
    other = house.submit(priority=2)
    eventually(lambda: "0 free" in house.queue_state.described(house.job(other)).wait_reason)
    state = house.queue_state
    assert state.choose(state.free(), 600.0, {}, state.now_seconds()) is None
    assert not transitions.is_giving_way(house.job(job_id))
    chosen = state.choose(state.free(), 600.0, {}, state.now_seconds() + 3600)
    assert isinstance(chosen, Preemption), "when the interval is over"
    second.finish(0)
    house.wait_until_running(other)
    assert house.job(job_id).status == COMPLETED
    house.close()
