"""What retention removes, and what it never removes."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from store_jobs import ORPHAN
from waiting import DEADLINE_SECONDS as SECONDS

from evalrpc.config import Settings
from evalrpc.errors import StoreUnavailableError
from evalrpc.files.trees import disk_bytes
from evalrpc.jobs import transitions
from evalrpc.server import job_files
from evalrpc.server.job_files import JobFiles
from evalrpc.server.removals import Removals
from evalrpc.server.retention import Retention
from evalrpc.store.base import Deleted, Submission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1 import jobs_pb2 as pb

MIB = 1024 * 1024


class Keeper:
    """A store with jobs and their folders."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = ManualClock(1000.0)
        self.store = SqliteStore(data_dir, self.clock, 1000)
        self.removals = Removals(self.store, data_dir)

    def job(
        self,
        job_id: str,
        end: Callable[[pb.JobInfo], None] | None = None,
        *,
        runs: bool = True,
        output_dir: Path | None = None,
    ) -> str:
        self.submit(job_id, output_dir="mine" if output_dir else "")
        self.begin(job_id, runs=runs, output_dir=output_dir)
        if end is not None:
            self.change(job_id, end)
        return job_id

    def submit(self, job_id: str, cache_key: bytes = b"", output_dir: str = "") -> None:
        request = pb.EvaluateRequest(harness="h", model="m", tasks=["t"], output_dir=output_dir)
        job = pb.JobInfo(job_id=job_id, max_attempts=1, request=request)
        self.store.submit(Submission(job, cache_key=cache_key)).result(SECONDS)

    def begin(self, job_id: str, *, runs: bool = True, output_dir: Path | None = None) -> None:
        inside = self.data_dir / "jobs" / job_id / "attempt-1" / "output"
        for folder in filter(None, (inside, output_dir)):
            folder.mkdir(parents=True)
        if runs:
            there = str(output_dir or inside)
            self.change(job_id, lambda job: transitions.begin_attempt(job, (), there, self.clock.now()))

    def fill(self, job_id: str, size_bytes: int) -> None:
        """Let the run of a job leave a file of this size."""
        (self.data_dir / "jobs" / job_id / "attempt-1" / "output" / "file").write_bytes(bytes(size_bytes))

    def ended(self, job_id: str) -> str:
        return self.job(job_id, lambda job: transitions.complete(job, {}, self.clock.now()))

    def change(self, job_id: str, change: Callable[[pb.JobInfo], None]) -> None:
        self.store.update(job_id, change).result(SECONDS)

    def retention(self, max_age_seconds: float = 0, max_jobs: int = 0, max_bytes: int = 0) -> Retention:
        settings = Settings(
            data_dir=self.data_dir,
            retention_max_age_seconds=max_age_seconds,
            retention_max_jobs=max_jobs,
            retention_max_bytes=max_bytes,
        )
        files = JobFiles(self.store, self.data_dir, lambda: self.removals.stopping)
        return Retention(self.store, self.clock, settings, self.removals, files)

    def left(self) -> tuple[set[str], set[str]]:
        """Return the jobs in the store, and those with a folder."""
        folders = {folder.name for folder in (self.data_dir / "jobs").iterdir()}
        return self.store.known_jobs(sorted(folders | {"queued", "running", "old", "new"})), folders


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path)
    yield keeper
    keeper.store.close()


def test_a_job_that_is_removed_is_deleted_for_its_watchers(keeper: Keeper) -> None:
    keeper.ended("old")
    assert keeper.retention(max_jobs=0, max_age_seconds=10).sweep() == 0
    keeper.clock.seconds += 100
    assert keeper.retention(max_age_seconds=10).sweep() == 1
    events = [event.parse() for event in keeper.store.events_after(0, 10)]
    assert [(event.type, event.revision, event.job.job_id) for event in events] == [
        (pb.JOB_EVENT_TYPE_DELETED, revision, "old") for revision in (1, 2, 3, 4)
    ]


