"""Served models on a real server: an engine is started once, shared, kept, ended to make room, and started again if it dies."""

import os
import signal
from collections.abc import Callable

import pytest
from engine_site import ENDED, READY, Models, completed, ended, submit
from serving import CANCELLED, COMPLETED, RUNNING, Api, Launch, ServerHere, Site
from waiting import eventually

from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb


@pytest.fixture
def api(engines: None, serve: Callable[..., ServerHere]) -> Api:
    return serve().api


def test_jobs_with_the_same_model_share_an_engine_and_say_what_they_asked(api: Api, models: Models) -> None:
    model = models.make()
    jobs = [completed(api, job_id) for job_id in [submit(api, model) for _ in range(3)]]
    assert len(models.starts(model)) == 1
    assert len({job.attempts[-1].engine_id for job in jobs}) == 1
    assert [metric.value for job in jobs for metric in job.results["m"].metrics] == [1.0] * 3
    assert [job.usage.answered_count for job in jobs] == [3, 3, 3]
    assert [task.usage.answered_count for job in jobs for task in job.results["m"].tasks] == [3, 3, 3], "there is only one"
    (engine,) = api.ListEngines().engines
    assert (engine.state, engine.engine_id, engine.job_count) == (READY, jobs[0].attempts[-1].engine_id, 0)


def test_the_result_cache_knows_a_served_model_by_its_files(api: Api, models: Models) -> None:
    model = models.make()
    first = completed(api, submit(api, model, cache=pb.CACHE_MODE_ALLOW))
    assert not first.warnings
    assert completed(api, submit(api, model, cache=pb.CACHE_MODE_ALLOW)).cached_from == first.job_id
    (model / "weights").write_text("other")
    assert completed(api, submit(api, model, cache=pb.CACHE_MODE_ALLOW)).cached_from == ""


def test_what_was_asked_is_known_while_the_job_runs(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model, "question 2")
    job_id = submit(api, model)
    eventually(lambda: api.get(job_id).usage.answered_count == 2, "for the count")
    hold.unlink()
    assert completed(api, job_id).usage.answered_count == 3


def test_other_arguments_and_another_model_take_another_engine(api: Api, models: Models) -> None:
    one, other = models.make("one"), models.make("other")
    for model, size in ((one, "8"), (one, "16"), (other, "8"), (one, "8")):
        completed(api, submit(api, model, args={"size": size}))
    assert [len(models.starts(model)) for model in (one, other)] == [2, 1]
    assert sorted(line.split()[1] for line in models.starts(one)) == ["16", "8"]


def test_a_model_that_has_changed_is_loaded_anew(api: Api, models: Models) -> None:
    model = models.make()
    completed(api, submit(api, model, num_gpus=2))
    (model / "weights").write_text("other")
    job = completed(api, submit(api, model, num_gpus=2))
    assert len(models.starts(model)) == 2
    assert [attempt.error.reason for attempt in job.attempts] == ["ENGINE_LOST", ""]


def test_an_idle_engine_ends_when_a_job_needs_its_gpus(api: Api, models: Models) -> None:
    first, second = models.make("first"), models.make("second")
    completed(api, submit(api, first, num_gpus=2))
    (engine,) = api.ListEngines().engines
    assert list(engine.gpus) == ["0", "1"]
    assert {gpu.engine_id for gpu in api.GetQueue().gpus} == {engine.engine_id}
    completed(api, submit(api, second, num_gpus=1))
    states = {each.served_model.model: each.state for each in api.ListEngines().engines}
    assert states == {str(first): ENDED, str(second): READY}


def test_an_engine_gives_way_with_all_its_jobs_which_ask_later_only_what_was_not_answered(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model, "question 1")
    jobs = [submit(api, model, num_gpus=2, preemptible=True) for _ in range(2)]
    eventually(lambda: models.questions(model).count("question 1") == 2, "for both to wait")
    first = api.submit("good", request={"num_gpus": 1}, priority=5)
    assert api.wait_for(first.job_id, COMPLETED)
    hold.unlink()
    for job in (completed(api, job_id) for job_id in jobs):
        assert [attempt.error.reason for attempt in job.attempts] == ["PREEMPTED", ""]
        assert job.usage.replayed_count >= 1
        assert job.attempts[-1].engine_gpu_seconds > 0
    assert models.questions(model).count("question 0") == 2
    assert len(models.starts(model)) == 2


