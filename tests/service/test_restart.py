"""Servers that are killed or stopped at work, and their successors."""

import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from processes_of_tests import shims_of_runs
from serving import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RUNNING,
    STATUS,
    TERMINAL,
    Api,
    Launch,
    MovableClock,
    ServerHere,
    Site,
    nothing_left_of,
    submission,
)
from waiting import eventually

from evalrpc.executors.local.environment import JOB_ID_VARIABLE


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_run_outlives_its_server_and_the_next_one_sees_it_through(launch: Launch, site: Site, how: str) -> None:
    server = launch()
    job = server.api.submit("slow", request={"num_gpus": 1})
    site.wait_for_log(job.job_id)
    before = server.api.get(job.job_id)
    getattr(server, how)()
    assert not nothing_left_of(job.job_id), "the run goes on"
    api = launch().api
    adopted = api.get(job.job_id)
    assert (adopted.status, adopted.attempt, list(adopted.gpus)) == (RUNNING, 1, list(before.gpus))
    assert adopted.started_at == before.started_at
    assert api.GetQueue().free_gpu_count == 1
    eventually(lambda: api.get(job.job_id).progress.done == 1, "for the progress to be read again")
    site.release()
    done = api.wait_for(job.job_id, *TERMINAL)
    assert (done.status, done.attempt) == (COMPLETED, 1)
    assert site.starts(job.job_id) == ["1"], "one process per attempt"
    assert api.GetQueue().free_gpu_count == 2


def test_a_run_that_has_spoilt_its_traces_is_lost_and_holds_nothing(launch: Launch, site: Site) -> None:
    api = launch().api
    lost = api.run("spoils", request={"num_gpus": 2})
    assert (lost.status, lost.error.reason) == (FAILED, "RUN_LOST")
    assert api.run("good", request={"num_gpus": 2}).status == COMPLETED
    api.DeleteJob(job_id=lost.job_id)


