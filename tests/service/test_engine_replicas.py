"""An engine that is started several times, on a real server: the gateway spreads the questions over its processes."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from engine_site import ENDED, READY, Models, completed, submit
from serving import COMPLETED, Api, Launch, ServerHere, Site
from waiting import eventually

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.engines_pb2 import ENGINE_STATE_STOPPING as STOPPING
from evalrpc.v1.engines_pb2 import Engine


@pytest.fixture
def api(engines: None, serve: Callable[..., ServerHere]) -> Api:
    return serve().api


def answering(api: Api) -> Sequence[Engine]:
    return [engine for engine in api.ListEngines().engines if engine.state == READY]


def state_of(api: Api, engine: Engine) -> int:
    return next(each.state for each in api.ListEngines().engines if each.engine_id == engine.engine_id)


def begin_with_two(api: Api, models: Models, **fields: object) -> tuple[Path, Path, str]:
    """Submit a job that waits for the answer to its second question, until two processes answer. Return the model, what holds
    the question, and the job."""
    model = models.make()
    hold = models.hold(model, "question 1")
    job_id = submit(api, model, count=9, num_gpus=1, max_replicas=2, **fields)
    eventually(lambda: len(answering(api)) == 2, "for both processes to answer")
    return model, hold, job_id


def test_questions_are_spread_over_the_processes_of_an_engine(api: Api, models: Models) -> None:
    model, hold, job_id = begin_with_two(api, models)
    engine, replica = answering(api)
    assert (engine.replica_of, replica.replica_of) == ("", engine.engine_id)
    assert (list(engine.gpus), list(replica.gpus)) == (["0"], ["1"])
    hold.unlink()
    job = completed(api, job_id)
    assert job.attempts[-1].engine_id == engine.engine_id
    assert job.results["m"].metrics[0].value == 1.0
    assert set(models.askers(model)) == set(models.pids(model))
    assert len(models.pids(model)) == 2
    assert sorted(models.questions(model)) == [f"question {number}" for number in range(9)], "each was asked once"


def test_both_processes_count_for_the_job_that_wants_them(api: Api, models: Models) -> None:
    _, hold, job_id = begin_with_two(api, models)
    assert [engine.job_count for engine in answering(api)] == [1, 1]
    hold.unlink()
    seconds = completed(api, job_id).attempts[-1]
    elapsed = seconds_of(seconds.completed_at) - seconds_of(seconds.started_at)
    assert 0 < seconds.engine_gpu_seconds <= 2 * elapsed
    assert [engine.job_count for engine in answering(api)] == [0, 0]


def test_a_replica_ends_at_once_for_a_job_that_needs_its_gpus_and_the_engine_goes_on(api: Api, models: Models) -> None:
    model, hold, job_id = begin_with_two(api, models)
    engine, replica = answering(api)
    other = api.submit("good", request={"num_gpus": 1})
    assert api.wait_for(other.job_id, COMPLETED).attempts[0].gpus == ["1"]
    states = {each.engine_id: each.state for each in api.ListEngines().engines}
    assert (states[engine.engine_id], states[replica.engine_id]) == (READY, ENDED)
    assert not processes_of_job(replica.engine_id)
    hold.unlink()
    assert completed(api, job_id).attempt == 1
    both = api.submit("good", request={"num_gpus": 2})
    assert api.wait_for(both.job_id, COMPLETED).attempts[0].gpus == ["0", "1"], "and so both GPUs are given back"
    assert models.pids(model)


def hold_at_replica(models: Models, model: Path) -> int:
    """Return the number of a question that waits at the replica: the third goes there if the second went to the engine."""
    eventually(lambda: len(models.askers(model)) == 2, "for the second question")
    if models.askers(model)[1] == models.pids(model)[1]:
        return 1
    models.hold(model, "question 2")
    eventually(lambda: len(models.askers(model)) == 3, "for the third question")
    assert models.askers(model)[2] == models.pids(model)[1]
    return 2


def test_a_replica_that_has_to_end_answers_first_what_it_was_asked(
    site: Site, engines: None, serve: Callable[..., ServerHere], models: Models
) -> None:
    site.config.write_text(site.config.read_text().replace("grace_seconds = 0.3", "grace_seconds = 300.0"))
    api = serve().api
    model, hold, job_id = begin_with_two(api, models)
    number, replica = hold_at_replica(models, model), answering(api)[1]
    other = api.submit("good", request={"num_gpus": 1})
    eventually(lambda: state_of(api, replica) == STOPPING, "for the replica to be ended")
    assert processes_of_job(replica.engine_id)
    hold.unlink()
    assert completed(api, job_id).usage.retried_count == 0
    assert api.wait_for(other.job_id, COMPLETED).attempts[0].gpus == ["1"]
    assert models.questions(model).count(f"question {number}") == 1


def test_a_replica_that_does_not_answer_in_time_ends_and_the_engine_is_asked(api: Api, models: Models) -> None:
    model, hold, job_id = begin_with_two(api, models)
    number = hold_at_replica(models, model)
    other = api.submit("good", request={"num_gpus": 1})
    assert api.wait_for(other.job_id, COMPLETED).attempts[0].gpus == ["1"]
    hold.unlink()
    job = completed(api, job_id)
    assert (job.attempt, job.results["m"].metrics[0].value) == (1, 1.0)
    assert models.questions(model).count(f"question {number}") == 2


@pytest.mark.parametrize("killed", [0, 1], ids=["the engine", "its replica"])
def test_one_process_that_is_killed_is_started_again_while_the_other_answers(api: Api, models: Models, killed: int) -> None:
    model, hold, job_id = begin_with_two(api, models)
    os.kill(models.pids(model)[killed], signal.SIGKILL)
    eventually(lambda: len(models.pids(model)) == 3, "for the process to be started again")
    hold.unlink()
    job = completed(api, job_id)
    assert (job.attempt, job.results["m"].metrics[0].value) == (1, 1.0)
    eventually(lambda: len(answering(api)) == 2, "for both processes to answer")
    assert [engine.restart_count for engine in answering(api)] == [1 - killed, killed]


def test_a_replica_that_does_not_come_to_answer_keeps_no_job_from_its_engine(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model, "question 1")
    job_id = submit(api, model, num_gpus=1, max_replicas=2, args={"behave": "dies-second"})
    eventually(lambda: [engine for engine in api.ListEngines().engines if engine.state == ENDED], "for the replica to fail")
    hold.unlink()
    assert completed(api, job_id).attempt == 1
    completed(api, submit(api, model, num_gpus=1, max_replicas=2, args={"behave": "dies-second"}))
    assert len(models.pids(model)) == 2, "it is not tried again at once"
    assert len(answering(api)) == 1


def test_a_job_that_wants_none_shares_the_engine_and_does_not_pay_for_replicas(api: Api, models: Models) -> None:
    model, hold, job_id = begin_with_two(api, models)
    other = submit(api, model, count=3, num_gpus=1)
    eventually(lambda: models.questions(model).count("question 1") == 2, "for the other job to ask, too")
    assert [engine.job_count for engine in answering(api)] == [2, 1]
    hold.unlink()
    jobs = [completed(api, each) for each in (job_id, other)]
    assert len({job.attempts[-1].engine_id for job in jobs}) == 1
    assert len(models.pids(model)) == 2


def test_replicas_outlive_their_server(site: Site, engines: None, launch: Launch, models: Models) -> None:
    server = launch()
    model, hold, job_id = begin_with_two(server.api, models)
    server.kill()
    api = launch().api
    eventually(lambda: len(answering(api)) == 2, "for both to be found")
    engine, replica = answering(api)
    assert (replica.replica_of, replica.job_count) == (engine.engine_id, 1)
    hold.unlink()
    assert completed(api, job_id).attempt == 1
    assert len(models.pids(model)) == 2
    assert set(models.askers(model)) == set(models.pids(model))


def test_what_was_started_beside_an_engine_ends_with_it(api: Api, models: Models) -> None:
    model, hold, job_id = begin_with_two(api, models, preemptible=True)
    other = api.submit("good", request={"num_gpus": 2}, priority=5)
    assert api.wait_for(other.job_id, COMPLETED)
    hold.unlink()
    job = completed(api, job_id)
    assert [attempt.error.reason for attempt in job.attempts] == ["PREEMPTED", ""]
    assert models.pids(model)
