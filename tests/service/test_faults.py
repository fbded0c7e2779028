"""A server whose database can't be written or read for a while: it reports that, loses nothing, and recovers.

The faults are real: `faulty_disk.c` is preloaded into the server and makes its system calls fail.
"""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import COMPLETED, QUEUED, RUNNING, STATUS, TERMINAL, Api, Launch, Site, detail, reason_of, submission
from waiting import eventually

from evalrpc.store.sqlite.store import DATABASE_NAME
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import GetJobRequest

SOURCE = Path(__file__).parent.parent / "data" / "faulty_disk.c"
WRITE_ONCE = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('CREATE TABLE t (x)')"


class FaultyDisk:
    """The disk under the databases of the servers that a test starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def failing(self, call: str, number: int) -> Iterator[None]:
        """Make a system call fail with this errno: `pwrite`, `pread` or `fdatasync`. With 0 it never returns."""
        self.folder.joinpath("next").write_text(str(number))
        self.folder.joinpath("next").rename(self.folder / call)
        try:
            yield
        finally:
            self.folder.joinpath(call).unlink()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library, and check that this Python's sqlite3 goes through it."""
    folder = tmp_path_factory.mktemp("faulty")
    path = folder / "faulty_disk.so"
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to make the disk fail with")
    subprocess.run((compiler, "-shared", "-fPIC", "-o", path, SOURCE, "-ldl"), check=True)
    (folder / "pwrite").write_text(str(errno.EIO))
    environment = os.environ | {"LD_PRELOAD": str(path), "FAULTY_DISK": str(folder)}
    tried = subprocess.run((sys.executable, "-c", WRITE_ONCE, folder / DATABASE_NAME), env=environment, capture_output=True)
    if b"disk I/O error" not in tried.stderr:
        pytest.skip("this Python's sqlite3 does not reach the disk through the C library")
    return path