def test_what_is_left_of_a_run_that_has_ended_is_killed_before_its_gpus_are_given_away(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.run("good", request={"num_gpus": 2})
    server.kill()
    with subprocess.Popen(("sleep", "1000"), env={JOB_ID_VARIABLE: job.job_id}) as left:
        api = launch().api
        assert api.run("good", request={"num_gpus": 2}).status == COMPLETED
        assert left.wait() == -signal.SIGKILL


def test_traces_that_were_spoilt_while_no_server_was_there_hold_up_nothing(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(job.job_id)
    server.kill()
    site.release()
    eventually(lambda: not shims_of_runs(site.folder / "data", job.job_id))
    traces = site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "run"
    (traces / "exit").write_bytes(b"\xff\xfe\n")
    (traces / "pid").write_bytes(b"\xff\xfe")
    api = launch().api
    lost = api.wait_for(job.job_id, *TERMINAL)
    assert (lost.status, lost.error.reason) == (FAILED, "RUN_LOST")
    assert api.run("good", request={"num_gpus": 2}).status == COMPLETED


@pytest.mark.parametrize(("model", "status"), [("slow", COMPLETED), ("lingers", FAILED)])
def test_a_run_that_ends_while_no_server_is_there_is_judged_by_what_it_left(
    launch: Launch, site: Site, model: str, status: int
) -> None:
    server = launch()
    job = server.api.submit(model)
    site.wait_for_log(job.job_id)
    server.kill()
    if model == "lingers":
        (pid,) = (int(line.split()[0]) for line in (site.toy_dir / "starts" / job.job_id).read_text().splitlines())
        os.kill(pid, signal.SIGTERM)
    site.release()
    eventually(lambda: nothing_left_of(job.job_id))
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert ended.status == status
    assert ended.error.reason == ("" if status == COMPLETED else "PROCESS_SIGNALLED")
    assert site.starts(job.job_id) == ["1"]


def test_a_run_that_was_killed_with_its_shim_while_no_server_was_there_is_lost(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    server.kill()
    site.kill_runs()
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.error.reason) == (FAILED, "RUN_LOST")
    assert not ended.error.HasField("exit_code")
    assert not ended.error.HasField("signal")
    assert "ready" in ended.error.log_tail


def test_a_lost_run_is_tried_again_where_attempts_are_left(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.submit("slow", max_attempts=2)
    site.wait_for_log(job.job_id)
    server.kill()
    site.kill_runs()
    site.release()
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.attempt) == (COMPLETED, 2)
    assert ended.attempts[0].error.reason == "RUN_LOST"
    assert site.starts(job.job_id) == ["1", "2"]


def test_a_run_past_its_timeout_is_ended_by_the_next_server(
    launch: Launch, serve: Callable[..., ServerHere], site: Site, clock: MovableClock
) -> None:
    server = launch()
    job = server.api.submit("stubborn", timeout=Duration(seconds=600))
    site.wait_for_log(job.job_id, times=3)
    server.kill()
    clock.move_ahead(3600)
    ended = serve().api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.error.reason) == (FAILED, "TIMED_OUT")
    assert nothing_left_of(job.job_id)


def test_the_queue_keeps_its_order_and_its_jobs(launch: Launch, site: Site) -> None:
    server = launch()
    blocker = server.api.submit("slow", request={"num_gpus": 2})
    server.api.wait_for(blocker.job_id, RUNNING)
    waiting = [server.api.submit("good", request={"num_gpus": 1}, priority=number % 3) for number in range(6)]
    order = list(server.api.GetQueue().queued_job_ids)
    assert order == [job.job_id for job in sorted(waiting, key=lambda job: -job.priority)]
    server.kill()
    api = launch().api
    assert list(api.GetQueue().queued_job_ids) == order
    assert [api.get(job_id).position_in_queue for job_id in order] == list(range(6))
    site.release()
    for job_id in order:
        assert api.wait_for(job_id, *TERMINAL).status == COMPLETED
        assert site.starts(job_id) == ["1"]


def test_a_request_id_is_remembered_across_a_crash(launch: Launch) -> None:
    server = launch()
    job = server.api.submit("good", request_id="r1", request={"num_gpus": 2})
    server.kill()
    api = launch().api
    assert api.submit("good", request_id="r1", request={"num_gpus": 2}).job_id == job.job_id
    with pytest.raises(grpc.RpcError) as caught:
        api.submit("good", request_id="r1", request={"num_gpus": 1})
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.slow
def test_revisions_go_on_where_they_stopped(launch: Launch) -> None:
    server = launch()
    job = server.api.run("good")
    server.kill()
    api = launch().api
    assert api.head() == job.revision == 3
    assert api.submit("good").revision == 4


def test_a_crash_between_the_begin_and_the_start_of_a_run_starts_it_once(launch: Launch, site: Site) -> None:
    """Killed at arbitrary moments around the start: each attempt still has exactly one process."""
    job_ids: list[str] = []
    for _ in range(3):
        server = launch()
        job_ids += [server.api.submit("slow").job_id for _ in range(2)]
        server.kill()
    api = launch().api
    site.release()
    for job_id in job_ids:
        done = api.wait_for(job_id, *TERMINAL)
        assert done.status == COMPLETED
        assert site.starts(job_id) == ["1"], "the same attempt was started twice, or never"


@pytest.mark.slow
def test_the_data_of_one_server_is_refused_to_another(launch: Launch, site: Site) -> None:
    first = launch()
    with pytest.raises(AssertionError, match="another evalrpc server works on"):
        launch()
    assert first.api.submit("good").status == QUEUED


def test_a_second_server_is_welcome_once_the_first_was_killed(launch: Launch) -> None:
    launch().kill()
    assert launch().api.run("good").status == COMPLETED


def test_a_graceful_stop_is_a_success_and_says_nothing_bad(launch: Launch) -> None:
    server = launch()
    server.api.run("good")
    assert server.terminate() == 0
    log = server.log_path.read_text()
    assert "ERROR" not in log
    assert "WARNING" not in log


def test_a_stop_right_after_the_start_works(launch: Launch) -> None:
    for _ in range(2):
        assert launch().terminate() == 0


def test_a_drain_waits_for_the_runs_and_starts_no_more(launch: Launch, site: Site) -> None:
    site.set_up(drain=True, drain_seconds=600.0)
    server = launch()
    running = server.api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(running.job_id)
    queued = server.api.submit("good", request={"num_gpus": 2})
    stopper = threading.Thread(target=server.process.send_signal, args=(signal.SIGTERM,))
    stopper.start()
    stopper.join()
    eventually(lambda: "draining" in server.log_path.read_text())
    with pytest.raises(grpc.RpcError) as caught:
        server.api.submit("good")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    site.release()
    assert server._end() == 0
    api = launch().api
    assert api.get(running.job_id).status == COMPLETED
    assert api.wait_for(queued.job_id, *TERMINAL).status == COMPLETED
    assert site.starts(queued.job_id) == ["1"]


# Restarted with other settings.


def test_a_job_that_no_longer_fits_the_server_keeps_nobody_waiting(launch: Launch, site: Site) -> None:
    site.set_up(reservation_seconds=0.0)
    server = launch()
    blocker = server.api.submit("slow", request={"num_gpus": 2})
    server.api.wait_for(blocker.job_id, RUNNING)
    wide = server.api.submit("good", request={"num_gpus": 2})
    server.kill()
    site.release()
    eventually(lambda: nothing_left_of(blocker.job_id))
    site.set_up(gpus="1")
    api = launch().api
    narrow = api.submit("good", request={"num_gpus": 1})
    eventually(lambda: api.get(narrow.job_id).status == COMPLETED)
    assert api.get(wide.job_id).status in (FAILED, QUEUED)


def with_runs_beyond_the_limit(launch: Launch, site: Site, count: int) -> tuple[Api, str]:
    """Restart a server with runs and with room for just one; return the last one's id too."""
    site.set_up(max_running=4, gpus="0")
    server = launch()
    for job in [server.api.submit("slow") for _ in range(count)]:
        site.wait_for_log(job.job_id)
    server.kill()
    site.set_up(max_running=1, gpus="0")
    api = launch().api
    return api, api.GetQueue().running_job_ids[-1]


@pytest.mark.slow
def test_a_run_restored_beyond_the_limit_can_be_cancelled(launch: Launch, site: Site) -> None:
    api, last = with_runs_beyond_the_limit(launch, site, 3)
    api.CancelJob(job_id=last)
    eventually(lambda: api.get(last).status == CANCELLED)


def test_a_run_restored_beyond_the_limit_is_seen_to_end(launch: Launch, site: Site) -> None:
    api, last = with_runs_beyond_the_limit(launch, site, 2)
    site.release(last)
    eventually(lambda: api.get(last).status == COMPLETED)


def test_a_run_whose_harness_the_operator_removed_is_ended_and_fails(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.submit("stubborn")
    site.wait_for_log(job.job_id, times=3)
    server.kill()
    site.config.write_text(site.config.read_text().replace("[harnesses.toy]", "[harnesses.other]"))
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.error.reason) == (FAILED, "HARNESS_UNAVAILABLE")
    assert nothing_left_of(job.job_id)


def test_a_queued_job_whose_harness_the_operator_removed_fails(launch: Launch, site: Site) -> None:
    server = launch()
    blocker = server.api.submit("hangs", request={"num_gpus": 2})
    server.api.wait_for(blocker.job_id, RUNNING)
    job = server.api.submit("good", request={"num_gpus": 1})
    server.kill()
    site.config.write_text(site.config.read_text().replace("[harnesses.toy]", "[harnesses.other]"))
    ended = launch().api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.error.reason) == (FAILED, "HARNESS_UNAVAILABLE")


