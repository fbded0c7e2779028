"""Cancelling and deleting jobs: at once, or when none of their processes is left."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from processes_of_tests import is_alive
from serving import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RUNNING,
    TERMINAL,
    Api,
    Launch,
    ServerHere,
    ServerThere,
    Site,
    detail,
    nothing_left_of,
    reason_of,
)
from waiting import eventually


def test_a_queued_job_is_cancelled_at_once(api: Api, site: Site) -> None:
    api.wait_for(api.submit("slow", request={"num_gpus": 2}).job_id, RUNNING)
    job = api.submit("good", request={"num_gpus": 1})
    cancelled = api.CancelJob(job_id=job.job_id, reason="no longer needed")
    assert (cancelled.status, cancelled.cancel_reason) == (CANCELLED, "no longer needed")
    assert (cancelled.error.reason, cancelled.error.message) == ("CANCELLED", "no longer needed")
    assert cancelled.HasField("completed_at")
    assert not cancelled.HasField("started_at")
    assert not cancelled.HasField("position_in_queue")
    assert api.GetQueue().queued_count == 0
    site.release()
    assert site.starts(job.job_id) == []


def test_a_running_job_is_cancelled_when_nothing_of_it_is_left(api: Api, site: Site) -> None:
    job = api.submit("hangs", request={"num_gpus": 1})
    site.wait_for_log(job.job_id)
    answer = api.CancelJob(job_id=job.job_id)
    assert answer.HasField("cancel_requested_at")
    assert answer.status in (RUNNING, CANCELLED)
    ended = api.wait_for(job.job_id, *TERMINAL)
    assert nothing_left_of(job.job_id)
    assert (ended.status, ended.error.reason) == (CANCELLED, "CANCELLED")
    assert ended.error.message
    assert ended.cancel_requested_at == answer.cancel_requested_at
    assert not ended.gpus
    assert ended.attempts[0].error.reason == "CANCELLED"
    assert api.GetQueue().free_gpu_count == 2


def test_a_tree_that_ignores_sigterm_and_left_its_session_is_ended_whole(api: Api, site: Site) -> None:
    job = api.submit("stubborn")
    site.wait_for_log(job.job_id, times=3)
    pids = [int(line.split()[1]) for line in site.log_of(job.job_id).splitlines()]
    api.CancelJob(job_id=job.job_id)
    assert api.wait_for(job.job_id, *TERMINAL).status == CANCELLED
    assert not any(is_alive(pid) for pid in pids), "it must not be CANCELLED while a process is left"


@pytest.mark.slow
def test_a_run_that_writes_without_end_can_be_cancelled(launch: Launch, site: Site) -> None:
    server = launch()

    def bytes_read() -> int:
        return int(Path(f"/proc/{server.process.pid}/io").read_text().split()[1])

    before = bytes_read()
    job = server.api.submit("chatter")
    eventually(lambda: bytes_read() > before + 1_000_000, "for the server to look at the log")
    server.api.CancelJob(job_id=job.job_id)
    assert server.api.wait_for(job.job_id, *TERMINAL).status == CANCELLED


def test_the_gpus_of_a_cancelled_job_go_to_the_next(api: Api, site: Site) -> None:
    job = api.submit("hangs", request={"num_gpus": 2})
    site.wait_for_log(job.job_id)
    next_job = api.submit("good", request={"num_gpus": 2})
    api.CancelJob(job_id=job.job_id)
    assert api.wait_for(next_job.job_id, *TERMINAL).status == COMPLETED
    first, second = api.get(job.job_id), api.get(next_job.job_id)
    assert second.started_at.ToNanoseconds() >= first.completed_at.ToNanoseconds()


def test_only_queued_jobs_are_cancelled_where_that_is_asked_for(api: Api, site: Site) -> None:
    running = api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(running.job_id)
    queued = api.submit("good", request={"num_gpus": 1})
    head = api.head()
    with pytest.raises(grpc.RpcError) as caught:
        api.CancelJob(job_id=running.job_id, queued_only=True)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(caught.value) == "JOB_NOT_QUEUED"
    assert api.head() == head
    assert not api.get(running.job_id).HasField("cancel_requested_at")
    for _ in range(2):
        assert api.CancelJob(job_id=queued.job_id, queued_only=True).status == CANCELLED
    site.release()
    api.wait_for(running.job_id, COMPLETED)
    with pytest.raises(grpc.RpcError) as caught:
        api.CancelJob(job_id=running.job_id, queued_only=True)
    assert reason_of(caught.value) == "JOB_FINISHED"


def test_cancelling_again_answers_with_the_job_as_it_is(api: Api, site: Site) -> None:
    job = api.submit("stubborn")
    site.wait_for_log(job.job_id, times=3)
    first = api.CancelJob(job_id=job.job_id, reason="first")
    second = api.CancelJob(job_id=job.job_id, reason="second")
    assert second.cancel_requested_at == first.cancel_requested_at
    ended = api.wait_for(job.job_id, *TERMINAL)
    assert ended.error.message == "first"
    assert api.CancelJob(job_id=job.job_id, reason="third") == ended


@pytest.mark.parametrize(("model", "status"), [("good", COMPLETED), ("fails", FAILED)])
def test_a_finished_job_can_not_be_cancelled(api: Api, model: str, status: int) -> None:
    job = api.run(model)
    with pytest.raises(grpc.RpcError) as caught:
        api.CancelJob(job_id=job.job_id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(caught.value) == "JOB_FINISHED"
    assert detail(caught.value, error_details_pb2.PreconditionFailure).violations[0].type == "JOB_FINISHED"
    assert api.get(job.job_id) == job
    assert job.status == status


def test_a_cancel_that_races_with_the_end_has_one_of_both_outcomes_and_leaves_nothing(api: Api, site: Site) -> None:
    refusals: list[grpc.StatusCode] = []

    def race(_: int) -> None:
        job = api.submit("good")

        def cancel() -> None:
            try:
                api.CancelJob(job_id=job.job_id)
            except grpc.RpcError as error:
                refusals.append(error.code())

        api.wait_for(job.job_id, RUNNING, *TERMINAL)
        canceller = threading.Thread(target=cancel)
        canceller.start()
        ended = api.wait_for(job.job_id, *TERMINAL)
        canceller.join()
        assert ended.status in (COMPLETED, CANCELLED), ended
        assert ended == api.get(job.job_id)
        assert nothing_left_of(job.job_id)
        assert bool(ended.results) == (ended.status == COMPLETED)
        assert ended.HasField("error") == (ended.status == CANCELLED)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(race, range(12)))
    assert set(refusals) <= {grpc.StatusCode.FAILED_PRECONDITION}
    assert api.GetQueue().free_gpu_count == 2


def test_a_cancel_that_races_with_the_start_leaves_nothing(api: Api, site: Site) -> None:
    def race(_: int) -> None:
        job = api.submit("hangs")
        api.CancelJob(job_id=job.job_id)
        assert api.wait_for(job.job_id, *TERMINAL).status == CANCELLED
        assert nothing_left_of(job.job_id)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(race, range(20)))
    queue = api.GetQueue()
    assert (queue.running_count, queue.queued_count, queue.free_gpu_count) == (0, 0, 2)
    assert api.run("good").status == COMPLETED


@pytest.mark.usefixtures("long_backoff")
def test_cancelling_a_job_between_two_attempts_ends_it(api: Api) -> None:
    job = api.submit("killed", max_attempts=10)
    eventually(lambda: (found := api.get(job.job_id)).status == QUEUED and found.attempt == 1)
    cancelled = api.CancelJob(job_id=job.job_id)
    assert (cancelled.status, cancelled.attempt) == (CANCELLED, 1)
    assert cancelled.attempts[0].error.reason == "PROCESS_SIGNALLED"
    assert not cancelled.HasField("retry_at")


# With restarts.


def test_a_cancel_is_carried_out_by_the_next_server(launch: Launch, site: Site) -> None:
    site.set_up(grace_seconds=60.0)
    server = launch()
    job = server.api.submit("lingers")
    site.wait_for_log(job.job_id)
    server.api.CancelJob(job_id=job.job_id, reason="enough")
    server.kill()
    assert not nothing_left_of(job.job_id)
    site.set_up(grace_seconds=0.1)
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.error.message) == (CANCELLED, "enough")
    assert nothing_left_of(job.job_id)


def with_a_cancel_in_progress(launch: Launch, site: Site) -> tuple[ServerThere, str]:
    """Start a server with a job that was asked to end and lingers; return the job's id too."""
    site.set_up(grace_seconds=60.0)
    server = launch()
    job = server.api.submit("lingers")
    site.wait_for_log(job.job_id)
    server.api.CancelJob(job_id=job.job_id)
    site.wait_for_log(job.job_id, "asked to end")
    return server, job.job_id


