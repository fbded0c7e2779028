"""Two servers on one database and one data folder: both answer, one runs the jobs, and the other takes over."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fake_server import FakeServer, job_at
from postgres_cluster import shared_cluster
from serving import COMPLETED, RUNNING, TERMINAL, Api, Launch, ServerHere, ServerThere, Site
from several_servers import LEASE_SECONDS, give_up, node_of, wait_until_out_of_reach
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.client import EvalClient
from evalrpc.errors import ConfigurationError
from evalrpc.server import hosts as server_hosts
from evalrpc.server.running import Running
from evalrpc.v1 import jobs_pb2 as pb


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
    assert statuses(list(second.api.watch(job.job_id, after_revision=job.revision))) == [RUNNING, COMPLETED]
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
            assert first.process.wait(SECONDS) != 0, "it stops, since it has lost the lease"
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


def submit_on_both(api: Api, site: Site) -> dict[str, pb.JobInfo]:
    """Submit a slow job for each of the two GPUs, and return them by their host."""
    jobs = [api.submit("slow", max_attempts=2, request={"num_gpus": 1}) for _ in range(2)]
    for job in jobs:
        site.wait_for_log(job.job_id)
    return {node_of(job): job for job in (api.get(job.job_id) for job in jobs)}


def test_jobs_are_placed_on_the_gpus_and_slots_of_all_hosts_and_cancelled_from_any(
    hosts: dict[str, ServerThere], site: Site
) -> None:
    api = hosts["beta"].api
    placed = submit_on_both(api, site)
    assert {host: list(job.gpus) for host, job in placed.items()} == {"alpha": ["alpha/0"], "beta": ["beta/0"]}
    waiting = api.submit(request={"num_gpus": 1})
    for server in hosts.values():
        eventually(lambda server=server: server.api.GetQueue().free_gpu_count == 0, "for both GPUs to be held")
        queue = server.api.GetQueue()
        assert {gpu.id: (gpu.node, gpu.job_id) for gpu in queue.gpus} == {
            f"{host}/0": (host, job.job_id) for host, job in placed.items()
        }
        assert {node.name: (node.running_count, node.out_of_reach) for node in queue.nodes} == {
            "alpha": (1, False),
            "beta": (1, False),
        }
        assert server.api.get(waiting.job_id).wait_reason == "needs 1 GPU, 0 free"
    hosts["alpha"].api.CancelJob(job_id=placed["beta"].job_id)
    assert api.wait_for(placed["beta"].job_id, *TERMINAL).status == pb.JOB_STATUS_CANCELLED
    assert node_of(api.wait_for(waiting.job_id, *TERMINAL)) == "beta"
    site.release()
    assert api.wait_for(placed["alpha"].job_id, *TERMINAL).status == COMPLETED
    assert all(site.starts(job.job_id) == ["1"] for job in (*placed.values(), waiting))


def test_progress_and_files_of_a_run_are_seen_at_the_other_servers(hosts: dict[str, ServerThere], site: Site) -> None:
    placed = submit_on_both(hosts["alpha"].api, site)
    for host, other in (("alpha", "beta"), ("beta", "alpha")):
        api, job_id = hosts[other].api, placed[host].job_id
        progress = (event.job.progress for event in api.watch(job_id) if event.job.progress.done)
        assert (next(progress).done, api.get(job_id).progress.total) == (1, 4)
        chunks = api.ReadLog(job_id=job_id, follow=True)
        assert b"Evaluating" in next(chunk.data for chunk in chunks if chunk.data)
        site.release(job_id)
        assert b"Evaluating: 4/4" in b"".join(chunk.data for chunk in chunks)
        done = api.wait_for(job_id, *TERMINAL)
        assert (done.status, done.progress.done) == (COMPLETED, 4)
        (artifact, *_) = api.ListArtifacts(job_id=job_id).artifacts
        assert b"".join(chunk.data for chunk in api.ReadArtifact(job_id=job_id, name=artifact.name))


def test_runs_belong_to_their_host_until_it_is_back(hosts: dict[str, ServerThere], site: Site, launch: Launch) -> None:
    gone, left = "alpha", "beta"
    placed = submit_on_both(hosts[left].api, site)
    hosts[gone].kill()
    api = hosts[left].api
    lost, kept = placed[gone], placed[left]
    wait_until_out_of_reach(api, lost.job_id, gone)
    assert {node.name: node.out_of_reach for node in api.GetQueue().nodes} == {left: False, gone: True}
    site.release(kept.job_id)
    assert api.wait_for(kept.job_id, *TERMINAL).status == COMPLETED
    further = api.run(request={"num_gpus": 1})
    assert (further.status, node_of(further)) == (COMPLETED, left)
    site.release(lost.job_id)
    assert api.get(lost.job_id).status == RUNNING
    launch("--host-name", gone)
    done = api.wait_for(lost.job_id, *TERMINAL)
    assert (done.status, done.attempt, site.starts(lost.job_id)) == (COMPLETED, 1, ["1"])


@pytest.mark.parametrize("gone", ["alpha", "beta"])
def test_what_ran_on_a_host_that_is_given_up_is_tried_again_elsewhere(
    hosts: dict[str, ServerThere], site: Site, gone: str
) -> None:
    (left,) = hosts.keys() - {gone}
    placed = submit_on_both(hosts[left].api, site)
    assert "there is no host gamma, only: alpha, beta" in give_up(site, "gamma")
    assert "stop it first" in give_up(site, gone)
    hosts[gone].kill()
    api = hosts[left].api
    wait_until_out_of_reach(api, placed[gone].job_id, gone)
    site.kill_run(placed[gone].job_id)
    assert "are given up" in give_up(site, gone)
    site.release()
    done = api.wait_for(placed[gone].job_id, *TERMINAL)
    assert [attempt.node for attempt in done.attempts] == [gone, left]
    assert [attempt.error.reason for attempt in done.attempts] == ["RUN_LOST", ""]
    assert (done.status, site.starts(done.job_id)) == (COMPLETED, ["1", "2"])
    assert [node.name for node in api.GetQueue().nodes] == [left]


EXAMPLE = Path(__file__).parents[2] / "examples" / "several-servers" / "watch.py"


def test_the_example_goes_on_at_another_server(hosts: dict[str, ServerThere], site: Site, launch: Launch) -> None:
    """It is connected to the first of the addresses, that of the scheduler, which is killed under its watch."""
    first, second = hosts
    addresses = ",".join(hosts[host].api.address.removeprefix("ipv4:") for host in (first, second))
    arguments = (f"ipv4:{addresses}", "--harness", "toy", "--model", "slow", "--tasks", "t")
    with subprocess.Popen((sys.executable, str(EXAMPLE), *arguments), stdout=subprocess.PIPE, text=True) as example:
        assert example.stdout is not None
        job_id = example.stdout.readline().removeprefix("job ").strip()
        site.wait_for_log(job_id)
        seen = [example.stdout.readline()]
        hosts[first].kill()
        if node_of(hosts[second].api.get(job_id)) == first:
            launch("--host-name", first)  # at another address
        site.release()
        seen += example.stdout.readlines()
    assert example.returncode == 0
    assert [line.split()[1] for line in seen] == ["RUNNING", "COMPLETED"]
    assert site.starts(job_id) == ["1"]


def test_the_example_prints_also_what_happens_before_its_watch_begins() -> None:
    def run_at_once() -> None:
        for status in (RUNNING, COMPLETED):
            server.service.change(job_at(status))

    with FakeServer() as server:
        server.service.on_submit = run_at_once
        command = (sys.executable, str(EXAMPLE), server.address, "--model", "m", "--tasks", "t")
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert ran.stdout.splitlines()[1:] == ["2 RUNNING", "3 COMPLETED"]


def test_a_host_whose_server_stops_without_runs_is_gone_at_once(hosts: dict[str, ServerThere]) -> None:
    hosts["beta"].terminate()
    eventually(lambda: [node.name for node in hosts["alpha"].api.GetQueue().nodes] == ["alpha"], "for it to be gone")


def test_a_second_machine_with_the_same_name_is_refused_unless_the_lease_of_the_first_expires(
    site: Site, launch: Launch, serve: Callable[..., ServerHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.set_up(store=shared_cluster().schema_for(site.folder), lease_seconds=5.0, host_name="alpha")
    first = launch()
    assert first.api.run().status == COMPLETED
    second = launch()  # on the same machine, so it is there in case
    monkeypatch.setattr(server_hosts, "machine_id", lambda: "another")
    with pytest.raises(ConfigurationError, match="a server of another machine sees to the runs of alpha: give each"):
        serve()
    assert first.api.run().status == COMPLETED
    second.kill()
    first.kill()
    assert serve().api.run().status == COMPLETED, "as after a restart of the machine"


def test_of_two_machines_with_the_same_name_that_start_at_once_one_gives_up(
    site: Site, serve: Callable[..., ServerHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"store": shared_cluster().schema_for(site.folder), "host_name": "alpha"}
    monkeypatch.setattr(Running, "require_own_name", lambda _: None)
    first = serve(**shared)
    assert first.api.run().status == COMPLETED
    monkeypatch.setattr(server_hosts, "machine_id", lambda: "another")
    second = serve(**shared)
    eventually(lambda: "another machine" in second.server.what_is_broken, "for the second to give up")
    assert first.api.run().status == COMPLETED


@pytest.mark.parametrize("name", ["local", "a/b", "..", "-x"])
def test_a_name_that_no_machine_can_have_is_refused(site: Site, name: str) -> None:
    with pytest.raises(ConfigurationError, match="host_name"):
        site.settings(host_name=name)