def test_jobs_that_ended_long_ago_go_with_their_files_and_live_ones_never(keeper: Keeper) -> None:
    keeper.job("queued", runs=False)
    keeper.job("running")
    keeper.ended("old")
    keeper.clock.seconds += 100
    keeper.ended("new")
    keeper.clock.seconds += 1
    assert keeper.retention(max_age_seconds=101).sweep() == 0
    keeper.clock.seconds += 1
    assert keeper.retention(max_age_seconds=101).sweep() == 1
    assert keeper.left() == ({"queued", "running", "new"}, {"queued", "running", "new"})
    keeper.clock.seconds += 1_000_000
    assert keeper.retention(max_age_seconds=101).sweep() == 1
    assert keeper.left() == ({"queued", "running"}, {"queued", "running"})


def test_only_the_jobs_that_ended_last_are_kept_and_live_ones_are_not_counted(keeper: Keeper) -> None:
    keeper.job("running")
    for job_id in ("a", "b", "c", "d"):
        keeper.clock.seconds += 1
        keeper.ended(job_id)
    keeper.job("queued", runs=False)
    assert keeper.retention(max_jobs=4).sweep() == 0
    assert keeper.retention(max_jobs=2).sweep() == 2
    assert keeper.left() == ({"queued", "running", "c", "d"}, {"queued", "running", "c", "d"})


def test_without_a_limit_nothing_is_ever_removed(keeper: Keeper) -> None:
    keeper.ended("old")
    keeper.clock.seconds += 1_000_000
    assert keeper.retention().sweep() == 0
    assert keeper.left() == ({"old"}, {"old"})