@pytest.fixture
def disk(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAULTY_DISK", str(folder))
    return FaultyDisk(folder)


def refusal(call: Callable[[], Any]) -> str:
    """Make a call that the store refuses; check its code, reason and retry delay, and return the message."""
    with pytest.raises(grpc.RpcError) as caught:
        list(answer) if hasattr(answer := call(), "__next__") else answer
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value.details()
    assert reason_of(caught.value) == "STORE_UNAVAILABLE"
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    return caught.value.details() or ""


def until_accepted(api: Api, **fields: Any) -> pb.JobInfo:
    """Submit like a client that was asked to retry."""

    refusals: list[grpc.StatusCode] = []

    def accepted() -> pb.JobInfo | None:
        try:
            return api.SubmitJob(submission("good", **fields))
        except grpc.RpcError as error:
            refusals.append(error.code())
            return None

    job = eventually(accepted, "for the server to take jobs again")
    assert job is not None
    assert set(refusals) <= {grpc.StatusCode.UNAVAILABLE}
    return job


def all_revisions(api: Api) -> list[int]:
    stream = api.WatchJobs(after_revision=1)
    events = []
    for event in stream:
        if not event.HasField("job"):
            break
        events.append(event)
    stream.cancel()
    return [event.revision for event in events if event.type == STATUS]


@pytest.mark.parametrize(
    ("call", "number", "said"),
    [
        ("pwrite", errno.EIO, "disk I/O error"),
        pytest.param("pwrite", errno.ENOSPC, "database or disk is full", marks=pytest.mark.slow),
        ("fdatasync", errno.EIO, "disk I/O error"),
    ],
)
def test_while_nothing_can_be_written_calls_say_so_and_nothing_is_lost(
    launch: Launch, site: Site, disk: FaultyDisk, call: str, number: int, said: str
) -> None:
    server = launch()
    api = server.api
    running = api.submit("slow", request={"num_gpus": 2})
    site.wait_for_log(running.job_id)
    queued = [api.submit("good", request={"num_gpus": 1}) for _ in range(5)]
    with disk.failing(call, number):
        for attempt in (lambda: api.submit(request_id="r"), lambda: api.CancelJob(job_id=queued[0].job_id)):
            message = refusal(attempt)
            assert "store" in message
            assert said in message
        assert api.get(queued[0].job_id).status == QUEUED, "what can be read is answered"
        assert [job.job_id for job in api.ListJobs().jobs[:5]] == [job.job_id for job in reversed(queued)]
        site.release()  # the run ends meanwhile
        eventually(lambda: "can't commit the outcome yet" in server.log_path.read_text())
    accepted = until_accepted(api, request_id="r")
    assert api.submit(request_id="r").job_id == accepted.job_id
    assert api.wait_for(running.job_id, *TERMINAL).status == COMPLETED
    server.kill()
    api = launch().api
    for job in (*queued, accepted):
        assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
        assert site.starts(job.job_id) == ["1"]
    assert api.ListJobs().jobs[0].job_id == accepted.job_id
    assert len(api.ListJobs().jobs) == 7
    assert all_revisions(api) == list(range(2, api.head() + 1))


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_server_killed_while_its_disk_fails_has_all_that_it_acknowledged(
    launch: Launch, site: Site, disk: FaultyDisk, call: str
) -> None:
    server = launch()
    job = server.api.submit("slow")
    site.wait_for_log(job.job_id)
    with disk.failing(call, errno.EIO):
        refusal(lambda: server.api.submit(request_id="r"))
        server.kill()
    api = launch().api
    site.release()
    assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
    again = api.submit(request_id="r")
    assert [found.job_id for found in api.ListJobs().jobs] == [again.job_id, job.job_id], "refused or not, it is there once"
    api.wait_for(again.job_id, *TERMINAL)
    assert all_revisions(api) == list(range(2, api.head() + 1))


def test_while_nothing_can_be_read_calls_say_so_and_later_answer_as_before(
    launch: Launch, site: Site, disk: FaultyDisk
) -> None:
    server = launch()
    job = server.api.run("good")
    listed = server.api.ListJobs()
    server.kill()
    api = launch().api  # with empty caches
    with disk.failing("pread", errno.EIO):
        for call in (
            lambda: api.get(job.job_id),
            lambda: api.ListJobs(),
            lambda: api.watch(job.job_id),
            lambda: api.WatchJobs(),
            lambda: api.ReadLog(job_id=job.job_id),
        ):
            assert "can't be read" in refusal(call)
    assert api.get(job.job_id).status == COMPLETED
    assert api.ListJobs() == listed
    assert api.run("good").status == COMPLETED


def test_a_server_that_can_not_read_its_database_says_why_it_does_not_start(launch: Launch, disk: FaultyDisk) -> None:
    launch().kill()
    with disk.failing("pread", errno.EIO), pytest.raises(AssertionError, match=r"setting data_dir .* disk I/O error"):
        launch()
    assert launch().api.run("good").status == COMPLETED


@pytest.mark.slow
def test_a_thread_that_hangs_on_a_disk_does_not_hold_up_a_stop(launch: Launch, site: Site, disk: FaultyDisk) -> None:
    site.set_up(stop_seconds=0.2)
    first = launch()
    job = first.api.run("good")
    first.kill()
    server = launch()  # with empty caches
    with disk.failing("pread", 0):
        call = server.api.stub.GetJob.future(GetJobRequest(job_id=job.job_id))
        eventually((disk.folder / "hanging").exists, "for the disk to hang")
        assert server.terminate() == 1
    assert "ending by force" in server.log_path.read_text()
    call.cancel()
    assert launch().api.get(job.job_id).status == COMPLETED


@pytest.mark.slow
def test_while_another_process_locks_the_database_calls_say_so_and_nothing_is_lost(launch: Launch, site: Site) -> None:
    server = launch()
    api = server.api
    running = api.submit("slow")
    site.wait_for_log(running.job_id)
    connection = sqlite3.connect(site.folder / "data" / DATABASE_NAME, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert "locked" in refusal(lambda: api.submit(request_id="r"))
    assert api.get(running.job_id).status == RUNNING, "what can be read is answered"
    connection.close()
    accepted = until_accepted(api, request_id="r")
    site.release()
    for job in (running, accepted):
        assert api.wait_for(job.job_id, *TERMINAL).status == COMPLETED
    assert all_revisions(api) == list(range(2, api.head() + 1))


# A database damaged while the server runs. The loss is final: it must be reported, and not be made worse.


def broken(how: str, path: Path) -> None:
    if how == "emptied":
        os.truncate(path, 0)
    elif how == "cut":
        os.truncate(path, 4096)
    else:
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("how", ["cut", *(pytest.param(how, marks=pytest.mark.slow) for how in ("emptied", "overwritten"))])
def test_a_database_that_breaks_under_a_server_is_reported_and_comes_back_with_its_backup(
    launch: Launch, site: Site, how: str
) -> None:
    server = launch()
    done = server.api.run("good")
    assert server.terminate() == 0
    path = site.folder / "data" / DATABASE_NAME
    backup = path.read_bytes()
    server = launch()
    broken(how, path)
    for call in (server.api.ListJobs, lambda: server.api.get(done.job_id), server.api.submit):
        assert refusal(call)
    server.kill()
    with pytest.raises(AssertionError, match="setting data_dir "):
        launch()
    path.write_bytes(backup)
    for rest in ("-wal", "-shm"):
        path.with_name(DATABASE_NAME + rest).unlink(missing_ok=True)
    api = launch().api
    assert api.get(done.job_id).status == COMPLETED
    assert api.ListArtifacts(job_id=done.job_id).artifacts, "its files are still there"
    assert api.run("good").status == COMPLETED
