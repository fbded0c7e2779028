"""Jobs whose runs are handed over to a real Slurm cluster."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgres_cluster import shared_cluster
from serving import CANCELLED, COMPLETED, FAILED, RUNNING, TERMINAL, Api, Launch, ServerHere, Site, nothing_left_of
from slurm_cluster import GPU_COUNT, SlurmCluster, needs_slurm
from waiting import eventually

from evalrpc.cli.doctor import check_executors
from evalrpc.config import ExecutorSettings
from evalrpc.executors.slurm import cluster
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = [pytest.mark.slow, needs_slurm]

CLUSTER = ExecutorSettings("cluster", "slurm", poll_seconds=0.5)
COMMAND_SECONDS = 3
PENDING = pb.Progress.PHASE_PENDING


@pytest.fixture
def site(site: Site, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site with the executor `cluster`, which may use more GPUs than there are, so that runs wait in Slurm."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    site.config.write_text(
        f"{site.config.read_text()}\n[executors.cluster]\nkind = 'slurm'\nmax_gpus = {2 * GPU_COUNT}\npoll_seconds = 0.5\n"
        f"command_seconds = {COMMAND_SECONDS}\nowners = ['*']\n"
    )
    slurm_cluster.await_node()
    slurm_cluster.skip_used_numbers()
    yield site
    site.release()
    slurm_cluster.end_jobs()


@pytest.fixture
def operated_cluster(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster of which a test takes parts down. Servers soon try again to reach it."""
    monkeypatch.setattr(cluster, "_RETRY_SECONDS", 0.5)
    with slurm_cluster.operated():
        yield slurm_cluster


def submit(api: Api, model: str = "good", num_gpus: int = 0, **fields: object) -> pb.JobInfo:
    return api.submit(model, request={"executor": "cluster", "num_gpus": num_gpus}, **fields)


def finished(api: Api, job: pb.JobInfo) -> pb.JobInfo:
    return api.wait_for(job.job_id, *TERMINAL)


def started(api: Api, site: Site, job: pb.JobInfo) -> None:
    site.wait_for_log(job.job_id)
    assert api.get(job.job_id).status == RUNNING


