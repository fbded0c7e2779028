"""What retention removes, and what it never removes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clocks import ManualClock
from waiting import DEADLINE_SECONDS as SECONDS

from evalrpc.jobs import transitions
from evalrpc.server.retention import Retention
from evalrpc.store.base import Submission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1 import jobs_pb2 as pb


class Keeper:
    """A store with jobs and their folders."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = ManualClock(1000.0)
        self.store = SqliteStore(data_dir, self.clock, 1000)

    def job(self, job_id: str, end: Callable[[pb.JobInfo], None] | None = None, *, runs: bool = True) -> str:
        self.submit(job_id)
        self.begin(job_id, runs=runs)
        if end is not None:
            self.change(job_id, end)
        return job_id

    def submit(self, job_id: str, cache_key: bytes = b"") -> None:
        job = pb.JobInfo(job_id=job_id, max_attempts=1, request=pb.EvaluateRequest(harness="h", model="m", tasks=["t"]))
        self.store.submit(Submission(job, cache_key=cache_key)).result(SECONDS)

    def begin(self, job_id: str, *, runs: bool = True) -> None:
        output_dir = self.data_dir / "jobs" / job_id / "attempt-1" / "output"
        output_dir.mkdir(parents=True)
        if runs:
            self.change(job_id, lambda job: transitions.begin_attempt(job, (), str(output_dir), self.clock.now()))

    def ended(self, job_id: str) -> str:
        return self.job(job_id, lambda job: transitions.complete(job, {}, self.clock.now()))

    def change(self, job_id: str, change: Callable[[pb.JobInfo], None]) -> None:
        self.store.update(job_id, change).result(SECONDS)

    def retention(self, max_age_seconds: float = 0, max_jobs: int = 0) -> Retention:
        return Retention(self.store, self.clock, self.data_dir, max_age_seconds, max_jobs)

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
    assert keeper.retention().remove_orphans() == 0
    assert keeper.left()[1] == {"old"}
    keeper.clock.seconds += 51
    assert keeper.retention(max_age_seconds=50).sweep() == 1
    assert keeper.left() == (set(), set())


def test_only_folders_that_belong_to_no_job_are_orphans(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.server.retention._PAGE", 3)
    assert keeper.retention().remove_orphans() == 0
    keeper.job("queued", runs=False)
    keeper.job("running")
    keeper.ended("old")
    for number in range(10):
        (keeper.data_dir / "jobs" / f"orphan-{number}" / "attempt-1").mkdir(parents=True)
    assert keeper.retention().remove_orphans() == 10
    assert keeper.left()[1] == {"queued", "running", "old"}


def test_a_stop_breaks_off_what_is_being_removed(keeper: Keeper) -> None:
    keeper.ended("old")
    (keeper.data_dir / "jobs" / "orphan").mkdir()
    keeper.clock.seconds += 100
    retention = keeper.retention(max_age_seconds=1)
    retention.stop()
    assert (retention.sweep(), retention.remove_orphans()) == (0, 0)
    assert keeper.left() == ({"old"}, {"old", "orphan"})