def test_a_job_whose_cancel_was_carried_out_while_no_server_was_there_is_cancelled(launch: Launch, site: Site) -> None:
    server, job_id = with_a_cancel_in_progress(launch, site)
    server.kill()
    site.release()
    eventually(lambda: nothing_left_of(job_id))
    ended = launch().api.wait_for(job_id, *TERMINAL)
    assert ended.status == CANCELLED


def test_a_graceful_stop_in_the_middle_of_a_cancel_still_ends_in_cancelled(launch: Launch, site: Site) -> None:
    server, job_id = with_a_cancel_in_progress(launch, site)
    stopper = threading.Thread(target=server.terminate)
    stopper.start()
    eventually(lambda: "stopping" in server.log_path.read_text())
    site.release()
    stopper.join()
    ended = launch().api.wait_for(job_id, *TERMINAL)
    assert ended.status == CANCELLED


# Deleting.


def test_deleting_takes_the_job_and_its_files(api: Api, site: Site) -> None:
    job = api.run("good")
    folder = Path(job.attempts[0].output_dir).parent.parent
    assert folder.is_dir()
    api.DeleteJob(job_id=job.job_id)
    eventually(lambda: not folder.exists(), "for the files to be removed")
    for call in (api.GetJob, api.DeleteJob, api.CancelJob):
        with pytest.raises(grpc.RpcError) as caught:
            call(job_id=job.job_id)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert not api.ListJobs().jobs


def test_a_live_job_can_not_be_deleted(serve: Callable[..., ServerHere], site: Site) -> None:
    api = serve().api
    running = api.submit("slow", request={"num_gpus": 2})
    api.wait_for(running.job_id, RUNNING)
    queued = api.submit("good", request={"num_gpus": 1})
    for job in (running, queued):
        with pytest.raises(grpc.RpcError) as caught:
            api.DeleteJob(job_id=job.job_id)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(caught.value) == "JOB_NOT_FINISHED"
    site.release()
    assert api.wait_for(queued.job_id, *TERMINAL).status == COMPLETED
