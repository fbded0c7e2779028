"""What an operator says of a cluster, and what its operators do to runs: on a real cluster of one machine."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounts import FIRST_UID, PYTHON, UIDS, needs_accounts
from serving import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PROGRAM,
    QUEUED,
    RUNNING,
    TERMINAL,
    Api,
    ServerHere,
    Site,
    copy_toy,
    nothing_left_of,
)
from slurm_cluster import GPU_COUNT, SlurmCluster, needs_slurm
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.errors import ConfigurationError
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = needs_slurm

TABLES = f"""
[executors.cluster]
kind = "slurm"
max_gpus = {2 * GPU_COUNT}
poll_seconds = 0.5
[executors.tuned]
kind = "slurm"
partition = "urgent"
account = "team"
qos = "best"
constraint = "fast"
time_limit_seconds = 100
[executors.strange]
kind = "slurm"
constraint = "slow"
"""


@pytest.fixture
def site(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site with three executors, which every account can get to."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    site = Site(folder)
    program = str(copy_toy(folder))
    toy = site.config.read_text().replace(json.dumps(sys.executable), json.dumps(PYTHON)).replace(str(PROGRAM), program)
    site.config.write_text(f"{toy}{TABLES}")
    for path in (site.toy_dir, site.toy_dir / "release"):
        path.chmod(0o777)
    slurm_cluster.await_node()
    yield site
    site.release()
    slurm_cluster.end_jobs()
    site.kill_runs()
    shutil.rmtree(folder, ignore_errors=True)


def submit(api: Api, model: str = "good", executor: str = "cluster", num_gpus: int = 0, **fields: object) -> pb.JobInfo:
    return api.submit(model, request={"executor": executor, "num_gpus": num_gpus}, **fields)


def started(api: Api, site: Site, job: pb.JobInfo, times: int = 1) -> None:
    eventually(lambda: len(site.starts(job.job_id)) == times, "for the program to begin")
    assert api.get(job.job_id).status == RUNNING


def slurm(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=os.environ, timeout=SECONDS).stdout.strip()


def job_in_slurm(job: pb.JobInfo, format_: str = "%i", attempt: int = 1) -> str:
    return slurm("squeue", "--noheader", "--states=all", f"--name=evalrpc-{job.job_id}-{attempt}", f"--format={format_}")


def test_partition_account_qos_constraint_and_time_limit_are_those_of_the_table(server: ServerHere, site: Site) -> None:
    job = submit(server.api, "slow", "tuned")
    started(server.api, site, job)
    assert job_in_slurm(job, "%P|%a|%f|%l") == "urgent|team|fast|2:00"
    submitted = site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "run" / "slurm.json"
    assert "--qos=best" in json.loads(submitted.read_text())["options"], "which Slurm itself keeps only with slurmdbd"
    site.release(job.job_id)
    assert server.api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
    refused = server.api.wait_for(submit(server.api, executor="strange").job_id, *TERMINAL)
    assert (refused.status, refused.error.reason) == (FAILED, "START_FAILED")
    assert "Invalid feature specification" in refused.error.message


@needs_accounts
def test_runs_on_a_cluster_have_the_account_of_their_owner(serve: Callable[..., ServerHere], site: Site) -> None:
    server = serve(run_as_uids=UIDS)
    jobs = [submit(server.api, "slow") for _ in range(2)]
    kept, cancelled = jobs
    for job in jobs:
        started(server.api, site, job)
        pid = int((site.toy_dir / "starts" / job.job_id).read_text().split()[0])
        assert Path(f"/proc/{pid}").stat().st_uid == FIRST_UID
    server.api.CancelJob(job_id=cancelled.job_id)
    assert server.api.wait_for(cancelled.job_id, *TERMINAL).status == CANCELLED
    assert nothing_left_of(cancelled.job_id)
    site.release(kept.job_id)
    ended = server.api.wait_for(kept.job_id, *TERMINAL)
    assert ended.status == COMPLETED, ended.error
    output_dir = Path(ended.attempts[0].output_dir)
    assert {path.stat().st_uid for path in (output_dir, *output_dir.rglob("*"))} == {0}, "its results are taken back"


def test_without_the_table_of_an_executor_no_server_starts_while_jobs_run_there(
    serve: Callable[..., ServerHere], site: Site
) -> None:
    server = serve()
    job = submit(server.api, "slow")
    started(server.api, site, job)
    server.stop()
    whole = site.config.read_text()
    site.config.write_text(whole.replace("[executors.cluster]", "[executors.other]"))
    with pytest.raises(ConfigurationError) as caught:
        serve()
    assert str(caught.value) == (
        f"executors.cluster: jobs still run on it, and it is not configured any more: {job.job_id}; put [executors.cluster] "
        f"back until they have ended or are cancelled, with `owners = []` if it is to get no new ones"
    )
    assert processes_of_job(job.job_id), "the run goes on"
    site.config.write_text(whole.replace("[executors.cluster]\n", "[executors.cluster]\nowners = []\n"))
    server = serve()
    site.release(job.job_id)
    ended = server.api.wait_for(job.job_id, *TERMINAL)
    assert (ended.status, ended.attempt) == (COMPLETED, 1)


@pytest.mark.slow
def test_an_end_that_slurm_has_brought_about_has_its_reason(
    server: ServerHere, site: Site, slurm_cluster: SlurmCluster
) -> None:
    """Slurm looks at time limits every 30 s. Memory can't be limited without cgroups: see tests/executors/test_slurm.py."""
    late, displaced = submit(server.api, "slow"), submit(server.api, "slow", num_gpus=GPU_COUNT)
    for job in (late, displaced):
        started(server.api, site, job)
    slurm("scontrol", "update", f"JobId={job_in_slurm(late)}", "EndTime=now+1")
    urgent = slurm(
        "sbatch", "--parsable", "--partition=urgent", f"--gpus={GPU_COUNT}", f"--output={os.devnull}", "--wrap=sleep 300"
    )
    eventually(lambda: server.api.get(displaced.job_id).attempt == 2, "for another attempt of what was preempted")
    assert server.api.get(displaced.job_id).attempts[0].error.reason == "PREEMPTED"
    slurm("scancel", urgent)
    started(server.api, site, displaced, times=2)
    ended = server.api.wait_for(late.job_id, *TERMINAL)
    assert (ended.status, ended.error.reason) == (FAILED, "TIMED_OUT")
    assert "time_limit_seconds" in ended.error.message
    slurm("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    try:
        ended = server.api.wait_for(displaced.job_id, *TERMINAL, QUEUED)
        assert (ended.attempts[1].error.reason, ended.attempts[1].error.message) == (
            "RUN_LOST",
            "the node of the run has failed",
        )
    finally:
        slurm_cluster.await_node()
    for job in (late, displaced):
        assert nothing_left_of(job.job_id)
