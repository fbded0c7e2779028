"""Two servers on one database and one data folder: both answer, one runs the jobs, and the other takes over."""

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from click.testing import CliRunner
from postgres_cluster import shared_cluster
from serving import COMPLETED, FAILED, QUEUED, RUNNING, TERMINAL, Launch, ServerThere, Site
from waiting import eventually

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.v1 import jobs_pb2 as pb

LEASE_SECONDS = 2.0


@pytest.fixture
def pair(site: Site, launch: Launch) -> Iterator[tuple[ServerThere, ServerThere]]:
    """A server that runs the jobs, and one beside it."""
    site.set_up(store=shared_cluster().schema_for(site.folder), lease_seconds=LEASE_SECONDS)
    first = launch()
    first.api.run()  # it has the lease
    yield first, launch()
    site.release()


def statuses(events: list[pb.JobEvent]) -> list[int]:
    return [event.job.status for event in events if event.type == pb.JOB_EVENT_TYPE_STATUS]


def test_both_take_calls_and_watches_and_what_one_answers_the_other_knows(pair: tuple[ServerThere, ServerThere]) -> None:
    first, second = pair
    job = second.api.submit()
    events = list(second.api.watch(job.job_id))
    assert events[-1].job.status == COMPLETED
    assert statuses(events) in ([RUNNING, COMPLETED], [QUEUED, RUNNING, COMPLETED])
    ahead = first.api.submit()
    resumed = second.api.watch(ahead.job_id, after_revision=ahead.revision)
    assert [event.job.status for event in resumed if event.type == pb.JOB_EVENT_TYPE_STATUS] == [RUNNING, COMPLETED]
    for server in pair:
        assert {job.job_id for job in server.api.ListJobs().jobs} >= {job.job_id, ahead.job_id}


def test_a_cancel_at_the_one_ends_the_run_of_the_other(pair: tuple[ServerThere, ServerThere], site: Site) -> None:
    _, second = pair
    slow = second.api.submit("slow")
    site.wait_for_log(slow.job_id)
    second.api.CancelJob(job_id=slow.job_id)
    assert second.api.wait_for(slow.job_id, *TERMINAL).status == pb.JOB_STATUS_CANCELLED


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_one_that_runs_jobs_is_gone_the_other_takes_over_and_clients_notice_nothing(
    pair: tuple[ServerThere, ServerThere], site: Site, fault: signal.Signals
) -> None:
    first, second = pair
    addresses = ",".join(server.api.address.removeprefix("ipv4:") for server in pair)
    with closing(EvalClient(f"ipv4:{addresses}")) as client:
        slow = client.evaluate("slow", ["t"], harness="toy", num_gpus=0)
        site.wait_for_log(slow.job_id)
        watched = client.watch(slow.job_id)
        seen = [next(watched)]
        first.process.send_signal(fault)
        if fault == signal.SIGKILL:
            first.process.wait()
        queued = second.api.submit()
        assert second.api.wait_for(queued.job_id, *TERMINAL).status == COMPLETED
        site.release(slow.job_id)
        if fault == signal.SIGSTOP:
            assert second.api.wait_for(slow.job_id, *TERMINAL).status == COMPLETED
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(60) != 0, "it stops, since it has lost the lease"
        seen += watched
    assert seen[-1].job.status == COMPLETED
    revisions = [event.revision for event in seen if event.type == pb.JOB_EVENT_TYPE_STATUS]
    assert revisions == sorted(set(revisions))
    assert [len(site.starts(job_id)) for job_id in (slow.job_id, queued.job_id)] == [1, 1], "no attempt ran twice"


def test_after_a_stop_the_other_takes_over_at_once(pair: tuple[ServerThere, ServerThere], site: Site) -> None:
    first, second = pair
    slow = second.api.submit("slow")
    site.wait_for_log(slow.job_id)
    first.terminate()
    site.release()
    assert second.api.wait_for(slow.job_id, *TERMINAL).status == COMPLETED
    assert second.api.run().status == COMPLETED


def test_runs_belong_to_their_host_until_an_operator_says_that_it_is_lost(site: Site, launch: Launch) -> None:
    store = shared_cluster().schema_for(site.folder)
    site.set_up(store=store, lease_seconds=LEASE_SECONDS)
    first = launch("--host-name", "alpha")
    slow = first.api.submit("slow")
    site.wait_for_log(slow.job_id)
    second = launch("--host-name", "beta")

    def lose(host: str) -> str:
        return CliRunner().invoke(main, ["node", "lost", host, "--store", store]).output

    assert "not on beta" in lose("beta")
    assert "stop it first" in lose("alpha")
    first.kill()
    eventually(lambda: "host alpha is out of reach" in second.log_path.read_text(), "for it to be said")
    waiting = second.api.submit()
    assert (second.api.get(slow.job_id).status, second.api.get(waiting.job_id).status) == (RUNNING, QUEUED)
    site.kill_runs()
    assert "are given up" in lose("alpha")
    assert second.api.wait_for(waiting.job_id, *TERMINAL).status == COMPLETED
    assert second.api.wait_for(slow.job_id, *TERMINAL).status == FAILED
    assert second.api.get(slow.job_id).error.reason == "RUN_LOST"
