"""A server short of file descriptors or disk space: it reports that, waits, and loses no run, GPU or outcome."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RUNNING,
    TERMINAL,
    Launch,
    ServerThere,
    Site,
    detail,
    nothing_left_of,
    reason_of,
)
from small_disk import small_disk
from waiting import eventually

from evalrpc.executors.local.processes import processes_of_job

_FEW = 8  # fewer than any server has open, and as many as it polls at a time, since the kernel checks that too


@contextmanager
def no_descriptors(server: ServerThere) -> Iterator[None]:
    """Keep a server from opening files. Those already open still work."""
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (_FEW, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@contextmanager
def no_threads(server: ServerThere) -> Iterator[None]:
    """Keep a server from starting threads and processes, as `pids.max` of a container does."""
    pid = server.process.pid
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":pids:" in line), "")
    parent = Path("/sys/fs/cgroup/pids" + own.rpartition(":")[2])
    limited = parent / f"evalrpc-test-{pid}"
    try:
        limited.mkdir()
        (limited / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"this account can't limit the number of threads: {error}")
    (limited / "pids.max").write_text("1")
    try:
        yield
    finally:
        with suppress(OSError):  # it has ended
            (parent / "cgroup.procs").write_text(str(pid))
        eventually(lambda: not (limited / "cgroup.procs").read_text())
        limited.rmdir()


def processes_with_openblas_setting(job_id: str) -> list[int]:
    return [pid for pid in processes_of_job(job_id) if b"OPENBLAS_NUM_THREADS" in Path(f"/proc/{pid}/environ").read_bytes()]


def refusal(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        list(call())
    return caught.value


def test_without_descriptors_a_job_waits_in_the_queue_and_can_be_cancelled(launch: Launch, site: Site) -> None:
    server = launch()
    api = server.api
    api.run("good")  # what the server opens only once is open now
    with no_descriptors(server):
        first, second = (api.submit("good", request={"num_gpus": 2}) for _ in range(2))
        eventually(lambda: "can't start the job yet" in server.log_path.read_text())
        assert api.CancelJob(job_id=first.job_id).status == CANCELLED
        assert api.get(second.job_id).status == QUEUED
    assert api.wait_for(second.job_id, *TERMINAL).status == COMPLETED
    assert site.starts(second.job_id) == ["1"]


def test_a_run_outlives_a_server_without_descriptors_and_tells_its_outcome(launch: Launch, site: Site) -> None:
    server = launch()
    job = server.api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(job.job_id)
    with no_descriptors(server):
        site.release()
        eventually(lambda: "can't supervise the run" in server.log_path.read_text())
        assert server.api.get(job.job_id).status == RUNNING
    assert server.api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
    assert server.api.run("good", request={"num_gpus": 2}).status == COMPLETED


@pytest.mark.slow
def test_a_job_ends_though_the_descriptors_never_come_back_and_its_gpus_do_when_they_do(launch: Launch, site: Site) -> None:
    server = launch()
    api = server.api
    job = api.submit("stubborn", request={"num_gpus": 2})
    site.wait_for_log(job.job_id, times=3)
    with no_descriptors(server):
        api.CancelJob(job_id=job.job_id)
        failed = api.wait_for(job.job_id, *TERMINAL)
        assert (failed.status, failed.error.reason) == (FAILED, "PROCESS_UNKILLABLE"), "something of it may be left"
        assert "Too many open files" in failed.error.message
        assert api.GetQueue().free_gpu_count == 0
    eventually(lambda: api.GetQueue().free_gpu_count == 2, "for the GPUs to be free")
    assert nothing_left_of(job.job_id)
    assert api.run("good", request={"num_gpus": 2}).status == COMPLETED


def test_without_descriptors_a_read_is_an_error_that_names_its_cause_and_never_an_empty_answer(launch: Launch) -> None:
    server = launch()
    api = server.api
    job = api.run("good")
    assert api.ListArtifacts(job_id=job.job_id).artifacts
    calls = {
        "log": lambda: api.ReadLog(job_id=job.job_id),
        "output": lambda: api.ListArtifacts(job_id=job.job_id).artifacts,
        "a file": lambda: api.ReadArtifact(job_id=job.job_id, name="toy/20260101_000000_results.json"),
        "samples": lambda: api.ListSamples(job_id=job.job_id).samples,
    }
    with no_descriptors(server):
        for call in calls.values():
            error = refusal(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(error) == "FILE_UNAVAILABLE"
            assert detail(error, error_details_pb2.ErrorInfo).metadata["errno"] == "EMFILE"
            assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0
            assert "Too many open files" in error.details()
            assert str(server.log_path.parent) not in error.details(), "a path of the server's is nobody's business"
    for call in calls.values():
        assert list(call())


def test_without_threads_jobs_wait_in_the_queue_and_every_call_is_answered(launch: Launch, site: Site) -> None:
    server = launch()
    api = server.api
    done, other = api.run("good"), api.run("good")
    with no_threads(server):
        job = api.submit("good", request={"num_gpus": 2})
        eventually(lambda: "can't start a thread for the job yet" in server.log_path.read_text())
        assert api.get(job.job_id).status == QUEUED
        assert list(api.ReadLog(job_id=done.job_id))
        assert api.ListArtifacts(job_id=done.job_id, checksums=True).artifacts[0].sha256
        assert list(api.ReadArtifact(job_id=done.job_id, name="toy/20260101_000000_results.json"))
        assert api.ListSamples(job_id=done.job_id).samples
        assert api.ListJobs().jobs
        assert api.GetQueue().queued_job_ids == [job.job_id]
        with pytest.raises(grpc.RpcError) as error:  # it takes a process
            api.CompareJobs(baseline_job_id=done.job_id, candidate_job_ids=[other.job_id])
        assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.UNAVAILABLE, "FILE_UNAVAILABLE")
    assert api.CompareJobs(baseline_job_id=done.job_id, candidate_job_ids=[other.job_id]).candidates
    assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
    assert site.starts(job.job_id) == ["1"]


def test_without_threads_a_server_stops_and_the_next_one_sees_its_runs_through(launch: Launch, site: Site) -> None:
    server = launch()
    running = server.api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(running.job_id)
    assert not processes_with_openblas_setting(running.job_id), "what the server sets for itself is not passed on"
    with no_threads(server):
        waiting = server.api.submit("good")
        assert server.terminate() == 0
    api = launch().api
    site.release()
    assert api.wait_for(running.job_id, *TERMINAL).status == COMPLETED
    assert api.wait_for(waiting.job_id, *TERMINAL).status == COMPLETED
    assert site.starts(running.job_id) == ["1"]


def test_a_run_that_fills_the_disk_can_be_deleted_which_makes_room_for_others(launch: Launch, site: Site) -> None:
    with small_disk(site.folder / "data", "40m") as disk:
        api = launch().api
        job = api.run("fills", request={"num_gpus": 2})
        assert (job.status, job.error.message) == (COMPLETED, "")
        api.DeleteJob(job_id=job.job_id)
        eventually(lambda: not (disk / "jobs" / job.job_id).exists())
        assert api.run("good", request={"num_gpus": 2}).status == COMPLETED


def test_a_disk_that_is_full_as_a_run_ends_costs_neither_its_outcome_nor_the_next_job(launch: Launch, site: Site) -> None:
    with small_disk(site.folder / "data", "16m") as disk:
        server = launch()
        api = server.api
        job = api.submit("fills", request={"num_gpus": 2})
        eventually(lambda: "can't commit the outcome yet" in server.log_path.read_text())
        assert api.get(job.job_id).status == RUNNING
        (disk / "jobs" / job.job_id / "attempt-1" / "output" / "filling").unlink()
        done = api.wait_for(job.job_id, *TERMINAL)
        assert (done.status, done.error.message) == (COMPLETED, "")
        assert api.run("good", request={"num_gpus": 2}).status == COMPLETED
        server.kill()