def test_an_idle_engine_ends_before_any_job_gives_way(api: Api, site: Site, models: Models) -> None:
    completed(api, submit(api, models.make(), num_gpus=1, args={"behave": "stubborn"}))
    running = api.submit("slow", request={"num_gpus": 1}, preemptible=True)
    api.wait_for(running.job_id, RUNNING)
    assert api.run("good", request={"num_gpus": 1}, priority=5).status == COMPLETED
    assert api.get(running.job_id).status == RUNNING
    site.release()


def test_an_engine_that_ends_while_jobs_use_it_is_started_again(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model)
    job_id = submit(api, model, count=5)
    eventually(lambda: models.questions(model), "for a question")
    os.kill(int(models.starts(model)[0].split()[0]), signal.SIGKILL)
    hold.unlink()
    job = completed(api, job_id)
    assert len(models.starts(model)) == 2
    assert job.attempt == 1
    assert models.questions(model) == ["question 0", *(f"question {number}" for number in range(5))], "the first had no answer"
    (engine,) = api.ListEngines().engines
    assert (engine.state, engine.restart_count) == (READY, 1)


def test_a_failed_start_of_an_engine_that_has_answered_costs_its_jobs_no_attempt(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model)
    job_id = submit(api, model, args={"behave": "dies-second"})
    eventually(lambda: models.questions(model), "for a question")
    os.kill(int(models.starts(model)[0].split()[0]), signal.SIGKILL)
    hold.unlink()
    assert completed(api, job_id).attempt == 1
    assert len(models.starts(model)) == 3


@pytest.mark.parametrize(
    ("how", "reason", "words"),
    [
        ("dies", "ENGINE_START_FAILED", "RuntimeError: CUDA out of memory"),
        ("never-ready", "ENGINE_START_FAILED", "did not answer /health within 1 seconds"),
        ("rubbish", "ENGINE_INCOMPATIBLE", "is no JSON"),
    ],
)
def test_an_engine_that_does_not_come_to_answer_fails_its_jobs_with_the_reason(
    site: Site, engines: None, serve: Callable[..., ServerHere], models: Models, how: str, reason: str, words: str
) -> None:
    if how == "never-ready":
        site.config.write_text(site.config.read_text().replace("start_timeout_seconds = 3600", "start_timeout_seconds = 1"))
    api, model = serve().api, models.make()
    jobs = [ended(api, submit(api, model, num_gpus=1, args={"behave": how})) for _ in range(3)]
    assert [job.error.reason for job in jobs] == [reason] * 3
    assert words in jobs[0].error.message
    assert "it is not started again for another" in jobs[-1].error.message
    assert len(models.starts(model)) <= 1, "the others need not wait for the same failure"
    eventually(lambda: api.GetQueue().free_gpu_count == 2, "for the engine to end")
    (engine,) = api.ListEngines().engines
    assert engine.state == ENDED
    assert not processes_of_job(engine.engine_id)


def test_a_cancelled_job_leaves_its_engine_to_the_others(api: Api, models: Models) -> None:
    model = models.make()
    hold = models.hold(model)
    jobs = [submit(api, model) for _ in range(2)]
    eventually(lambda: len(models.questions(model)) >= 1, "for a question")
    api.CancelJob(job_id=jobs[0])
    assert ended(api, jobs[0]).status == CANCELLED
    hold.unlink()
    completed(api, jobs[1])
    assert len(models.starts(model)) == 1


def test_stopping_an_engine_ends_every_process_of_it(engines: None, serve: Callable[..., ServerHere], models: Models) -> None:
    server, model = serve(), models.make()
    api = server.api
    completed(api, submit(api, model, args={"behave": "stubborn"}))
    (engine,) = api.ListEngines().engines
    assert processes_of_job(engine.engine_id)
    server.server._engines.stop(engine.engine_id)
    eventually(lambda: api.ListEngines().engines[0].state == ENDED, "for the engine to end")
    assert not processes_of_job(engine.engine_id)


def test_an_engine_outlives_its_server_and_so_do_its_jobs(site: Site, engines: None, launch: Launch, models: Models) -> None:
    model = models.make()
    server = launch()
    hold = models.hold(model)
    job_id = submit(server.api, model)
    eventually(lambda: models.questions(model), "for a question")
    server.kill()
    hold.unlink()
    server = launch()
    job = completed(server.api, job_id)
    assert job.attempt == 1
    completed(server.api, submit(server.api, model))
    assert len(models.starts(model)) == 1
    assert sorted(set(models.questions(model))) == [f"question {number}" for number in range(3)]


