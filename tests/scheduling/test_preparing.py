"""Preparations whose run can't be ended, is not understood, or is found again, with an executor of the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scheduler_house import CANCELLED, FAILED, RUNNING, House
from waiting import eventually

from evalrpc.config import PreparationSettings
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunKey
from evalrpc.preparations.preparation import Preparation
from evalrpc.testing.executor import FakeExecutor, FakeRun
from evalrpc.v1 import jobs_pb2 as pb

PREPARATIONS = {"merge": Preparation(PreparationSettings("merge", ("merge", "{model}", "{output}")))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, preparations=PREPARATIONS)
    house.scheduler.start()
    yield house
    house.close()


def submit(house: House, model: Path, num_gpus: int = 1) -> str:
    request = pb.EvaluateRequest(preparation="merge")
    request.model_args.update({"pretrained": str(model)})
    return house.submit(num_gpus, request=request)


def preparation_of(house: House, job_id: str) -> FakeRun:
    return eventually(lambda: house.executor.runs.get(f"{job_id}-preparation"), f"for the preparation of {job_id}")


def finish(run: FakeRun) -> None:
    """Let a preparation leave something, and end well."""
    (Path(run.command.argv[-1]) / "weights").touch()
    run.finish(0)


def test_the_preparation_holds_no_device_of_its_job_and_the_harness_begins_after_it(house: House, model: Path) -> None:
    job_id = submit(house, model)
    run = preparation_of(house, job_id)
    assert (run.devices, run.node) == ((), "local")
    assert run.command.argv[:2] == ("merge", str(model))
    assert job_id not in house.executor.runs
    finish(run)
    assert house.wait_until_running(job_id).devices == ("0",)
    assert run.closed is False, "it is released with the job"
    house.executor.runs[job_id].finish()
    eventually(house.is_empty, "for the job to end")
    assert run.closed


def test_a_preparation_that_can_not_be_ended_is_left_to_be_killed_later(
    house: House, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(house, model)
    run = preparation_of(house, job_id)

    def end(grace_seconds: float) -> None:
        raise RunFailedError("PROCESS_UNKILLABLE", f"it does not end within {grace_seconds} s")

    monkeypatch.setattr(run, "end", end)
    house.cancel(job_id)
    assert house.wait_for(job_id, FAILED).error.reason == "PROCESS_UNKILLABLE"
    assert [each.key for each in house.executor._quarantined] == [run.key]


def test_a_bug_ends_the_preparation_and_the_next_job_prepares_the_model_itself(
    house: House, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submit(house, model)
    run = preparation_of(house, first)
    second = submit(house, model)
    house.wait_for(second, RUNNING)
    monkeypatch.setattr(run, "wait", lambda _: 1 / 0)
    assert house.wait_for(first, FAILED).error.reason == "SERVER_ERROR"
    assert run.has_ended
    finish(preparation_of(house, second))
    house.wait_until_running(second)


@pytest.mark.parametrize("waits_first", [False, True])
def test_who_prepares_goes_on_to_do_so_whoever_the_next_server_takes_up_first(
    tmp_path: Path, model: Path, waits_first: bool
) -> None:
    house = House(tmp_path, preparations=PREPARATIONS)
    house.scheduler.start()
    jobs = [submit(house, model)]
    run = preparation_of(house, jobs[0])
    jobs.append(submit(house, model))
    house.wait_for(jobs[1], RUNNING)
    house.close()
    started: list[RunKey] = []
    executor: FakeExecutor = house.executor
    executor.on_start = started.append
    second = House(tmp_path, executor, preparations=PREPARATIONS)
    own_running_jobs = second.queue_state.own_running_jobs
    second.queue_state.own_running_jobs = lambda: own_running_jobs()[:: -1 if waits_first else 1]  # type: ignore[method-assign]
    second.scheduler.start()
    finish(run)
    for job_id in jobs:
        second.wait_until_running(job_id)
        second.cancel(job_id)
        second.wait_for(job_id, CANCELLED)
    second.close()
    assert {key.job_id for key in started} == set(jobs), "no further preparation"


def test_a_model_of_too_many_files_is_not_prepared(house: House, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.files.fingerprints.MAX_FILES", 3)
    for number in range(4):
        (model / str(number)).touch()
    error = house.wait_for(submit(house, model), FAILED).error
    assert (error.reason, "has too many files" in error.message) == ("PREPARATION_FAILED", True)
