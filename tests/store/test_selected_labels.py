"""Selectors in the SQLite store: no condition goes through all jobs, and a change of labels is seen by whoever lists next."""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from example_count import example_count
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from selector_cases import Selector, selectors
from store_jobs import OPENERS, SECONDS, finish, new_job, submit
from test_bitmap_index import BLOCK, Reader

from evalrpc.store.room import Room
from evalrpc.store.sqlite import bitmap_index, filters
from evalrpc.store.sqlite.filters import find_jobs
from evalrpc.store.sqlite.migrations import MIGRATIONS
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore
from evalrpc.store.transaction import Transaction
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter

CLOSED = range(1, BLOCK)
"""The sequences of the first block, which begin with 1."""


@pytest.fixture(autouse=True)
def nothing_but_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_MAX_STEPS", 1)
    monkeypatch.setattr(bitmap_index, "_BLOCK", BLOCK)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(OPENERS["sqlite"](tmp_path / "data", 1000)) as store:
        yield store


@pytest.fixture
def reader(store: SqliteStore, tmp_path: Path) -> Iterator[Reader]:
    with closing(Reader(tmp_path / "data")) as reader:
        yield reader


def change_labels(store: SqliteStore, job_id: str, labels: Mapping[str, str]) -> None:
    """Give a job other labels, in one commit."""

    def change(job: pb.JobInfo) -> None:
        job.labels.clear()
        job.labels.update(labels)

    def in_transaction(transaction: Transaction) -> None:
        stored = store.job(job_id)
        before = dict(stored.parse().labels)
        transaction.update(job_id, change)
        transaction.flush()
        transaction.tables.relabel(stored.sequence, before, labels)

    store._write(in_transaction).result(SECONDS)


def selected(reader: Reader, selector: str) -> list[int]:
    return reader.find(label_selector=selector)


# How the database is asked.


@pytest.fixture
def walks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_MAX_STEPS", 3)


SELECTORS = ["a=1", "a in (1,2,3)", "a", "a!=1", "a notin (1,2,3)", "!a", "a=1,b in (1,2),c,a!=2,b notin (3,4),!d"]


@pytest.mark.parametrize("conditions", [*({"label_selector": each} for each in SELECTORS), {"job_id_prefix": "0b54"}])
def test_no_condition_goes_through_all_jobs(
    store: SqliteStore, reader: Reader, walks_too: None, conditions: dict[str, str]
) -> None:
    for number in range(4 * BLOCK):
        submit(store, labels={"a": str(number % 4), "b": "1", "c": ""}, job_id=f"0b54{new_job().job_id[4:]}")
    statements: list[str] = []
    reader.connection.set_trace_callback(statements.append)
    reader.find(**conditions)
    reader.connection.set_trace_callback(None)
    plans = {step for statement in statements for step in plan(reader.connection, statement)}
    of_labels = {step for step in plans if "job_labels" in step}
    assert not [step for step in plans if re.match(r"SCAN jobs|SCAN job_labels", step)]
    assert not [step for step in of_labels if not re.search(r"\(label=\? AND (value=\? AND )?sequence[<>=]\?", step)]
    if "job_id_prefix" in conditions:
        assert not [step for step in plans if re.search(r"rowid<\?", step)], "the ids of all jobs were looked at"
        assert any("(job_id>? AND job_id<?)" in step for step in plans)
    else:
        assert of_labels


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]


def test_a_selector_may_have_as_many_requirements_and_values_as_are_allowed(store: SqliteStore, reader: Reader) -> None:
    labels = {f"k{number}": "1" for number in range(64)}
    jobs = [submit(store, labels=labels) for _ in range(2 * BLOCK)]
    requirements = [f"k{number % 64} in (1,2)" for number in range(90)] + [f"k{number} != 2" for number in range(10)]
    assert len(reader.find(labels=labels, label_selector=",".join(requirements))) == len(jobs)
    others = ",".join(f"{number:x}" for number in range(1000, 1900))
    assert len(selected(reader, f"k0 in (1,{others})")) == len(jobs)
    assert len(selected(reader, f"k0 notin ({others})")) == len(jobs)
    assert selected(reader, f"k0 notin (1,{others})") == []


