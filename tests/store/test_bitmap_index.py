"""What is found with sets of jobs in memory is right, though nobody keeps them up to date; and they stay few."""

import random
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from example_count import example_count
from hypothesis import given, settings
from hypothesis import strategies as st
from store_jobs import OPENERS, SECONDS, begin, complete, finish, run, submit
from test_listing import SetBackClock, one_job
from test_listing import filters as job_filters

from evalrpc.jobs.filters import JobMatcher
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.store.base import Store
from evalrpc.store.room import Room
from evalrpc.store.sqlite import bitmap_index, filters
from evalrpc.store.sqlite.bitmap_index import BitmapIndex, Condition
from evalrpc.store.sqlite.filters import find_jobs
from evalrpc.store.sqlite.store import DATABASE_NAME
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter

BLOCK = 4


@pytest.fixture(params=["shared", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The stores that have such sets."""
    with closing(OPENERS[request.param](tmp_path / "data", 1000)) as store:
        yield store


@pytest.fixture(scope="module", autouse=True)
def nothing_but_bitmaps() -> Iterator[None]:
    """Let the walk end at its first step, and let a set be of few jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_MAX_STEPS", 1)
        patch.setattr(bitmap_index, "_BLOCK", BLOCK)
        yield


class Reader:
    """A reader of a store's database, with sets of its own, that counts how many it reads."""

    def __init__(self, data_dir: Path, kept: BitmapIndex | None = None) -> None:
        self.kept = kept or BitmapIndex(1_000_000)
        self.connection = sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)
        self.sets_read = 0
        self.connection.set_trace_callback(self._count)

    def _count(self, statement: str) -> None:
        self.sets_read += "group_concat" in statement

    def find(self, **conditions: object) -> list[int]:
        return [
            sequence for sequence, _ in find_jobs(self.connection, self.kept, JobFilter(**conditions), None, Room(1000, 2**20))
        ]

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def reader(store: Store, tmp_path: Path) -> Iterator[Reader]:
    with closing(Reader(tmp_path / "data")) as reader:
        yield reader


def never_meet(store: Store, count: int = 4 * BLOCK) -> list[pb.JobInfo]:
    """Add jobs of two models in turn, one of them with a label."""
    kinds = ({"model": "a"}, {"labels": {"l": "v"}, "model": "b"})
    return [
        submit(store, request={"model": kind["model"]}, labels=kind.get("labels", {}))
        for _ in range(count // 2)
        for kind in kinds
    ]


class Reference:
    """The jobs of a store, as its answers to writes give them, newest first; and a change of it at random."""

    def __init__(self, store: Store, dice: random.Random) -> None:
        self._store, self._dice = store, dice
        self.jobs: dict[str, pb.JobInfo] = {}

    def change(self) -> None:
        ended = [job_id for job_id, job in self.jobs.items() if job.status in TERMINAL]
        live = [job for job in self.jobs.values() if job.status not in TERMINAL]
        kind = self._dice.random()
        if ended and kind < 0.2:
            job_id = self._dice.choice(ended)
            self._store.delete(job_id).result(SECONDS)
            del self.jobs[job_id]
        elif live and kind < 0.5:
            job = self._dice.choice(live)
            step = begin if job.status == pb.JOB_STATUS_QUEUED else complete
            self.jobs[job.job_id] = self._store.update(job.job_id, step).result(SECONDS)
        else:
            job = one_job(self._store, self._dice)
            self.jobs = {job.job_id: job} | self.jobs

    def page(self, job_filter: JobFilter, older: list[str], size: int) -> list[pb.JobInfo]:
        return [job for job in self.jobs.values() if job.job_id in older and JobMatcher(job_filter).matches(job)][:size]


@settings(max_examples=example_count(40), deadline=None)
@given(seed=st.integers(0, 2**32), chosen=st.lists(job_filters, min_size=1, max_size=3), page_size=st.integers(1, 5))
def test_each_page_is_right_while_jobs_come_change_and_go(seed: int, chosen: list[JobFilter], page_size: int) -> None:
    dice = random.Random(seed)
    with (
        TemporaryDirectory() as folder,
        closing(OPENERS["sqlite"](Path(folder), 1000, SetBackClock(random.Random(seed)))) as store,
    ):
        reference = Reference(store, dice)
        for _ in range(8 * BLOCK):
            reference.change()
        for job_filter in chosen * 2:
            before, older = None, list(reference.jobs)
            while True:
                page = store.list_jobs(job_filter, before, page_size)
                assert [job for _, job in page] == reference.page(job_filter, older, page_size)
                if not page:
                    break
                before, last = page[-1]
                older = older[older.index(last.job_id) + 1 :]
                for _ in range(dice.randrange(4)):
                    reference.change()


def test_what_is_committed_is_seen_while_other_threads_list(store: Store) -> None:
    stay = [finish(store, submit(store, labels={"l": "v"}).job_id) for _ in range(3 * BLOCK)]
    done, wrong = threading.Event(), []

    def list_again_and_again() -> None:
        while not done.is_set():
            page = store.list_jobs(JobFilter(statuses=[pb.JOB_STATUS_COMPLETED], labels={"l": "v"}), None, 1000)
            if any(job.status != pb.JOB_STATUS_COMPLETED for _, job in page):
                wrong.append("a job that is not COMPLETED")
            if [job for _, job in page][-len(stay) :] != stay[::-1]:
                wrong.append("a job is missing, or there twice")

    readers = [threading.Thread(target=list_again_and_again) for _ in range(2)]
    for thread in readers:
        thread.start()
    try:
        for _ in range(20 * BLOCK):
            job = finish(store, submit(store, labels={"l": "v"}).job_id)
            newest = store.list_jobs(JobFilter(statuses=[pb.JOB_STATUS_COMPLETED], labels={"l": "v"}), None, 1)
            assert [job.job_id for _, job in newest] == [job.job_id]
            store.delete(job.job_id).result(SECONDS)
    finally:
        done.set()
        for thread in readers:
            thread.join()
    assert not wrong


def test_a_set_of_a_later_state_does_not_show_it_to_an_earlier_snapshot(store: Store, reader: Reader, tmp_path: Path) -> None:
    jobs = [run(store, submit(store).job_id) for _ in range(BLOCK - 1)]
    completed = {"statuses": [pb.JOB_STATUS_COMPLETED]}
    finish(store, submit(store).job_id)
    reader.connection.execute("BEGIN")
    assert reader.find(**completed) == [4]
    for job in jobs:
        store.update(job.job_id, complete).result(SECONDS)
    for _ in range(BLOCK):
        submit(store)
    with closing(Reader(tmp_path / "data", reader.kept)) as later:
        assert later.find(**completed) == [4, 3, 2, 1]
    assert reader.find(models=["m"]) == [4, 3, 2, 1]
    assert reader.find(**completed) == [4]


def test_what_matches_is_found_within_bounds_newest_first(store: Store, reader: Reader) -> None:
    never_meet(store)
    with_a = Condition("jobs WHERE model = {}", [("a",)])
    assert list(reader.kept.intersect(reader.connection, [with_a], 2, 2 * BLOCK + 1)) == [9, 7, 5, 3]


def test_a_set_is_read_once(store: Store, reader: Reader) -> None:
    never_meet(store)
    assert reader.find(models=["a"], labels={"l": "v"}) == []
    first = reader.sets_read
    assert first == 2 * 4
    assert reader.find(models=["a"], labels={"l": "v"}) == []
    assert reader.sets_read == first


def test_a_set_is_read_again_until_the_block_is_full(store: Store, reader: Reader) -> None:
    never_meet(store, BLOCK - 2)  # sequences begin with 1
    assert reader.find(models=["b"]) == [2]
    submit(store, request={"model": "b"})
    assert reader.find(models=["b"]) == [3, 2]
    assert reader.find(models=["b"]) == [3, 2]
    assert reader.sets_read == 2


@pytest.mark.parametrize("is_running", [False, True])
def test_a_set_of_a_status_is_read_again_until_all_its_jobs_are_terminal(
    store: Store, reader: Reader, is_running: bool
) -> None:
    jobs = [submit(store) for _ in range(BLOCK - 1)]
    for job in jobs[1:]:
        finish(store, job.job_id)
    if is_running:
        run(store, jobs[0].job_id)
    assert reader.find(statuses=[pb.JOB_STATUS_COMPLETED]) == [3, 2]
    if not is_running:
        run(store, jobs[0].job_id)
    store.update(jobs[0].job_id, complete).result(SECONDS)
    assert reader.find(statuses=[pb.JOB_STATUS_COMPLETED]) == [3, 2, 1]
    assert reader.find(statuses=[pb.JOB_STATUS_COMPLETED]) == [3, 2, 1]
    assert reader.sets_read == 2


def test_no_set_is_read_of_blocks_below_the_oldest_job(tmp_path: Path) -> None:
    OPENERS["sqlite"](tmp_path / "data", 1000).close()
    with closing(sqlite3.connect(tmp_path / "data" / DATABASE_NAME)) as connection:
        connection.execute("INSERT INTO sqlite_sequence VALUES ('jobs', 100000000)")
        connection.commit()
    with closing(OPENERS["sqlite"](tmp_path / "data", 1000)) as store, closing(Reader(tmp_path / "data")) as reader:
        never_meet(store)
        assert reader.find(models=["a"], labels={"l": "v"}) == []
        assert reader.sets_read == 2 * 4


@pytest.mark.parametrize("block", [64, 4096])
def test_sets_take_no_more_memory_than_they_may(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap_index, "_BLOCK", block)
    max_bytes = 50_000
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE jobs (sequence INTEGER PRIMARY KEY, model TEXT)")
        connection.executemany("INSERT INTO jobs VALUES (?, '')", [(sequence,) for sequence in range(2 * block)])
        bitmaps = BitmapIndex(max_bytes)
        tracemalloc.start()
        try:
            for number in range(max_bytes // (300 + block // 8)):
                all_jobs = Condition("jobs WHERE model <> {}", [(f"model {number}",)])
                assert next(bitmaps.intersect(connection, [all_jobs], 0, 2 * block)) == 2 * block - 1
                next(bitmaps.intersect(connection, [all_jobs], 0, block - 1))
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert max_bytes / 2 < taken < 1.1 * max_bytes
