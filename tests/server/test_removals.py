"""The files of deleted jobs are removed, sooner or later, and what can't be removed is said."""

import logging
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from store_jobs import CLOCK, SECONDS, complete, submit

from evalrpc.errors import StoreUnavailableError
from evalrpc.files.trees import Remains, remove_tree
from evalrpc.jobs import transitions
from evalrpc.jobs.ids import job_ids
from evalrpc.server import removals
from evalrpc.server.removals import Removals
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.v1 import jobs_pb2 as pb


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(data_dir, CLOCK, 1000)
    yield store
    store.close()


def ended_job(store: SqliteStore, data_dir: Path, output_root: Path | None = None) -> str:
    """Let a job end that has left files. Return its id."""
    job = submit(store, request={"output_dir": "mine" if output_root else ""})
    folder = data_dir / "jobs" / job.job_id / "attempt-1"
    output_dir = output_root / "mine" / job.job_id / "attempt-1" if output_root else folder / "output"

    def begin(job: pb.JobInfo) -> None:
        transitions.begin_attempt(job, (), str(output_dir), CLOCK.now())

    for path in {folder, output_dir}:
        path.mkdir(parents=True, exist_ok=True)
        (path / "file").touch()
    store.update(job.job_id, begin).result(SECONDS)
    store.update(job.job_id, complete).result(SECONDS)
    return job.job_id


class StuckFolders:
    """Folders that can't be removed for now. `tried` has all that anybody tried to remove."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.tried: list[Path] = []

    def remove_tree(self, path: Path, should_stop: Callable[[], bool]) -> Remains | None:
        self.tried.append(path)
        return Remains(2, "file: Operation not permitted") if path.name in self.names else remove_tree(path, should_stop)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> StuckFolders:
    stuck = StuckFolders()
    monkeypatch.setattr(removals, "remove_tree", stuck.remove_tree)
    return stuck


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.getMessage(), record.__dict__["job_id"]) for record in caplog.records]


def test_all_that_a_job_has_left_is_removed_and_nothing_else(store: SqliteStore, data_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    kept, gone = (ended_job(store, data_dir, root) for _ in range(2))
    (root / "mine" / "theirs").touch()
    store.delete(gone).result(SECONDS)
    assert [removal.job_id for removal in store.pending_removals()] == [gone]
    Removals(store, data_dir).remove(gone)
    assert [path.name for path in (data_dir / "jobs").iterdir()] == [kept]
    assert {path.name for path in (root / "mine").iterdir()} == {kept, "theirs"}
    assert store.pending_removals() == []


def test_what_can_not_be_removed_is_said_once_and_tried_again_until_it_is_gone(
    store: SqliteStore, data_dir: Path, stuck: StuckFolders, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job_id = ended_job(store, data_dir)
    stuck.names = {job_id}
    store.delete(job_id).result(SECONDS)
    removing = Removals(store, data_dir)
    removing.remove(job_id)
    removing.retry()
    removing.retry()
    folder = data_dir / "jobs" / job_id
    problem = f"2 files or folders in {folder}, the first one: file: Operation not permitted"
    assert lines(caplog) == [(f"can't remove all files of a deleted job: {problem}", job_id)]
    assert len(stuck.tried) == 3
    stuck.names = set()
    removing.retry()
    removing.retry()
    assert lines(caplog)[1:] == [("can now remove all files of a deleted job", job_id)]
    assert not folder.exists()
    assert len(stuck.tried) == 4


def test_after_a_restart_what_is_left_is_found_again_wherever_it_lies(
    store: SqliteStore, data_dir: Path, tmp_path: Path, stuck: StuckFolders
) -> None:
    inside, outside, kept = (
        ended_job(store, data_dir),
        ended_job(store, data_dir, tmp_path / "root"),
        ended_job(store, data_dir),
    )
    for job_id in (inside, outside):
        store.delete(job_id).result(SECONDS)
    stuck.names = {inside, outside}
    Removals(store, data_dir).remove(outside)
    stuck.names = set()
    after = Removals(store, data_dir)
    assert after.remove_orphans() == 2
    after.retry()
    assert [path.name for path in (data_dir / "jobs").iterdir()] == [kept]
    assert list((tmp_path / "root" / "mine").iterdir()) == []
    assert store.pending_removals() == []


def test_while_the_store_fails_a_removal_is_put_off_and_not_forgotten(
    store: SqliteStore, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = ended_job(store, data_dir, tmp_path / "root")
    store.delete(job_id).result(SECONDS)
    removing = Removals(store, data_dir)
    for name in ("pending_removals", "forget_removal"):
        with monkeypatch.context() as patched:
            patched.setattr(store, name, lambda *_: raise_unavailable())
            removing.remove(job_id)
    assert [removal.job_id for removal in store.pending_removals()] == [job_id]
    removing.retry()
    assert store.pending_removals() == []
    assert list((data_dir / "jobs").iterdir()) == []


def raise_unavailable() -> None:
    raise StoreUnavailableError("the disk is full")


def test_only_folders_that_belong_to_no_job_are_orphans(
    store: SqliteStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "_PAGE", 3)
    removing = Removals(store, data_dir)
    assert removing.remove_orphans() == 0
    kept = [ended_job(store, data_dir) for _ in range(5)]
    orphans = islice(job_ids(), 11)
    (data_dir / "jobs" / next(orphans)).symlink_to(data_dir)
    for orphan in orphans:
        (data_dir / "jobs" / orphan / "attempt-1").mkdir(parents=True)
    of_no_job = ("lost+found", os.fsdecode(b"\xff\xfe"))
    for name in of_no_job:
        (data_dir / "jobs" / name).mkdir()
    assert removing.remove_orphans() == 11
    assert {path.name for path in (data_dir / "jobs").iterdir()} == {*kept, *of_no_job}


def test_an_orphan_that_can_not_be_removed_stops_no_other(store: SqliteStore, data_dir: Path, stuck: StuckFolders) -> None:
    orphans = list(islice(job_ids(), 4))
    for orphan in orphans:
        (data_dir / "jobs" / orphan).mkdir(parents=True)
    stuck.names = set(orphans[::2])
    removing = Removals(store, data_dir)
    assert removing.remove_orphans() == 2
    assert {path.name for path in (data_dir / "jobs").iterdir()} == stuck.names
    stuck.names = set()
    removing.retry()
    assert list((data_dir / "jobs").iterdir()) == []