# Labels that change.


@pytest.mark.parametrize(
    ("selector", "without", "with_it"),
    [
        ("l=v", {"l": "w"}, {"l": "v"}),
        ("l=v", {}, {"l": "v"}),
        ("l in (v,u)", {"l": "w"}, {"l": "u"}),
        ("l", {"m": "v"}, {"l": "v"}),
        ("l!=v", {"l": "v"}, {"l": "w"}),
        ("l!=v", {"l": "v"}, {}),
        ("l notin (v,u)", {"l": "u"}, {"m": "u"}),
        ("!l", {"l": "v"}, {}),
        ("m,!l", {"l": "v", "m": ""}, {"m": ""}),
    ],
)
def test_a_change_in_a_closed_block_is_seen_by_the_next_listing_though_its_bitmap_is_kept(
    store: SqliteStore, reader: Reader, selector: str, without: dict[str, str], with_it: dict[str, str]
) -> None:
    jobs = [submit(store, labels=with_it) for _ in range(3 * BLOCK)]
    every_one = list(range(3 * BLOCK, 0, -1))
    assert selected(reader, selector) == every_one
    change_labels(store, jobs[1].job_id, without)
    assert selected(reader, selector) == [sequence for sequence in every_one if sequence != 2]
    change_labels(store, jobs[1].job_id, with_it)
    assert selected(reader, selector) == every_one


def test_only_the_bitmaps_of_the_changed_block_are_read_again(store: SqliteStore, reader: Reader) -> None:
    jobs = [submit(store, labels={"l": "v"}) for _ in range(3 * BLOCK - 1)]
    selected(reader, "l")
    read = reader.sets_read
    change_labels(store, jobs[BLOCK].job_id, {"l": "w"})
    assert len(selected(reader, "l")) == len(jobs)
    assert reader.sets_read == read + 1
    assert len(selected(reader, "l")) == len(jobs)
    assert reader.sets_read == read + 1


def test_labels_that_stay_as_they_were_mark_nothing(store: SqliteStore, reader: Reader) -> None:
    job = submit(store, labels={"l": "v"})
    change_labels(store, job.job_id, {"l": "v"})
    assert reader.connection.execute("SELECT count(*) FROM label_changes").fetchone() == (0,)


def test_an_earlier_snapshot_keeps_the_labels_that_it_had(store: SqliteStore, reader: Reader, tmp_path: Path) -> None:
    jobs = [submit(store, labels={"l": "v"}) for _ in CLOSED]
    submit(store)
    reader.connection.execute("BEGIN")
    assert selected(reader, "l=v") == [3, 2, 1]
    change_labels(store, jobs[0].job_id, {"l": "w"})
    with closing(Reader(tmp_path / "data", reader.kept)) as later:
        assert selected(later, "l=v") == [3, 2]
        assert selected(later, "l!=v") == [4, 1]
        assert selected(reader, "l=v") == [3, 2, 1]
        assert selected(reader, "l!=v") == [4]
        assert selected(later, "l=v") == [3, 2]


def test_a_job_deleted_later_does_not_seem_to_lack_its_label_in_an_earlier_snapshot(
    store: SqliteStore, reader: Reader, tmp_path: Path
) -> None:
    jobs = [finish(store, submit(store, labels={"l": "v"}).job_id) for _ in CLOSED]
    submit(store)
    reader.connection.execute("BEGIN")
    assert len(reader.find()) == 4
    store.delete(jobs[0].job_id).result(SECONDS)
    with closing(Reader(tmp_path / "data", reader.kept)) as later:
        assert selected(later, "!l") == [4]
    assert selected(reader, "!l") == [4]