def test_no_engine_ends_under_a_job_that_was_placed_on_it(api: Api, models: Models) -> None:
    model = models.make()
    completed(api, submit(api, model, num_gpus=2))
    for _ in range(3):
        served = submit(api, model, num_gpus=2)
        other = api.submit("good", request={"num_gpus": 2})
        assert completed(api, served).attempt == 1
        assert api.wait_for(other.job_id, COMPLETED)


def test_an_engine_ends_once_it_has_been_idle_for_its_time(
    site: Site, engines: None, serve: Callable[..., ServerHere], models: Models
) -> None:
    site.config.write_text(site.config.read_text().replace("idle_seconds = 300", "idle_seconds = 0"))
    api = serve().api
    completed(api, submit(api, models.make(), num_gpus=2))
    eventually(lambda: api.ListEngines().engines[0].state == ENDED, "for it to end")
    assert api.GetQueue().free_gpu_count == 2
    (gateway,) = (site.folder / "data" / "engines" / "gateway").iterdir()
    eventually(lambda: not processes_of_job(gateway.name), "for the gateway to end, which has nothing to do")


def test_a_job_is_cancelled_while_its_engine_loads(api: Api, models: Models) -> None:
    job_id = submit(api, models.make(), args={"behave": "never-ready"})
    api.wait_for(job_id, RUNNING)
    eventually(lambda: api.get(job_id).progress.phase == pb.Progress.PHASE_SERVING)
    api.CancelJob(job_id=job_id)
    assert ended(api, job_id).status == CANCELLED


def test_an_engine_that_is_stopped_while_it_loads_leaves_nothing_and_its_job_gets_another_one(
    engines: None, serve: Callable[..., ServerHere], models: Models
) -> None:
    server, model = serve(), models.make()
    api = server.api
    job_id = submit(api, model, args={"behave": "never-ready"})
    eventually(lambda: models.starts(model), "for the engine to load")
    (engine,) = api.ListEngines().engines
    server.server._engines.stop(engine.engine_id)
    eventually(lambda: len(models.starts(model)) == 2, "for another engine")
    assert not processes_of_job(engine.engine_id)
    attempts = api.get(job_id).attempts
    assert [attempt.error.reason for attempt in attempts[:1]] == ["ENGINE_LOST"]
    assert "an operator has ended it" in attempts[0].error.message
    api.CancelJob(job_id=job_id)
    assert ended(api, job_id).status == CANCELLED


def test_an_engine_whose_table_has_changed_keeps_the_jobs_that_it_has_and_gets_no_new_one(
    site: Site, engines: None, launch: Launch, models: Models
) -> None:
    model = models.make()
    hold = models.hold(model)
    server = launch()
    first = submit(server.api, model)
    eventually(lambda: models.questions(model), "for a question")
    server.kill()
    site.config.write_text(site.config.read_text().replace("[engines.stub]\n", '[engines.stub]\nenv = { ODD = "1" }\n'))
    api = launch().api
    second = submit(api, model)
    eventually(lambda: len(models.starts(model)) == 2, "for another engine")
    hold.unlink()
    jobs = [completed(api, job_id) for job_id in (first, second)]
    assert [[attempt.error.reason for attempt in job.attempts] for job in jobs] == [[""], ["ENGINE_LOST", ""]]
    eventually(lambda: not processes_of_job(jobs[0].attempts[0].engine_id), "for the first engine to end")


def test_where_an_engine_is_configured_no_more_nothing_is_left_of_it_nor_of_its_jobs(
    site: Site, engines: None, launch: Launch, models: Models
) -> None:
    model = models.make()
    models.hold(model)
    server = launch()
    job_id = submit(server.api, model)
    eventually(lambda: models.questions(model), "for a question")
    (engine,) = server.api.ListEngines().engines
    server.kill()
    site.config.write_text(site.config.read_text().split("[engines.stub]")[0])
    api = launch().api
    assert ended(api, job_id).error.reason == "ENGINE_START_FAILED"
    assert not processes_of_job(job_id)
    eventually(lambda: not processes_of_job(engine.engine_id), "for the engine to end")
