"""Runs that forge their traces, kill their shims and try to escape. Also after a crash of the server, the end of one job never
touches another job's processes, nor any that has nothing to do with it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes_of_tests import is_alive, shims_of_runs
from serving import CANCELLED, COMPLETED, FAILED, RUNNING, TERMINAL, Launch, Site, nothing_left_of
from waiting import eventually

from evalrpc.executors.local import shim
from evalrpc.executors.local.cgroups import find_cgroups
from evalrpc.v1 import jobs_pb2 as pb

REAL = find_cgroups("auto").cgroups
needs_cgroups = pytest.mark.skipif(REAL is None, reason="this account can't make cgroups of version 2")

IMITATES_A_SHIM = """
import sys, time
open("/proc/self/comm", "w").write("evalrpc-run")
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[str]"]:
    """A process that has nothing to do with evalrpc, but has the name of a shim."""
    with subprocess.Popen((sys.executable, "-c", IMITATES_A_SHIM), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def traces_of(site: Site, job: pb.JobInfo) -> Path:
    return site.folder / "data" / "jobs" / job.job_id / "attempt-1" / "run"


@pytest.mark.parametrize("cgroups", ["off", pytest.param("auto", marks=needs_cgroups)])
@pytest.mark.parametrize("is_shim_living", [True, False], ids=["with its shim", "without"])
def test_a_cancel_after_a_crash_ends_the_job_itself_and_nothing_that_its_traces_name(
    launch: Launch, site: Site, stranger: "subprocess.Popen[str]", cgroups: str, *, is_shim_living: bool
) -> None:
    site.set_up(cgroups=cgroups, gpus="3")
    server = launch()
    copies, names, other = (server.api.submit("slow", request={"num_gpus": 1}) for _ in range(3))
    for job in (copies, names, other):
        site.wait_for_log(job.job_id)
    (other_shim,) = shims_of_runs(site.folder / "data", other.job_id)
    server.kill()
    if not is_shim_living:
        for job in (copies, names):
            for pid in shims_of_runs(site.folder / "data", job.job_id):
                os.kill(pid, signal.SIGKILL)
    shutil.copytree(traces_of(site, other), traces_of(site, copies), dirs_exist_ok=True)
    (traces_of(site, names) / "pid").write_text(f"{stranger.pid} {shim.start_time(stranger.pid)}")
    api = launch().api
    for job in (copies, names):
        if is_shim_living:
            api.CancelJob(job_id=job.job_id)
        ended = api.wait_for(job.job_id, *TERMINAL)
        assert ended.status == (CANCELLED if is_shim_living else FAILED)
        assert nothing_left_of(job.job_id)
    assert api.get(other.job_id).status == RUNNING
    assert is_alive(other_shim)
    assert stranger.poll() is None
    site.release()
    assert api.wait_for(other.job_id, *TERMINAL).status == COMPLETED
    assert stranger.poll() is None
    assert api.GetQueue().free_gpu_count == 3


@needs_cgroups
@pytest.mark.parametrize("has_crashed", [False, True])
def test_a_run_that_escapes_by_all_other_means_is_ended_by_its_cgroup(launch: Launch, site: Site, *, has_crashed: bool) -> None:
    site.set_up(cgroups="auto")
    server = launch()
    job = server.api.submit("escapes", request={"num_gpus": 2})
    note = site.toy_dir / "escaped"
    escaped = int(eventually(lambda: note.exists() and note.read_text()))
    if has_crashed:
        server.kill()
        server = launch()
    ended = server.api.wait_for(job.job_id, *TERMINAL)
    assert not is_alive(escaped)
    assert ended.status in (COMPLETED, FAILED)
    eventually(lambda: server.api.GetQueue().free_gpu_count == 2)
    assert REAL is not None
    assert REAL.find(job.job_id, 1) is None
    eventually(lambda: "cgroups: every run has one of its own below" in server.log_path.read_text())


def test_without_cgroups_the_log_says_so(launch: Launch) -> None:
    server = launch()
    eventually(lambda: "cgroups: not used, by the setting cgroups" in server.log_path.read_text())