def stepd_of(site: Site, job: pb.JobInfo) -> int:
    """Return the process id of the slurmstepd of a run."""
    shim = int((site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "run" / "pid").read_text().split()[0])
    return int(Path(f"/proc/{shim}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_job_runs_on_the_cluster_with_the_gpus_that_slurm_gives_it(server: ServerHere, site: Site) -> None:
    job = finished(server.api, submit(server.api, "environment", num_gpus=2))
    assert job.status == COMPLETED, job.error
    assert (job.attempts[0].node, list(job.attempts[0].gpus)) == ("cluster", ["cluster/0", "cluster/1"])
    assert [metric.value for metric in job.results["toy"].metrics] == [0.5]
    environment = json.loads((site.toy_dir / "environment").read_text())
    assert len(environment["CUDA_VISIBLE_DEVICES"].split(",")) == 2
    assert not [name for name in environment if name.startswith("SLURM_")], "a harness would take itself for one rank of many"
    local = server.api.run()
    assert local.attempts[0].node == "local"


def test_a_program_that_fails_says_how_and_one_that_is_not_there_can_not_be_started(server: ServerHere, site: Site) -> None:
    site.toy_dir.joinpath("release").mkdir(exist_ok=True)
    job = finished(server.api, submit(server.api, "no_such_model"))
    assert (job.status, job.error.exit_code) == (FAILED, 1)


def test_what_waits_in_slurm_says_why_and_its_time_does_not_count(server: ServerHere, site: Site) -> None:
    first = submit(server.api, "slow", num_gpus=GPU_COUNT)
    started(server.api, site, first)
    second = submit(server.api, "good", num_gpus=GPU_COUNT)

    def pending() -> pb.JobInfo | None:
        job = server.api.get(second.job_id)
        return job if job.progress.phase == PENDING and "Resources" in job.wait_reason else None

    waiting = eventually(pending, "for Slurm to say why the second waits")
    assert waiting is not None
    assert waiting.status == RUNNING
    assert waiting.wait_reason == "cluster: waits in Slurm: nodes are busy (Resources)"
    site.release(first.job_id)
    assert finished(server.api, second).status == COMPLETED
    assert not server.api.get(second.job_id).wait_reason


def test_runs_go_on_in_the_same_attempt_under_the_next_scheduler(
    site: Site, launch: Launch, slurm_cluster: SlurmCluster
) -> None:
    """It also cancels in Slurm what the one before has not, of a run that had ended."""
    site.set_up(store=shared_cluster().schema_for(site.folder), lease_seconds=2.0)
    first = launch("--host-name", "alpha")
    assert first.api.run().attempts[0].node == "alpha"  # so it is the scheduler
    second = launch("--host-name", "beta")
    left = f"evalrpc-{finished(second.api, submit(second.api)).job_id}-1"
    batch = ("sbatch", f"--job-name={left}", f"--output={os.devnull}", "--wrap=sleep 1000")
    subprocess.run(batch, check=True, env=slurm_cluster.environment)
    slow = submit(second.api, "slow", num_gpus=GPU_COUNT)
    started(second.api, site, slow)
    waiting = submit(second.api, "good", num_gpus=GPU_COUNT)
    second.api.wait_for(waiting.job_id, RUNNING)
    first.kill()
    eventually(lambda: second.api.run().attempts[0].node == "beta", "for the other server to place jobs")
    site.release()
    for job in (slow, waiting):
        done = finished(second.api, job)
        assert (done.status, [attempt.node for attempt in done.attempts]) == (COMPLETED, ["cluster"]), done
        assert site.starts(job.job_id) == ["1"]
    eventually(lambda: not any(left in job for job in slurm_cluster.jobs()), "for what was left to be cancelled")


def test_a_cancel_leaves_nothing_of_a_run_nor_of_one_that_waits(server: ServerHere, site: Site) -> None:
    running = submit(server.api, "slow", num_gpus=GPU_COUNT)
    started(server.api, site, running)
    waiting = submit(server.api, "slow", num_gpus=GPU_COUNT)
    eventually(lambda: server.api.get(waiting.job_id).progress.phase == PENDING, "for the second to wait in Slurm")
    for job in (waiting, running):
        server.api.CancelJob(job_id=job.job_id)
        assert finished(server.api, job).status == CANCELLED
        assert nothing_left_of(job.job_id)
    assert not site.starts(waiting.job_id)


def test_the_next_server_goes_on_with_the_same_attempt(serve: Callable[..., ServerHere], site: Site) -> None:
    server = serve()
    job = submit(server.api, "slow")
    started(server.api, site, job)
    server.stop()
    server = serve()
    site.release(job.job_id)
    ended = finished(server.api, job)
    assert (ended.status, ended.attempt, site.starts(job.job_id)) == (COMPLETED, 1, ["1"])


def test_while_slurm_does_not_answer_runs_end_and_new_ones_wait_for_it(
    operated_cluster: SlurmCluster, server: ServerHere, site: Site
) -> None:
    running, cancelled = submit(server.api, "slow"), submit(server.api, "slow")
    for job in (running, cancelled):
        started(server.api, site, job)
    operated_cluster.kill("slurmctld")
    try:
        site.release(running.job_id)
        assert finished(server.api, running).status == COMPLETED
        server.api.CancelJob(job_id=cancelled.job_id)
        assert finished(server.api, cancelled).status == CANCELLED
        assert nothing_left_of(cancelled.job_id)
        unwanted, waiting = submit(server.api), submit(server.api, max_attempts=3)
        eventually(lambda: "takes no runs" in server.api.get(unwanted.job_id).wait_reason, "for it to be said")
        server.api.CancelJob(job_id=unwanted.job_id)
        assert finished(server.api, unwanted).status == CANCELLED
    finally:
        operated_cluster.restart("slurmctld")
    # What it had not saved when it was killed is lost: then the number of a job is given away twice, and its node is drained.
    assert finished(server.api, waiting).status == COMPLETED
    assert len(set(site.starts(waiting.job_id))) == len(site.starts(waiting.job_id)), "no attempt starts twice"
    assert not site.starts(unwanted.job_id)


def test_a_run_that_somebody_kills_in_slurm_is_lost_and_tried_again(
    operated_cluster: SlurmCluster, server: ServerHere, site: Site
) -> None:
    job = submit(server.api, "slow", max_attempts=2)
    started(server.api, site, job)
    subprocess.run(
        ["scancel", "--full", "--signal=KILL", f"--name=evalrpc-{job.job_id}-1"], check=True, env=operated_cluster.environment
    )
    eventually(lambda: server.api.get(job.job_id).attempt == 2, "for the second attempt")
    site.release(job.job_id)
    assert finished(server.api, job).status == COMPLETED


def test_a_run_whose_slurmstepd_is_killed_is_lost_and_nothing_of_it_is_left_here_or_in_slurm(
    operated_cluster: SlurmCluster, server: ServerHere, site: Site
) -> None:
    job = submit(server.api, "slow")
    started(server.api, site, job)
    os.kill(stepd_of(site, job), signal.SIGKILL)
    ended = finished(server.api, job)
    assert (ended.status, ended.error.reason) == (FAILED, "RUN_LOST")
    assert nothing_left_of(job.job_id)
    eventually(lambda: not operated_cluster.jobs(), "for Slurm to let its job go")


def test_runs_go_on_without_slurmd(operated_cluster: SlurmCluster, server: ServerHere, site: Site) -> None:
    job = submit(server.api, "slow")
    started(server.api, site, job)
    operated_cluster.kill("slurmd")
    try:
        site.release(job.job_id)
        assert finished(server.api, job).status == COMPLETED
    finally:
        operated_cluster.restart("slurmd")
    assert finished(server.api, submit(server.api, max_attempts=3)).status == COMPLETED


def test_doctor_has_the_cluster_run_something_or_says_why_it_does_not(site: Site, slurm_cluster: SlurmCluster) -> None:
    settings = site.settings()
    settings.data_dir.mkdir()
    (good,) = check_executors(settings, slurm_cluster.environment)
    assert (good.subject, good.good) == ("executor cluster", True), good.detail
    assert good.detail.startswith("a trial run took ")
    (bad,) = check_executors(replace(settings, executors={"cluster": replace(CLUSTER, partition="moon")}), os.environ)
    assert not bad.good
    assert "Slurm refuses the run: sbatch: error: " in bad.detail
    assert not list(settings.data_dir.iterdir())
