"""Engines that behave badly, on a real server: each does so by a program, and no job gets a wrong answer or waits in vain."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_site import ENDED, READY, Models, completed, ended, notes_of, submit
from engine_stub import engine_stub
from serving import COMPLETED, Api, ServerHere, Site
from waiting import eventually

from evalrpc.executors.local import gpu_memory
from evalrpc.executors.local.gpu_memory import NvmlMemory
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb

GIB = 1 << 30


@pytest.fixture
def api(engines: None, serve: Callable[..., ServerHere]) -> Api:
    return serve().api


def take_port_of(model: Path, stack: ExitStack) -> list[str]:
    """Listen at the port of an engine that is about to. Return the paths of what is asked there from then on."""
    port = notes_of(model) / "port"
    eventually(port.exists, "for the port of an engine")
    asked: list[str] = []
    stack.enter_context(engine_stub(lambda each: (asked.append(each.path), each.answer({}))[1], int(port.read_text())))
    (notes_of(model) / "taken").touch()
    return asked


@pytest.mark.parametrize("how", ["robbed", "robbed-loading"])
def test_an_engine_whose_port_another_program_takes_gets_another_one(api: Api, models: Models, how: str) -> None:
    model = models.make()
    job_id = submit(api, model, args={"behave": how})
    with ExitStack() as stack:
        asked = take_port_of(model, stack)
        job = completed(api, job_id)
    assert (job.attempt, job.results["m"].metrics[0].value) == (1, 1.0)
    assert len(models.starts(model)) == 2
    assert asked == [], "nothing is asked of a program that is not the engine"


def test_a_program_that_binds_no_port_which_is_bound_gets_one_that_is_not(api: Api, models: Models) -> None:
    model = models.make()
    assert completed(api, submit(api, model, args={"behave": "exclusive"})).attempt == 1
    assert len(models.starts(model)) == 2


def test_an_engine_may_listen_in_a_process_that_it_has_started(api: Api, models: Models) -> None:
    model = models.make()
    completed(api, submit(api, model, args={"behave": "serves-in-child"}))
    assert len(models.starts(model)) == 1


def test_nothing_is_left_of_an_engine_that_leaks_processes_and_dies(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model)
    job_id = submit(api, model, args={"behave": "leaky"})
    eventually(lambda: models.questions(model), "for a question")
    (engine,) = api.ListEngines().engines
    leaked = set(processes_of_job(engine.engine_id))
    os.kill(int(models.starts(model)[0].split()[0]), signal.SIGKILL)
    eventually(lambda: len(models.starts(model)) == 2, "for the engine to be started again")
    assert not leaked & set(processes_of_job(engine.engine_id)), "none of the first process is there beside the second one"
    hold.unlink()
    completed(api, job_id)


def test_gpus_of_an_engine_are_handed_out_again_once_their_memory_is_back(
    monkeypatch: pytest.MonkeyPatch, engines: None, serve: Callable[..., ServerHere], models: Models
) -> None:
    used = {"0": 0, "1": 0}
    monkeypatch.setattr(NvmlMemory, "used_bytes", lambda _, gpu: used[gpu])
    monkeypatch.setattr(gpu_memory, "RELEASE_SECONDS", 0.2)
    api, model = serve().api, models.make()
    completed(api, submit(api, model, num_gpus=2))
    used["0"] = 40 * GIB
    other = api.submit("good", request={"num_gpus": 2})  # for which the engine has to end
    eventually(lambda: api.GetQueue().gpus[0].quarantine_reason, "for the GPU to be quarantined")
    assert "MiB are still in use after the last run" in api.GetQueue().gpus[0].quarantine_reason
    assert api.run("good", request={"num_gpus": 1}).status == COMPLETED, "on the one that is free"
    assert api.get(other.job_id).status == pb.JOB_STATUS_QUEUED
    used["0"] = 0
    assert api.wait_for(other.job_id, COMPLETED).attempts[0].gpus == ["0", "1"]


def test_an_engine_that_changes_its_model_while_it_loads_serves_no_job(api: Api, models: Models) -> None:
    model = models.make()
    job = ended(api, submit(api, model, args={"behave": "changes-weights"}))
    assert job.error.reason == "ENGINE_LOST"
    assert "has changed while an engine loaded it" in job.error.message
    assert models.questions(model) == []


def test_a_job_goes_on_with_the_weights_that_it_began_with_and_the_next_one_gets_those_that_are_there(
    api: Api, models: Models
) -> None:
    model = models.make()
    hold = models.hold(model)
    first = submit(api, model)
    eventually(lambda: models.questions(model), "for a question")
    (model / "weights").write_text("other")
    second = submit(api, model)
    eventually(lambda: len(models.starts(model)) == 2, "for an engine with the other weights")
    hold.unlink()
    jobs = [completed(api, job_id) for job_id in (first, second)]
    assert jobs[0].attempt == 1
    assert len({job.attempts[-1].engine_id for job in jobs}) == 2


def test_a_job_whose_engine_dies_after_the_weights_have_changed_begins_anew(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model, "question 1")
    job_id = submit(api, model)
    eventually(lambda: len(models.questions(model)) == 2, "for the second question")
    (model / "weights").write_text("other")
    os.kill(int(models.starts(model)[0].split()[0]), signal.SIGKILL)
    hold.unlink()
    job = completed(api, job_id)
    assert [attempt.error.reason for attempt in job.attempts] == ["ENGINE_LOST", ""]
    assert job.usage.replayed_count == 0, "the answers are those of other weights"
    states = {engine.engine_id: engine.state for engine in api.ListEngines().engines}
    assert [states[attempt.engine_id] for attempt in job.attempts] == [ENDED, READY]


def test_an_attempt_whose_gateway_was_killed_is_made_anew_and_asks_what_is_left(api: Api, site: Site, models: Models) -> None:
    model = models.make()
    hold = models.hold(model, "question 1")
    job_id = submit(api, model)
    eventually(lambda: len(models.questions(model)) == 2, "for the second question")
    (gateway,) = (site.folder / "data" / "engines" / "gateway").iterdir()
    for pid in processes_of_job(gateway.name):
        if b"evalrpc.engines.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    hold.unlink()
    job = completed(api, job_id)
    assert [attempt.error.reason for attempt in job.attempts] == ["ENGINE_LOST", ""]
    assert (job.usage.answered_count, job.usage.replayed_count) == (3, 1)
    assert models.questions(model) == [f"question {number}" for number in (0, 1, 1, 2)]