# Many jobs.


def submit_until_dead(api: Api, count: int, in_flight: int) -> set[str]:
    """Submit `count` jobs, `in_flight` at a time; return the ids acknowledged before the server died."""
    acknowledged: set[str] = set()

    def one(_: int) -> None:
        try:
            job = api.SubmitJob(submission("good", request={"num_gpus": 1}))
        except grpc.RpcError:
            return
        acknowledged.add(job.job_id)

    with ThreadPoolExecutor(in_flight) as pool:
        list(pool.map(one, range(count)))
    return acknowledged


def all_jobs(api: Api) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = api.ListJobs(page_size=1000, page_token=token)
        found += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            return found


def check_nothing_is_lost(site: Site, launch: Launch, count: int) -> None:
    server = launch()
    blocker = server.api.submit("hangs", request={"num_gpus": 2})
    server.api.wait_for(blocker.job_id, RUNNING)
    killer = threading.Timer(0, server.process.kill)
    acknowledged = submit_until_dead(server.api, count, 64)
    more: set[str] = set()
    submitter = threading.Thread(target=lambda: more.update(submit_until_dead(server.api, 2000, 64)))
    submitter.start()
    eventually(lambda: server.api.head() > count + 50, "for the last burst to be under way")
    killer.start()
    submitter.join()
    server.kill()
    api = launch().api
    found = Counter(all_jobs(api))
    assert len(acknowledged) == count
    assert (acknowledged | more) <= found.keys()
    assert set(found.values()) == {1}
    assert api.GetQueue().queued_count == len(found) - 1
    assert api.get(blocker.job_id).status == RUNNING
    stream = api.WatchJobs(after_revision=1)
    revisions = [event.revision for event in _until_bookmark(stream) if event.type == STATUS]
    stream.cancel()
    assert revisions == list(range(2, api.head() + 1))


def _until_bookmark(stream):
    for event in stream:
        if not event.HasField("job"):
            return
        yield event


def test_a_server_killed_in_a_burst_of_submissions_loses_none(launch: Launch, site: Site) -> None:
    check_nothing_is_lost(site, launch, 300)


@pytest.mark.slow
def test_ten_thousand_submissions_with_64_in_flight_survive_a_kill(launch: Launch, site: Site) -> None:
    check_nothing_is_lost(site, launch, 10_000)


@pytest.mark.slow
def test_a_server_killed_again_and_again_runs_every_job_once(launch: Launch, site: Site) -> None:
    server = launch()
    job_ids = [server.api.submit("steps", max_attempts=1).job_id for _ in range(12)]
    for _ in range(5):
        server.kill()
        server = launch()
        ended = sum(server.api.get(job_id).status in TERMINAL for job_id in job_ids)
        eventually(
            lambda server=server, ended=ended: (
                sum(server.api.get(job_id).status in TERMINAL for job_id in job_ids) > ended or ended == len(job_ids)
            )
        )
    for job_id in job_ids:
        assert server.api.wait_for(job_id, *TERMINAL).status == COMPLETED
        assert site.starts(job_id) == ["1"]
    assert not list(Path(site.folder).glob("core*"))