def test_more_jobs_than_are_looked_at_at_once_are_all_removed(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.server.retention._PAGE", 3)
    for number in range(10):
        keeper.ended(f"job-{number}")
    keeper.clock.seconds += 100
    assert keeper.retention(max_age_seconds=1).sweep() == 10
    assert keeper.left() == (set(), set())


def test_files_are_kept_for_the_jobs_that_share_them_and_removed_with_the_last(keeper: Keeper) -> None:
    keeper.submit("old", b"k")
    keeper.begin("old")
    keeper.submit("follower", b"k")
    keeper.clock.seconds += 100
    keeper.change("old", lambda job: transitions.complete(job, {}, keeper.clock.now()))
    keeper.clock.seconds += 100
    keeper.submit("hit", b"k")
    assert keeper.store.job("hit").status == pb.JOB_STATUS_COMPLETED
    assert keeper.retention(max_age_seconds=50).sweep() == 2
    assert keeper.store.known_jobs(["old", "follower", "hit"]) == {"hit"}
    assert keeper.removals.remove_orphans() == 0
    assert keeper.left()[1] == {"old"}
    keeper.clock.seconds += 51
    assert keeper.retention(max_age_seconds=50).sweep() == 1
    assert keeper.left() == (set(), set())


def test_a_stop_breaks_off_what_is_being_removed(keeper: Keeper) -> None:
    keeper.ended("old")
    (keeper.data_dir / "jobs" / ORPHAN).mkdir()
    keeper.clock.seconds += 100
    keeper.removals.stop()
    assert (keeper.retention(max_age_seconds=1).sweep(), keeper.removals.remove_orphans()) == (0, 0)
    assert keeper.left() == ({"old"}, {"old", ORPHAN})


def test_the_jobs_that_ended_first_go_until_the_files_of_the_others_are_small_enough(keeper: Keeper, tmp_path: Path) -> None:
    keeper.job("running")
    keeper.job("queued", runs=False)
    for job_id in ("a", "b", "c", "d"):
        keeper.clock.seconds += 1
        keeper.ended(job_id)
    for job_id in ("running", "a", "b", "c", "d"):
        keeper.fill(job_id, MIB)
    elsewhere = tmp_path / "root" / "mine" / "e"
    keeper.clock.seconds += 1
    keeper.job("e", lambda job: transitions.complete(job, {}, keeper.clock.now()), output_dir=elsewhere / "attempt-1")
    (elsewhere / "file").write_bytes(bytes(MIB))
    sparse = keeper.data_dir / "jobs" / "d" / "sparse"
    with sparse.open("wb") as file:
        file.truncate(4 * 1024**4)
    assert keeper.retention(max_bytes=6 * MIB).sweep_bytes() == 0
    assert keeper.retention(max_bytes=5 * MIB).sweep_bytes() == 1, "five of them occupy a bit more than 5 MiB"
    assert keeper.left()[1] == {"queued", "running", "b", "c", "d", "e"}
    retention = keeper.retention(max_bytes=3 * MIB)
    assert retention.sweep_bytes() == 2
    assert keeper.left()[1] == {"queued", "running", "d", "e"}
    keeper.clock.seconds += 1
    keeper.ended("f")
    keeper.fill("f", 2 * MIB)
    assert retention.sweep_bytes() == 2, "what finishes later counts too"
    assert keeper.left()[1] == {"queued", "running", "f"}
    assert not elsewhere.exists()
    assert keeper.retention(max_bytes=1).sweep_bytes() == 1
    assert keeper.left()[1] == {"queued", "running"}


def test_shared_files_count_once_and_until_the_last_job_that_shares_them_is_deleted(keeper: Keeper) -> None:
    keeper.submit("old", b"k")
    keeper.begin("old")
    keeper.fill("old", 2 * MIB)
    keeper.change("old", lambda job: transitions.complete(job, {}, keeper.clock.now()))
    keeper.clock.seconds += 1
    keeper.ended("new")
    keeper.clock.seconds += 1
    keeper.submit("hit", b"k")
    assert keeper.retention(max_bytes=3 * MIB).sweep_bytes() == 0
    assert keeper.retention(max_bytes=MIB).sweep_bytes() == 3, "only with the last one is there room again"
    assert keeper.left() == (set(), set())


def test_files_are_measured_once(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    monkeypatch.setattr(job_files, "disk_bytes", lambda folder, **_: measured.append(folder.name) or MIB)
    keeper.ended("a")
    keeper.job("running")
    retention = keeper.retention(max_bytes=10 * MIB)
    for _ in range(3):
        retention.sweep_bytes()
    keeper.ended("b")
    retention.sweep_bytes()
    assert measured == ["a", "b"]


def test_a_job_that_can_not_be_deleted_or_measured_stops_no_other(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for job_id in ("a", "b", "c"):
        keeper.clock.seconds += 1
        keeper.ended(job_id)
    keeper.fill("c", 2 * MIB)
    keeper.clock.seconds += 100
    delete = keeper.store.delete

    def delete_others(job_id: str) -> Future[Deleted]:
        return refused(StoreUnavailableError("garbled")) if job_id == "a" else delete(job_id)

    def measure_others(folder: Path, **options: Any) -> int:
        if folder.name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return disk_bytes(folder, **options)

    monkeypatch.setattr(keeper.store, "delete", delete_others)
    monkeypatch.setattr(job_files, "disk_bytes", measure_others)
    by_bytes, by_age = keeper.retention(max_bytes=MIB), keeper.retention(max_age_seconds=1)
    by_bytes._files.measure()
    assert by_bytes._files.total_bytes > 2 * MIB
    assert [by_age.sweep() for _ in range(3)] == [2, 0, 0]
    assert keeper.left()[1] == {"a"}
    problems = [(record.getMessage(), record.__dict__["job_id"]) for record in caplog.records if record.levelname == "WARNING"]
    assert problems == [
        ("can't measure the files of a finished job: [Errno 5] Input/output error", "b"),
        ("can't delete a job by the retention settings: garbled", "a"),
    ]
    monkeypatch.undo()
    assert by_age.sweep() == 1
    assert keeper.left() == (set(), set())


def refused(error: Exception) -> Future[Deleted]:
    future: Future[Deleted] = Future()
    future.set_exception(error)
    return future


def test_where_nothing_can_be_written_not_every_job_is_tried(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    for number in range(50):
        keeper.ended(f"job-{number}")
    keeper.clock.seconds += 100
    monkeypatch.setattr(keeper.store, "delete", lambda job_id: tried.append(job_id) or refused(StoreUnavailableError("full")))
    with pytest.raises(StoreUnavailableError):
        keeper.retention(max_age_seconds=1).sweep()
    assert len(tried) == 20
