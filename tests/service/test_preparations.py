"""A model that is prepared before its harness starts: once, for all who name the same folder."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from serving import (
    CANCELLED,
    COMPLETED,
    FAILED,
    RUNNING,
    TERMINAL,
    Api,
    Launch,
    MovableClock,
    ServerHere,
    ServerThere,
    Site,
    fields_of,
    nothing_left_of,
    submission,
)
from several_servers import OTHER, SCHEDULER, wait_until_out_of_reach
from waiting import eventually

from evalrpc.server import housekeeping
from evalrpc.v1 import jobs_pb2 as pb

PROGRAM = Path(__file__).parents[1] / "support" / "preparation_program.py"
PREPARING = pb.Progress.PHASE_PREPARING


@pytest.fixture
def site(site: Site) -> Site:
    """A site with the preparation `toy`, and one whose program does not exist."""
    command = [sys.executable, "-S", str(PROGRAM), "{model}", "{output}"]
    name, _, value = site.mark.partition("=")
    site.config.write_text(
        f"{site.config.read_text()}\n[preparations.toy]\ncommand = {json.dumps(command)}\ntimeout_seconds = 100\n"
        f"env = {{ TOY_DIR = {json.dumps(str(site.toy_dir))}, {name} = {json.dumps(value)} }}\n"
        '[preparations.missing]\ncommand = ["/no/such/program", "{model}", "{output}"]\n'
    )
    return site


@pytest.fixture
def model(site: Site) -> Path:
    return make_model(site)


def make_model(site: Site, how: str = "prepare", value: str = "0.25", name: str = "checkpoint-1") -> Path:
    folder = site.folder / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "how").write_text(how)
    (folder / "value").write_text(value)
    return folder


def submit(api: Api, folder: object, model: str = "weighs", preparation: str = "toy", **fields: Any) -> pb.JobInfo:
    request = {"preparation": preparation, **fields.pop("request", {})}
    call = submission(model, request=request, **fields)
    call.request.model_args.update({"pretrained": str(folder)})
    return api.SubmitJob(call)


def finish(api: Api, job: pb.JobInfo) -> pb.JobInfo:
    return api.wait_for(job.job_id, *TERMINAL)


def score(job: pb.JobInfo) -> float:
    assert job.status == COMPLETED, job.error
    (result,) = job.results.values()
    return result.metrics[0].value


def preparations(site: Site) -> int:
    """Return how many have begun."""
    path = site.toy_dir / "preparations"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until_preparing(api: Api, site: Site, *jobs: pb.JobInfo) -> None:
    eventually(lambda: preparations(site) == 1, "for the preparation to begin")
    for job in jobs:
        eventually(lambda job=job: api.get(job.job_id).progress.phase == PREPARING, "for the job to wait for it")


def log_of_preparation(api: Api, job: pb.JobInfo) -> str:
    return b"".join(message.data for message in api.ReadLog(job_id=job.job_id, preparation=True)).decode()


def kept_models(site: Site) -> list[Path]:
    folder = site.folder / "data" / "preparations"
    return list(folder.iterdir()) if folder.exists() else []


def made(site: Site, job: pb.JobInfo) -> Path:
    return site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "preparation" / "made"


def test_the_harness_gets_what_was_prepared_and_the_job_shows_what_was_asked_for(api: Api, site: Site, model: Path) -> None:
    job = finish(api, submit(api, model))
    assert score(job) == 0.25
    assert job.request.model_args["pretrained"] == str(model)
    assert job.request.preparation == "toy"
    assert log_of_preparation(api, job) == f"preparing {model}\n"
    request = json.loads((Path(job.attempts[0].output_dir).parent / "request.json").read_text())
    prepared = Path(request["model_args"]["pretrained"])
    assert prepared.parts[-2:] == ("models", "checkpoint-1"), "results are named after the folder of the model"
    assert prepared.is_relative_to(site.folder / "data" / "preparations")
    assert not made(site, job).exists()


def test_a_model_is_prepared_once_for_jobs_that_need_it_at_once_and_for_later_ones(api: Api, site: Site) -> None:
    folder = make_model(site, "wait")
    first = submit(api, folder)
    wait_until_preparing(api, site, first)
    second = submit(api, folder)
    wait_until_preparing(api, site, second)
    site.release("preparation")
    assert [score(finish(api, job)) for job in (first, second)] == [0.25, 0.25]
    third = finish(api, submit(api, folder))
    assert score(third) == 0.25
    assert preparations(site) == 1
    assert [bool(log_of_preparation(api, job)) for job in (first, second, third)] == [True, False, False]


def test_a_model_that_has_changed_is_prepared_anew(api: Api, site: Site, model: Path) -> None:
    assert score(finish(api, submit(api, model))) == 0.25
    make_model(site, value="0.75")
    assert score(finish(api, submit(api, model))) == 0.75


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_counts_as_a_change(
    api: Api, site: Site, model: Path
) -> None:
    assert score(finish(api, submit(api, model))) == 0.25
    other = model.with_name("other")
    other.write_text("0.75")
    shutil.copystat(model / "value", other)
    other.rename(model / "value")
    assert score(finish(api, submit(api, model))) == 0.75


def test_jobs_of_one_model_without_and_with_a_preparation_are_not_identical(api: Api, site: Site, model: Path) -> None:
    shutil.copy(model / "value", model / "prepared")
    jobs = [finish(api, submit(api, model, preparation=name, cache=pb.CACHE_MODE_ALLOW)) for name in ("", "toy", "toy")]
    assert [job.status for job in jobs] == [COMPLETED] * 3
    assert [bool(job.cached_from) for job in jobs] == [False, False, True]
    assert preparations(site) == 1


def test_a_retry_uses_what_the_first_attempt_has_prepared(api: Api, site: Site, model: Path) -> None:
    job = finish(api, submit(api, model, "weighs_at_the_second_attempt", max_attempts=2))
    assert (score(job), job.attempt, preparations(site)) == (0.25, 2, 1)


def test_tasks_that_have_finished_are_kept_across_attempts(api: Api, site: Site, model: Path) -> None:
    request = {"tasks": ["weighs", "weighs_at_the_second_attempt"], "tasks_separately": True}
    job = finish(api, submit(api, model, "each", max_attempts=2, request=request))
    assert job.status == COMPLETED, job.error
    assert {task.task: task.attempt for result in job.results.values() for task in result.tasks} == {
        "weighs": 1,
        "weighs_at_the_second_attempt": 2,
    }


def test_a_failed_preparation_fails_all_who_wait_for_it_and_says_why(api: Api, site: Site) -> None:
    folder = make_model(site, "fail")
    jobs = [submit(api, folder)]
    wait_until_preparing(api, site, *jobs)
    jobs.append(submit(api, folder))
    wait_until_preparing(api, site, *jobs)
    site.release("preparation")
    for job in (finish(api, job) for job in jobs):
        assert (job.status, job.error.reason, job.error.exit_code) == (FAILED, "PREPARATION_FAILED", 1)
        assert job.error.message == "preparation toy: exited with code 1: ValueError: the shards don't fit together"
        assert job.error.log_tail[0] == f"preparing {folder}"
    assert preparations(site) == 1
    assert kept_models(site) == []
    assert not made(site, jobs[0]).exists(), "what it made is gone"
    finish(api, submit(api, folder))
    assert preparations(site) == 2, "it is tried again"


@pytest.mark.parametrize(
    ("how", "preparation", "message"),
    [
        ("leave_nothing", "toy", "left no files"),
        ("die", "toy", "ended by signal 9"),
        ("change", "toy", "or what prepares it, has changed meanwhile: submit the job again"),
        ("prepare", "missing", "No such file or directory"),
    ],
)
def test_a_preparation_without_a_whole_model_has_failed(api: Api, site: Site, how: str, preparation: str, message: str) -> None:
    job = finish(api, submit(api, make_model(site, how), preparation=preparation))
    assert (job.status, job.error.reason) == (FAILED, "PREPARATION_FAILED")
    assert f"preparation {preparation}: " in job.error.message
    assert message in job.error.message
    assert kept_models(site) == []


def test_a_folder_that_is_gone_when_the_job_starts_fails_it(api: Api, site: Site, model: Path) -> None:
    api.submit("slow", request={"num_gpus": 2})
    job = submit(api, model, request={"num_gpus": 2})
    shutil.rmtree(model)
    site.release()
    job = finish(api, job)
    assert (job.error.reason, job.attempt) == ("PREPARATION_FAILED", 0)
    assert job.error.message == f"preparation toy: the model {model} is no folder any more"


def test_a_cancel_ends_the_preparation_and_the_next_who_waits_for_it_begins_anew(api: Api, site: Site) -> None:
    folder = make_model(site, "wait")
    first = submit(api, folder)
    wait_until_preparing(api, site, first)
    second = submit(api, folder)
    wait_until_preparing(api, site, second)
    api.CancelJob(job_id=first.job_id)
    assert finish(api, first).status == CANCELLED
    assert nothing_left_of(f"{first.job_id}-preparation")
    assert not made(site, first).exists()
    eventually(lambda: preparations(site) == 2, "for the other one to begin")
    site.release("preparation")
    assert score(finish(api, second)) == 0.25


def test_a_cancel_of_who_only_waits_leaves_the_preparation_alone(api: Api, site: Site) -> None:
    folder = make_model(site, "wait")
    first = submit(api, folder)
    wait_until_preparing(api, site, first)
    second = submit(api, folder)
    wait_until_preparing(api, site, second)
    api.CancelJob(job_id=second.job_id)
    assert finish(api, second).status == CANCELLED
    site.release("preparation")
    assert score(finish(api, first)) == 0.25
    assert preparations(site) == 1


@pytest.mark.parametrize(
    ("how", "timeout_seconds", "reason"),
    [("wait", None, "PREPARATION_FAILED"), ("wait_in_the_future", None, "PREPARATION_FAILED"), ("wait", 50, "TIMED_OUT")],
    ids=["its own", "its own, whatever time its folder has", "that of the job"],
)
def test_a_preparation_that_takes_too_long_is_ended(
    api: Api, site: Site, clock: MovableClock, how: str, timeout_seconds: int | None, reason: str
) -> None:
    folder = make_model(site, how)
    timeout = Duration(seconds=timeout_seconds) if timeout_seconds else None
    job = submit(api, folder, timeout=timeout)
    wait_until_preparing(api, site, job)
    clock.move_ahead(101 if timeout is None else 51)
    job = finish(api, job)
    assert (job.status, job.error.reason) == (FAILED, reason)
    assert "timeout of" in job.error.message
    assert nothing_left_of(f"{job.job_id}-preparation")


def test_a_preparation_that_prints_too_much_is_ended(serve: Callable[..., ServerHere], site: Site) -> None:
    api = serve(max_log_bytes=100_000).api
    job = finish(api, submit(api, make_model(site, "shout")))
    assert job.error.reason == "PREPARATION_FAILED"
    assert "its log exceeded the 100000 bytes" in job.error.message


@pytest.mark.parametrize("validate_only", [False, True])
def test_what_can_not_be_prepared_is_refused_by_its_field(api: Api, site: Site, model: Path, validate_only: bool) -> None:
    def refused(folder: object, preparation: str = "toy") -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            submit(api, folder, preparation=preparation, validate_only=validate_only)
        return caught.value

    unknown = refused(model, "merge")
    assert fields_of(unknown) == ["request.preparation"]
    assert "it has: missing, toy" in unknown.details()
    assert fields_of(refused(model, "x" * 100_000)) == ["request.preparation"]
    assert fields_of(refused("")) == ["request.preparation"], "no argument names a folder"
    for no_folder in (model / "value", model.with_name("gone"), "acme/model", "x" * 100_000):
        assert fields_of(refused(no_folder)) == ["request.model_args.pretrained"]


def test_a_relative_folder_is_that_which_the_harness_would_find(api: Api, site: Site, model: Path) -> None:
    assert score(finish(api, submit(api, model.relative_to(site.folder)))) == 0.25


def test_a_preparation_outlives_its_server_and_the_next_one_goes_on_with_it(launch: Launch, site: Site) -> None:
    folder = make_model(site, "wait")
    server = launch()
    jobs = [submit(server.api, folder)]
    wait_until_preparing(server.api, site, *jobs)
    jobs.append(submit(server.api, folder))
    wait_until_preparing(server.api, site, *jobs)
    server.kill()
    api = launch().api
    wait_until_preparing(api, site, *jobs)
    assert {api.get(job.job_id).status for job in jobs} == {RUNNING}
    site.release("preparation")
    assert [score(finish(api, job)) for job in jobs] == [0.25, 0.25]
    assert preparations(site) == 1


def test_a_preparation_that_ends_while_no_server_is_there_is_taken_over(launch: Launch, site: Site) -> None:
    folder = make_model(site, "wait")
    server = launch()
    job = submit(server.api, folder)
    wait_until_preparing(server.api, site, job)
    assert server.terminate() == 0
    site.release("preparation")
    eventually(lambda: nothing_left_of(f"{job.job_id}-preparation"), "for the preparation to end")
    api = launch().api
    assert score(finish(api, job)) == 0.25
    assert preparations(site) == 1


def test_a_harness_that_uses_a_prepared_model_outlives_its_server(launch: Launch, site: Site, model: Path) -> None:
    server = launch()
    job = submit(server.api, model, "weighs_later")
    site.wait_for_log(job.job_id)
    server.kill()
    make_model(site, value="0.75")  # it has been prepared as it was
    site.release()
    api = launch().api
    assert score(finish(api, job)) == 0.25
    assert site.starts(job.job_id) == ["1"]


def test_a_preparation_of_which_nobody_knows_the_end_is_made_again_by_the_next_attempt(launch: Launch, site: Site) -> None:
    folder = make_model(site, "wait")
    server = launch()
    job = submit(server.api, folder, max_attempts=2)
    wait_until_preparing(server.api, site, job)
    server.kill()
    site.kill_runs()
    site.release("preparation")
    api = launch().api
    job = finish(api, job)
    assert (score(job), job.attempt) == (0.25, 2)
    assert job.attempts[0].error.reason == "RUN_LOST"


def test_prepared_models_are_removed_by_age_since_their_last_use(
    serve: Callable[..., ServerHere], site: Site, model: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "INTERVAL_SECONDS", 0.01)
    api = serve(preparation_max_age_seconds=1000.0).api
    finish(api, submit(api, model))
    assert len(kept_models(site)) == 1
    clock.move_ahead(900)
    finish(api, submit(api, model))
    clock.move_ahead(900)
    assert score(finish(api, submit(api, model))) == 0.25
    assert preparations(site) == 1
    clock.move_ahead(1001)
    eventually(lambda: not kept_models(site), "for it to be removed")
    assert score(finish(api, submit(api, model))) == 0.25
    assert preparations(site) == 2


def test_prepared_models_are_removed_by_size_but_none_that_a_job_uses(
    serve: Callable[..., ServerHere], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "INTERVAL_SECONDS", 0.01)
    api = serve(preparation_max_bytes=1).api
    used, unused = make_model(site, name="used"), make_model(site, name="unused", value="0.75")
    job = submit(api, used, "weighs_later")
    site.wait_for_log(job.job_id)
    assert score(finish(api, submit(api, unused))) == 0.75
    eventually(lambda: len(kept_models(site)) == 1, "for the unused one to be removed")
    site.release()
    assert score(finish(api, job)) == 0.25
    eventually(lambda: not kept_models(site), "for the other one to be removed")


def test_what_an_earlier_server_was_preparing_or_using_is_not_removed(
    serve: Callable[..., ServerHere], launch: Launch, site: Site, model: Path
) -> None:
    server = launch()
    job = submit(server.api, model, "weighs_later")
    site.wait_for_log(job.job_id)
    server.kill()
    site.set_up(preparation_max_bytes=1)
    second = serve()
    assert second.server._prepared_models.evict(0.0, 1, lambda: False) == []
    assert len(kept_models(site)) == 1
    site.release()
    assert score(finish(second.api, job)) == 0.25


def test_a_job_gives_way_while_its_model_is_prepared(serve: Callable[..., ServerHere], site: Site) -> None:
    api = serve().api
    folder = make_model(site, "wait")
    job = submit(api, folder, preemptible=True, request={"num_gpus": 2})
    wait_until_preparing(api, site, job)
    assert api.run("good", priority=100, request={"num_gpus": 2}).status == COMPLETED
    site.release("preparation")
    job = finish(api, job)
    assert (score(job), job.attempt, job.attempts[0].error.reason) == (0.25, 2, "PREEMPTED")


def test_the_client_and_the_command_line_name_a_preparation(api: Api, model: Path) -> None:
    from click.testing import CliRunner

    from evalrpc.cli import main
    from evalrpc.client import EvalClient

    with EvalClient(api.address) as client:
        job = client.evaluate("weighs", "t", {"pretrained": str(model)}, num_gpus=0, harness="toy", preparation="toy")
        client.wait_for_job(job.job_id)
        assert b"".join(client.logs(job.job_id, preparation=True)) == f"preparing {model}\n".encode()
    flags = ["--model", "weighs", "--tasks", "t", "--num-gpus", "0", "--model-args", f"pretrained={model}"]
    runner = CliRunner()
    result = runner.invoke(main, ["submit", *flags, "--preparation", "toy", "--address", api.address])
    assert result.exit_code == 0, result.output
    job = finish(api, api.get(result.stdout.strip()))
    assert job.request.preparation == "toy"
    result = runner.invoke(main, ["logs", job.job_id, "--preparation", "--address", api.address])
    assert (result.exit_code, result.output) == (0, "")


def test_what_a_machine_out_of_reach_prepares_is_prepared_anew_for_jobs_elsewhere(
    hosts: dict[str, ServerThere], site: Site, launch: Launch
) -> None:
    folder = make_model(site, "wait")
    first = submit(hosts[SCHEDULER].api, folder)
    wait_until_preparing(hosts[SCHEDULER].api, site, first)
    hosts[SCHEDULER].kill()
    api = hosts[OTHER].api
    wait_until_out_of_reach(api, first.job_id, SCHEDULER)
    second = submit(api, folder)
    eventually(lambda: preparations(site) == 2, "for it to be prepared anew")
    site.release("preparation")
    assert score(finish(api, second)) == 0.25
    assert api.get(first.job_id).status == RUNNING
    launch("--host-name", SCHEDULER)
    done = finish(api, first)
    assert (score(done), [attempt.node for attempt in done.attempts]) == (0.25, [SCHEDULER])
    assert preparations(site) == 2
    assert len(kept_models(site)) == 1
    assert not made(site, first).exists()
