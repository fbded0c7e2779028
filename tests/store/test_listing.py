"""Any filter lists just what `JobMatcher` takes, whole and page by page, of all owners or of one, and even where the clock was
set back meanwhile."""

import random
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_count import example_count
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_cases import selectors
from store_jobs import OPENERS, SECONDS, finish, new_job, read, run, submit

from evalrpc.jobs.filters import JobMatcher
from evalrpc.store.base import Store
from evalrpc.store.postgres.store import PostgresStore
from evalrpc.store.sqlite import bitmap_index
from evalrpc.store.sqlite import filters as filters_module
from evalrpc.store.sqlite.migrations import MIGRATIONS
from evalrpc.store.sqlite.store import DATABASE_NAME
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter

JOBS = 200
MODELS, TASKS, HARNESSES = ["m1", "m2", "m3", "m4"], ["t1", "t2", "t3", "t4"], ["h1", "h2"]
LABELS, VALUES = ["a", "b", "c"], ["1", "2"]
OWNERS = ["", "alice", "bob"]
PREFIXES = ["0b54", "0b54e7a6-3a", "0b55"]
STATUSES = [pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED]
BEGIN = 1_700_000_000


class SetBackClock:
    """Goes on by a second with every look at it, and every now and then back by many."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._seconds = BEGIN

    def now(self) -> Timestamp:
        self._seconds += -self._dice.randrange(100) if self._dice.random() < 0.02 else 1
        return Timestamp(seconds=self._seconds)

    def monotonic(self) -> float:
        return 0.0


class Filled:
    """A store, and its jobs, newest first."""

    def __init__(self, store: Store) -> None:
        dice = random.Random(6)
        self.store = store
        jobs = [one_job(store, dice) for _ in range(JOBS)]
        for job in [job for job in jobs if job.status == pb.JOB_STATUS_COMPLETED][::3]:
            store.delete(job.job_id).result(SECONDS)
            jobs.remove(job)
        self.jobs = jobs[::-1]


@pytest.fixture(scope="module", params=[500, 1, 7], ids="max_steps={}".format)
def max_steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """How far the walk goes down the indexes; the rest is found with sets, here of few jobs each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters_module, "_MAX_STEPS", request.param)
        patch.setattr(bitmap_index, "_BLOCK", 16)
        yield


@pytest.fixture(scope="module", params=sorted(OPENERS))
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, max_steps: None) -> Iterator[Filled]:
    if request.param == "postgres" and filters_module._MAX_STEPS != 500:
        pytest.skip("it walks down no indexes by steps")
    store = OPENERS[request.param](tmp_path_factory.mktemp("listing") / "data", JOBS, SetBackClock(random.Random(7)))
    yield Filled(store)
    store.close()


def one_job(store: Store, dice: random.Random) -> pb.JobInfo:
    tasks = dice.sample(TASKS, dice.randint(1, 3))
    labels = {label: dice.choice(VALUES) for label in dice.sample(LABELS, dice.randint(0, 3))}
    request = {"model": dice.choice(MODELS), "tasks": tasks, "harness": dice.choice(HARNESSES)}
    job = submit(store, job_id=job_id(dice), request=request, labels=labels, owner=dice.choice(OWNERS))
    if dice.random() < 0.6:
        dice.choice((run, finish))(store, job.job_id)
    return read(store, job.job_id)


def job_id(dice: random.Random) -> str:
    prefix = dice.choice(PREFIXES)
    return prefix + str(uuid.UUID(int=dice.getrandbits(128), version=4))[len(prefix) :]


times = st.none() | st.integers(BEGIN, BEGIN + 2 * JOBS).map(lambda seconds: Timestamp(seconds=seconds))
filters = st.builds(
    JobFilter,
    statuses=st.lists(st.sampled_from(STATUSES), max_size=3),
    models=st.lists(st.sampled_from([*MODELS, "none has this"]), max_size=3),
    tasks=st.lists(st.sampled_from([*TASKS, "none has this"]), max_size=3),
    harnesses=st.lists(st.sampled_from(HARNESSES), max_size=2),
    owners=st.lists(st.sampled_from([*OWNERS, "none is"]), max_size=2),
    labels=st.dictionaries(st.sampled_from(LABELS), st.sampled_from(VALUES)),
    created_after=times,
    created_before=times,
    label_selector=selectors(st.sampled_from([*LABELS, "none"]), st.sampled_from([*VALUES, "", "none"])).map(
        lambda selector: selector.text
    ),
    job_id_prefix=st.sampled_from(["", "", *PREFIXES, "0B54", "0b54f", "ffff"]),
)


@settings(max_examples=example_count(300), deadline=None)
@given(job_filter=filters, owner=st.sampled_from([None, None, *OWNERS, "none is"]), page_size=st.integers(1, 20))
def test_a_filter_lists_what_matches(filled: Filled, job_filter: JobFilter, owner: str | None, page_size: int) -> None:
    matcher = JobMatcher(job_filter)
    matching = [job for job in filled.jobs if matcher.matches(job) and owner in (None, job.owner)]
    assert [job for _, job in filled.store.list_jobs(job_filter, None, JOBS, owner=owner)] == matching
    paged: list[pb.JobInfo] = []
    before = None
    page_size = max(page_size, 10 if isinstance(filled.store, PostgresStore) else 1)  # each page is a query over a socket
    while page := filled.store.list_jobs(job_filter, before, page_size, owner=owner):
        paged += [job for _, job in page]
        before = page[-1].sequence
    assert paged == matching


def test_a_database_of_an_older_version_knows_of_its_setbacks(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    for script in MIGRATIONS[:3]:
        connection.executescript(script)
    connection.execute("PRAGMA user_version = 3")
    for sequence, seconds in enumerate((100, 300, 200), start=1):
        job = new_job(created_at=Timestamp(seconds=seconds), status=pb.JOB_STATUS_QUEUED)
        connection.execute(
            "INSERT INTO jobs (sequence, job_id, status, harness, model, priority, num_gpus, created_ns, retry_ns, job)"
            " VALUES (?, ?, 1, '', '', 0, 1, ?, 0, ?)",
            (sequence, job.job_id, seconds * 10**9, job.SerializeToString()),
        )
    connection.commit()
    connection.close()
    store = OPENERS["sqlite"](tmp_path, 10)
    older = store.list_jobs(JobFilter(created_before=Timestamp(seconds=300)), None, 10)
    newer = store.list_jobs(JobFilter(created_after=Timestamp(seconds=200)), None, 10)
    store.close()
    assert [job.created_at.seconds for _, job in older] == [200, 100]
    assert [job.created_at.seconds for _, job in newer] == [200, 300]
