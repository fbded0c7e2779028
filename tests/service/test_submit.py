"""Submitting a job, and its course to the end."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from serving import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RUNNING,
    SECONDS,
    TERMINAL,
    Api,
    Launch,
    ServerHere,
    Site,
    detail,
    nothing_left_of,
    reason_of,
    submission,
)
from waiting import eventually

from evalrpc.protobuf.times import seconds_of
from evalrpc.v1 import jobs_pb2 as pb


def seconds(job: pb.JobInfo, field: str) -> float:
    return seconds_of(getattr(job, field))


def test_a_job_runs_and_its_results_come_back(api: Api, site: Site) -> None:
    submitted = api.submit("good", labels={"run": "1"}, priority=3)
    assert submitted.status == QUEUED
    job = api.wait_for(submitted.job_id, *TERMINAL)
    assert job.status == COMPLETED
    (model,) = job.results
    assert model == "toy"
    (metric,) = job.results["toy"].metrics
    assert (metric.task, metric.metric, metric.filter, metric.value) == ("t", "acc", "none", 0.5)
    assert json.loads(Path(job.results["toy"].results).read_text())["results"]["t"]["acc,none"] == 0.5
    assert len(job.results["toy"].samples) == 1
    assert (job.labels, job.priority, job.attempt, job.max_attempts) == ({"run": "1"}, 3, 1, 1)
    assert not job.HasField("error")
    assert not job.HasField("position_in_queue")
    assert not job.wait_reason
    assert site.starts(job.job_id) == ["1"]


def test_the_request_comes_back_as_it_was(api: Api) -> None:
    call = submission(
        "good",
        request={"num_fewshot": 0, "limit": 0.5, "log_samples": False, "batch_size": "auto", "device": "cpu"},
        timeout=Duration(seconds=60),
        max_attempts=3,
        supersede_key="k",
    )
    call.request.model_args.update({"pretrained": "x", "nested": {"list": [1, None, "a"]}})
    job = api.SubmitJob(call)
    assert job.request == call.request
    assert job.request.HasField("num_fewshot")
    assert job.request.HasField("log_samples")
    assert not job.request.predict_only
    assert (job.timeout, job.max_attempts, job.supersede_key) == (Duration(seconds=60), 3, "k")
    assert api.wait_for(job.job_id, *TERMINAL).request == call.request


def test_the_times_tell_the_wait_and_the_execution(api: Api, site: Site) -> None:
    first = api.submit("slow", request={"num_gpus": 2})
    second = api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(first.job_id)
    waiting = api.get(second.job_id)
    assert waiting.status == QUEUED
    assert not waiting.HasField("started_at")
    site.release()
    first, second = (api.wait_for(job.job_id, *TERMINAL) for job in (first, second))
    for job in (first, second):
        assert job.status == COMPLETED
        assert seconds(job, "created_at") <= seconds(job, "started_at") <= seconds(job, "completed_at")
        assert job.attempts[0].started_at == job.started_at
        assert job.attempts[0].completed_at == job.completed_at
    assert seconds(second, "started_at") >= seconds(first, "completed_at"), "they can't have held the GPUs both"


def test_a_queued_job_has_its_position_and_a_reason(api: Api, site: Site) -> None:
    blocker = api.submit("slow", request={"num_gpus": 2})
    api.wait_for(blocker.job_id, RUNNING)
    waiting = [api.submit("good", request={"num_gpus": 1}) for _ in range(3)]
    urgent = api.submit("good", request={"num_gpus": 1}, priority=10)
    assert [job.position_in_queue for job in waiting] == [0, 1, 2]
    assert all(job.HasField("position_in_queue") for job in (*waiting, urgent))
    assert urgent.position_in_queue == 0
    assert [api.get(job.job_id).position_in_queue for job in waiting] == [1, 2, 3]
    assert api.get(waiting[2].job_id).wait_reason == "needs 1 GPU, 0 free"
    queue = api.GetQueue()
    assert list(queue.queued_job_ids) == [urgent.job_id, *(job.job_id for job in waiting)]
    assert list(queue.running_job_ids) == [blocker.job_id]
    assert (queue.queued_count, queue.running_count, queue.free_gpu_count) == (4, 1, 0)
    assert {gpu.id: gpu.job_id for gpu in queue.gpus} == {"0": blocker.job_id, "1": blocker.job_id}
    assert {count.status: count.count for count in queue.status_counts} == {QUEUED: 4, RUNNING: 1}
    site.release()
    assert all(api.wait_for(job.job_id, *TERMINAL).status == COMPLETED for job in (*waiting, urgent, blocker))
    queue = api.GetQueue()
    assert (queue.queued_count, queue.running_count, queue.free_gpu_count) == (0, 0, 2)


def test_a_running_job_holds_its_gpus_alone_and_sees_only_them(api: Api, site: Site) -> None:
    jobs = [api.submit("slow", request={"num_gpus": 1}) for _ in range(3)]
    for job in jobs[:2]:
        site.wait_for_log(job.job_id)
    held = [list(api.get(job.job_id).gpus) for job in jobs]
    assert sorted(held) == [[], ["0"], ["1"]]
    site.release()
    for job in jobs:
        done = api.wait_for(job.job_id, *TERMINAL)
        assert not done.gpus
        assert len(done.attempts[0].gpus) == 1


def test_progress_grows_while_it_runs_and_stays_when_it_is_done(api: Api, site: Site) -> None:
    job = api.submit("slow")
    running = eventually(lambda: (found := api.get(job.job_id)).progress.done == 1 and found)
    assert running.status == RUNNING
    assert (running.progress.total, running.progress.phase) == (4, pb.Progress.PHASE_EVALUATING)
    assert running.progress.HasField("elapsed")
    assert running.progress.HasField("last_output_at")
    site.release()
    done = api.wait_for(job.job_id, *TERMINAL)
    assert (done.progress.done, done.progress.total) == (4, 4)


# Failures of a run are answers, not errors.


def test_a_run_that_fails_says_why_in_one_line_with_the_end_of_its_log(api: Api) -> None:
    job = api.run("fails")
    assert job.status == FAILED
    assert (job.error.reason, job.error.message, job.error.exit_code) == (
        "HARNESS_FAILED",
        "ValueError: the dataset is gone",
        1,
    )
    assert "about to fail" in job.error.log_tail
    assert not job.error.HasField("signal")
    assert job.attempts[0].error.reason == "HARNESS_FAILED"
    assert not job.results


def test_a_run_that_leaves_nothing_failed_though_it_exited_with_zero(api: Api) -> None:
    job = api.run("silent")
    assert (job.status, job.error.reason, job.error.exit_code) == (FAILED, "RESULTS_MISSING", 0)


def test_a_run_that_was_killed_tells_the_signal(api: Api) -> None:
    job = api.run("killed")
    assert (job.status, job.error.reason, job.error.signal) == (FAILED, "PROCESS_SIGNALLED", 9)
    assert not job.error.HasField("exit_code")


def test_a_program_that_does_not_exist_is_a_start_failure(site: Site, serve: Callable[..., ServerHere]) -> None:
    site.config.write_text(site.config.read_text() + '[harnesses.gone]\nkind = "command"\ncommand = ["/nonexistent"]\n')
    api = serve().api
    job = api.run(request={"harness": "gone"})
    assert (job.status, job.error.reason) == (FAILED, "START_FAILED")
    assert "/nonexistent" in job.error.message
    (toy, gone) = sorted(api.ListHarnesses().harnesses, key=lambda harness: not harness.available)
    assert (toy.name, toy.available, gone.name, gone.available) == ("toy", True, "gone", False)
    assert gone.unavailable_reason


def test_five_megabytes_without_a_newline_do_no_harm(api: Api, site: Site) -> None:
    job = api.run("loud")
    assert job.status == COMPLETED
    assert len(site.log_of(job.job_id)) == 5_000_000


def test_a_run_past_its_timeout_is_ended_and_fails(api: Api) -> None:
    job = api.run("stubborn", timeout=Duration(nanos=500_000_000))
    assert (job.status, job.error.reason) == (FAILED, "TIMED_OUT")
    assert nothing_left_of(job.job_id)


@pytest.mark.parametrize(("model", "reason"), [("flaky", "PROCESS_SIGNALLED"), ("starved", "OUT_OF_MEMORY")])
def test_a_job_that_was_killed_or_lacked_memory_is_tried_again(api: Api, site: Site, model: str, reason: str) -> None:
    job = api.run(model, max_attempts=2)
    assert (job.status, job.attempt, len(job.attempts)) == (COMPLETED, 2, 2)
    assert job.attempts[0].error.reason == reason
    assert not job.attempts[1].HasField("error")
    assert job.attempts[0].output_dir != job.attempts[1].output_dir
    assert site.starts(job.job_id) == ["1", "2"]


@pytest.mark.parametrize(("model", "reason"), [("fails", "HARNESS_FAILED"), ("silent", "RESULTS_MISSING")])
def test_a_failure_that_would_come_again_is_not_tried_again(api: Api, site: Site, model: str, reason: str) -> None:
    job = api.run(model, max_attempts=3)
    assert (job.status, job.attempt, job.error.reason) == (FAILED, 1, reason)
    assert site.starts(job.job_id) == ["1"]


# Repeating and superseding.


def test_the_same_request_id_answers_with_the_same_job(api: Api) -> None:
    first = api.submit("good", request_id="r1")
    done = api.wait_for(first.job_id, *TERMINAL)
    again = api.submit("good", request_id="r1")
    assert again == done, "the job as it stands now"


def test_many_repeats_at_once_make_one_job(api: Api, site: Site) -> None:
    with ThreadPoolExecutor(16) as pool:
        ids = {job.job_id for job in pool.map(lambda _: api.submit("good", request_id="r1"), range(64))}
    assert len(ids) == 1
    api.wait_for(*ids, *TERMINAL)
    assert site.starts(*ids) == ["1"]


def test_a_request_id_with_other_contents_already_exists(api: Api) -> None:
    api.submit("good", request_id="r1")
    with pytest.raises(grpc.RpcError) as caught:
        api.submit("good", request_id="r1", priority=1)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert reason_of(caught.value) == "REQUEST_ID_REUSED"


def test_a_new_job_supersedes_the_queued_ones_with_its_key(api: Api) -> None:
    api.wait_for(api.submit("slow", request={"num_gpus": 2}).job_id, RUNNING)
    old = api.submit("good", request={"num_gpus": 1}, supersede_key="k")
    new = api.submit("good", request={"num_gpus": 1}, supersede_key="k")
    ended = api.get(old.job_id)
    assert (pb.JobStatus.Name(ended.status), ended.error.reason) == ("JOB_STATUS_CANCELLED", "SUPERSEDED")
    assert new.job_id in ended.error.message
    assert new.position_in_queue == 0


@pytest.mark.usefixtures("long_backoff")
def test_a_job_that_waits_to_be_tried_again_is_superseded_for_good(api: Api) -> None:
    old = api.submit("killed", max_attempts=10, supersede_key="k")
    eventually(lambda: (found := api.get(old.job_id)).status == QUEUED and found.attempt == 1)
    api.submit("good", supersede_key="k")
    ended = api.get(old.job_id)
    assert (ended.status, ended.error.reason, ended.attempt) == (CANCELLED, "SUPERSEDED", 1)
    assert ended.attempts[0].error.reason == "PROCESS_SIGNALLED"
    assert not ended.HasField("retry_at")


def test_validating_only_queues_nothing(api: Api) -> None:
    head = api.head()
    job = api.submit("good", validate_only=True, request_id="r1")
    assert (job.job_id, job.status, job.request.harness) == ("", QUEUED, "toy")
    assert job.HasField("position_in_queue")
    assert api.head() == head
    assert not api.ListJobs().jobs
    assert api.submit("good", request_id="r1").job_id, "the request_id was not used up"


def test_validating_only_tells_the_position_that_the_job_would_have(api: Api) -> None:
    api.wait_for(api.submit("slow", request={"num_gpus": 2}).job_id, RUNNING)
    api.submit("good", request={"num_gpus": 1})
    urgent = api.submit("good", request={"num_gpus": 1}, priority=5, validate_only=True)
    assert urgent.position_in_queue == 0


def test_every_submission_answers_queued_with_its_position_though_it_may_start_at_once(api: Api) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: api.submit("good"), range(40)))
    assert all(job.status == QUEUED and job.HasField("position_in_queue") for job in jobs)
    assert not any(job.HasField("progress") for job in jobs)


def test_a_full_queue_says_when_to_try_again(serve: Callable[..., ServerHere]) -> None:
    api = serve(max_queued=1).api
    api.wait_for(api.submit("slow", request={"num_gpus": 2}).job_id, RUNNING)
    api.submit("good", request={"num_gpus": 2})
    with pytest.raises(grpc.RpcError) as caught:
        api.submit("good", request={"num_gpus": 2})
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "QUEUE_FULL"
    assert detail(caught.value, error_details_pb2.ErrorInfo).metadata == {"setting": "max_queued", "limit": "1"}
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0


def test_clients_that_give_up_in_the_middle_of_a_submission_do_the_server_no_harm(launch: Launch) -> None:
    server = launch()
    for _ in range(20):
        calls = [server.api.stub.SubmitJob.future(submission("good", request={"num_gpus": 2})) for _ in range(50)]
        calls[0].result(SECONDS)
        for call in calls:
            call.cancel()
    assert server.api.stub.SubmitJob(submission("good"), timeout=SECONDS).status == QUEUED
    assert server.process.poll() is None


@pytest.mark.slow
def test_a_burst_of_submissions_is_taken_whole(api: Api) -> None:
    with ThreadPoolExecutor(64) as pool:
        ids = {job.job_id for job in pool.map(lambda _: api.submit("good", request={"num_gpus": 2}), range(2000))}
    assert len(ids) == 2000