def test_blocks_whose_jobs_were_all_deleted_are_passed_over(store: SqliteStore, reader: Reader) -> None:
    submit(store)
    for _ in range(5 * BLOCK):
        store.delete(finish(store, submit(store).job_id).job_id).result(SECONDS)
    last = submit(store).job_id
    lookups: list[str] = []
    reader.connection.set_trace_callback(lambda statement: lookups.append(statement) if "json_each" in statement else None)
    found = find_jobs(reader.connection, reader.kept, JobFilter(label_selector="!l"), None, Room(2, 2**20))
    assert [sequence for sequence, _ in found] == [store.job(last).sequence, 1]
    assert len(lookups) <= 4  # of 22 sequences, two at a time


def test_a_database_of_an_older_version_keeps_its_labels(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        for script in MIGRATIONS[:4]:
            connection.executescript(script)
        connection.execute("PRAGMA user_version = 4")
        for sequence, labels in enumerate(({"l": "v", "m": ""}, {"l": "w"}, {}), start=1):
            job = new_job(status=pb.JOB_STATUS_QUEUED, labels=labels)
            connection.execute(
                "INSERT INTO jobs (sequence, job_id, status, harness, model, priority, num_gpus, created_ns, retry_ns, job)"
                " VALUES (?, ?, 1, '', '', 0, 1, 0, 0, ?)",
                (sequence, job.job_id, job.SerializeToString()),
            )
            for label in labels.items():
                connection.execute("INSERT INTO job_labels (label, value, sequence) VALUES (?, ?, ?)", (*label, sequence))
        connection.commit()
    OPENERS["sqlite"](tmp_path, 10).close()
    with closing(Reader(tmp_path)) as reader:
        assert selected(reader, "l") == [2, 1]
        assert selected(reader, "l=v,m=") == [1]
        assert selected(reader, "!m") == [3, 2]


LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from(["", "1", "2"]))
JOBS = st.integers(0, 10_000)


class Listings(RuleBasedStateMachine):
    """Jobs come, go, and get other labels, while listings by selectors are held against all jobs one by one."""

    @initialize()
    def open(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(bitmap_index, "_BLOCK", BLOCK)
        self.folder = TemporaryDirectory()
        self.store = OPENERS["sqlite"](Path(self.folder.name), 1000)
        self.labels: dict[str, dict[str, str]] = {}  # by job, newest first

    @rule(several=st.lists(LABELS, min_size=1, max_size=2 * BLOCK))
    def submit(self, several: list[dict[str, str]]) -> None:
        for labels in several:
            self.labels = {submit(self.store, labels=labels).job_id: labels} | self.labels

    @precondition(lambda self: self.labels)
    @rule(job=JOBS, labels=LABELS)
    def relabel(self, job: int, labels: dict[str, str]) -> None:
        job_id = self._nth(job)
        change_labels(self.store, job_id, labels)
        self.labels[job_id] = labels

    @precondition(lambda self: self.labels)
    @rule(job=JOBS)
    def delete(self, job: int) -> None:
        job_id = self._nth(job)
        finish(self.store, job_id)
        self.store.delete(job_id).result(SECONDS)
        del self.labels[job_id]

    @rule(selector=selectors(st.sampled_from("abc"), st.sampled_from(["", "1", "2"])), size=st.integers(1, 6), steps=JOBS)
    def list(self, selector: Selector, size: int, steps: int) -> None:
        self.patch.setattr(filters, "_MAX_STEPS", steps % 3 + 1)
        found: list[str] = []
        before = None
        while page := self.store.list_jobs(JobFilter(label_selector=selector.text), before, size):
            found += [job.job_id for _, job in page]
            before = page[-1].sequence
        assert found == [job_id for job_id, labels in self.labels.items() if selector.holds(labels)]

    def _nth(self, number: int) -> str:
        return list(self.labels)[number % len(self.labels)]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()
            self.patch.undo()


TestListings = Listings.TestCase
TestListings.settings = settings(max_examples=example_count(40), stateful_step_count=30, deadline=None)
