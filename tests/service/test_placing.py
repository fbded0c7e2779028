"""Which job gets which GPUs and when, as a client of a real server sees it."""

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from serving import COMPLETED, QUEUED, RUNNING, TERMINAL, Api, MovableClock, ServerHere, Site
from waiting import eventually

from evalrpc.executors.base import RunKey

Serve = Callable[..., ServerHere]


def test_a_smaller_job_passes_a_wide_one_that_does_not_fit_yet(api: Api, site: Site) -> None:
    first = api.submit("slow", request={"num_gpus": 1})
    api.wait_for(first.job_id, RUNNING)
    wide = api.submit("good", request={"num_gpus": 2})
    small = api.submit("good", request={"num_gpus": 1})
    assert api.wait_for(small.job_id, *TERMINAL).status == COMPLETED
    waiting = api.get(wide.job_id)
    assert (waiting.status, waiting.wait_reason) == (QUEUED, "needs 2 GPUs, 1 free")
    site.release()
    assert api.wait_for(wide.job_id, *TERMINAL).status == COMPLETED


def test_a_wide_job_that_has_waited_gets_the_next_gpus_and_the_others_say_so(serve: Serve, site: Site) -> None:
    api = serve(reservation_seconds=0.0).api
    first = api.submit("slow", request={"num_gpus": 1})
    api.wait_for(first.job_id, RUNNING)
    wide = api.submit("good", request={"num_gpus": 2})
    small = api.submit("good", request={"num_gpus": 1})
    without_gpus = api.submit("good")
    assert api.wait_for(without_gpus.job_id, *TERMINAL).status == COMPLETED, "GPUs that are kept don't concern it"
    eventually(lambda: f"GPUs are kept for job {wide.job_id}" in api.get(small.job_id).wait_reason)
    site.release()
    ended = [api.wait_for(job.job_id, *TERMINAL) for job in (wide, small)]
    assert ended[0].started_at.ToNanoseconds() < ended[1].started_at.ToNanoseconds()


def test_a_quarantined_gpu_is_shown_and_given_to_nobody(serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    executor = server.server._executor
    monkeypatch.setattr(executor, "kill_leftovers", lambda _: False)
    executor.quarantine(RunKey("x", 1, site.folder), ["0"], "job x: process 7 could not be killed")
    queue = server.api.GetQueue()
    assert [gpu.quarantine_reason for gpu in queue.gpus] == ["job x: process 7 could not be killed", ""]
    assert queue.free_gpu_count == 1
    wide = server.api.submit("good", request={"num_gpus": 2})
    assert "1 quarantined, see GetQueue" in server.api.get(wide.job_id).wait_reason
    small = server.api.run("good", request={"num_gpus": 1})
    assert (small.status, list(small.attempts[0].gpus)) == (COMPLETED, ["1"])


def test_time_in_the_queue_does_not_count_for_the_timeout(api: Api, site: Site, clock: MovableClock) -> None:
    blocker = api.submit("slow", request={"num_gpus": 2})
    api.wait_for(blocker.job_id, RUNNING)
    job = api.submit("good", request={"num_gpus": 1}, timeout=Duration(seconds=600))
    clock.move_ahead(3600)
    site.release()
    assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
