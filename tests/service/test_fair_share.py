"""Shares, quotas and jobs that give way, as clients of a real server see them."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import (
    COMPLETED,
    QUEUED,
    RUNNING,
    TERMINAL,
    Api,
    Launch,
    ServerHere,
    Site,
    detail,
    fields_of,
    nothing_left_of,
    reason_of,
    submission,
)
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.errors import PermissionDeniedError
from evalrpc.server.app import SERVICE
from evalrpc.server.call import Principal, Role
from evalrpc.server.handlers import handlers_of
from evalrpc.testing.in_process import InProcessTransport
from evalrpc.v1 import jobs_pb2 as pb

Serve = Callable[..., ServerHere]


class Caller:
    """Calls a server as someone who has signed in."""

    def __init__(self, server: ServerHere, owner: str, role: Role = Role.SUBMITTER) -> None:
        self._loop = server._loop
        self._calls = InProcessTransport(
            handlers_of(SERVICE, server.server._service, server.server.limits), Principal(owner, role)
        )

    def submit(self, model: str = "good", **fields: Any) -> pb.JobInfo:
        return self._call("SubmitJob", submission(model, **fields).SerializeToString())

    def submit_many(self, count: int, model: str = "good", **fields: Any) -> list[pb.JobInfo]:
        async def submit_all() -> list[bytes]:
            calls = (submission(model, **fields).SerializeToString() for _ in range(count))
            return await asyncio.gather(*(self._calls.unary("SubmitJob", call) for call in calls))

        answers = asyncio.run_coroutine_threadsafe(submit_all(), self._loop).result(10 * SECONDS)
        return [pb.JobInfo.FromString(answer) for answer in answers]

    def update(self, job_id: str, priority: int) -> pb.JobInfo:
        return self._call("UpdateJob", pb.UpdateJobRequest(job_id=job_id, priority=priority).SerializeToString())

    def _call(self, method: str, message: bytes) -> pb.JobInfo:
        call = self._calls.unary(method, message)
        return pb.JobInfo.FromString(asyncio.run_coroutine_threadsafe(call, self._loop).result(SECONDS))


def configure(site: Site, text: str) -> None:
    site.config.write_text(f"{site.config.read_text()}{text}\n")


@pytest.mark.parametrize("count", [50, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_single_job_of_a_third_owner_starts_next_among_many_of_two(serve: Serve, site: Site, count: int) -> None:
    server = serve(gpus="1", max_running=1)
    first = Caller(server, "alice").submit("slow", request={"num_gpus": 1})
    server.api.wait_for(first.job_id, RUNNING)
    Caller(server, "alice").submit_many(count, "slow", request={"num_gpus": 1})
    Caller(server, "bob").submit_many(count, "slow", request={"num_gpus": 1})
    single = Caller(server, "carol").submit("slow", request={"num_gpus": 1})
    assert single.position_in_queue <= 1, "bob has used nothing either"
    site.release(first.job_id)
    server.api.wait_for(first.job_id, *TERMINAL)
    order = []
    for _ in range(2):
        running = eventually(lambda: list(server.api.GetQueue().running_job_ids), "for the next job to start")[0]
        order.append(server.api.get(running))
        site.release(running)
        server.api.wait_for(running, *TERMINAL)
    assert {job.owner for job in order} == {"bob", "carol"}, "each before alice is served again"
    queue = server.api.GetQueue()
    assert queue.queued_count >= 2 * count - 2
    assert {share.owner for share in queue.owners} >= {"alice", "bob"}


def test_who_has_used_least_is_next_also_after_a_restart(serve: Serve, site: Site) -> None:
    configure(site, "[shares]\nalice = 2\n")
    server = serve(gpus="1", max_running=1)
    site.release()
    done = Caller(server, "alice").submit("good", request={"num_gpus": 1})
    server.api.wait_for(done.job_id, COMPLETED)
    server.stop()
    server = serve(gpus="1", max_running=1)
    (site.toy_dir / "release" / "all").unlink()
    blocker = Caller(server, "dora").submit("slow", request={"num_gpus": 1})
    server.api.wait_for(blocker.job_id, RUNNING)
    alice, bob = Caller(server, "alice").submit("slow"), Caller(server, "bob").submit("slow")
    assert list(server.api.GetQueue().queued_job_ids) == [bob.job_id, alice.job_id]
    shares = {share.owner: share for share in server.api.GetQueue().owners}
    assert shares["alice"].weight == 2.0
    assert shares["alice"].used_gpu_seconds > 0
    assert (shares["dora"].running_count, shares["dora"].held_gpu_count) == (1, 1)
    assert [gpu.node for gpu in server.api.GetQueue().gpus] == ["local"]


def test_only_operators_may_ask_for_urgency(server: ServerHere) -> None:
    alice, operator = Caller(server, "alice"), Caller(server, "olga", Role.OPERATOR)
    job = alice.submit("slow", priority=500, request={"num_gpus": 2})
    for attempt in (lambda: alice.submit(priority=501), lambda: alice.update(job.job_id, 501)):
        with pytest.raises(
            PermissionDeniedError, match="priority: 501 is more than 500, which only operators may give"
        ) as caught:
            attempt()
        assert caught.value.reason == "PERMISSION_DENIED"
        assert caught.value.metadata == {"field": "priority"}
    assert operator.submit(priority=501).priority == 501
    assert operator.update(job.job_id, 501).priority == 501
    assert server.api.submit(priority=1000).priority == 1000, "where nobody signs in it is a priority like others"


def test_a_quota_on_the_queue_is_an_error_that_names_the_owner(serve: Serve, site: Site) -> None:
    configure(site, "[quotas.default]\nmax_queued = 1\nmax_running = 1\nmax_gpus = 1")
    api = serve().api
    running = api.submit("slow")
    api.wait_for(running.job_id, RUNNING)
    waiting = api.submit("slow")
    assert waiting.wait_reason == "anonymous runs 1 of at most 1 job"
    with pytest.raises(grpc.RpcError) as caught:
        api.submit("slow")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "QUOTA_EXCEEDED"
    (violation,) = detail(caught.value, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "owner:"
    assert violation.description == "anonymous has 1 of at most 1 jobs in the queue; try again later"
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    with pytest.raises(grpc.RpcError) as caught:
        api.submit("slow", request={"num_gpus": 2})
    assert fields_of(caught.value) == ["request.num_gpus"]
    assert "your quota is 1 at once" in caught.value.details()


def test_whose_files_take_too_much_is_told_so(serve: Serve, site: Site) -> None:
    configure(site, "[quotas.default]\nmax_bytes = 1")
    server = serve()
    job = server.api.run("good")
    server.server._housekeeper._kept_bytes.measure()
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit("good")
    assert reason_of(caught.value) == "QUOTA_EXCEEDED"
    assert "of at most 1 bytes of files; delete jobs first" in caught.value.details()
    server.api.DeleteJob(job_id=job.job_id)
    eventually(lambda: not (site.folder / "data" / "jobs" / job.job_id).exists(), "for its files to be removed")
    server.server._housekeeper._kept_bytes.measure()
    server.api.submit("good")


def test_a_preemptible_run_is_ended_with_all_its_processes_before_the_other_starts(api: Api, site: Site) -> None:
    job = api.submit("slow", request={"num_gpus": 2}, preemptible=True)
    assert job.preemptible
    api.wait_for(job.job_id, RUNNING)
    site.wait_for_log(job.job_id)
    first = api.submit("slow", request={"num_gpus": 2}, priority=1)
    api.wait_for(first.job_id, RUNNING)
    waiting = api.get(job.job_id)
    assert (waiting.status, waiting.attempts[0].error.reason) == (QUEUED, "PREEMPTED")
    assert nothing_left_of(job.job_id)
    site.release()
    ended = api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.attempt, ended.attempt_count, ended.max_attempts) == (COMPLETED, 2, 2, 1)
    assert site.starts(job.job_id) == ["1", "2"]


def test_a_server_that_is_killed_while_a_run_gives_way_leaves_that_to_the_next(launch: Launch, site: Site) -> None:
    site.set_up(grace_seconds=3600)
    server = launch()
    job = server.api.submit("lingers", request={"num_gpus": 2}, preemptible=True)
    site.wait_for_log(job.job_id)
    first = server.api.submit("slow", request={"num_gpus": 2}, priority=1)
    eventually(lambda: server.api.get(job.job_id).attempts[0].error.reason == "PREEMPTED", "for the request to give way")
    site.wait_for_log(job.job_id, "asked")
    assert server.api.get(first.job_id).status == QUEUED, "the run has not ended yet"
    server.kill()
    server = launch()
    assert server.api.get(first.job_id).status == QUEUED
    site.release(job.job_id)
    server.api.wait_for(first.job_id, RUNNING)
    waiting = server.api.get(job.job_id)
    assert (waiting.status, [attempt.error.reason for attempt in waiting.attempts]) == (QUEUED, ["PREEMPTED"])
    assert nothing_left_of(job.job_id)
    eventually(lambda: site.starts(first.job_id) == ["1"], "for the other one to run")
