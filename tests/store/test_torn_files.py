"""What a power cut leaves: a journal that ends anywhere, or a checkpoint half done. What was acknowledged before is there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from store_jobs import SECONDS, begin, complete, events, listed, read, submit

from evalrpc.clock import SystemClock
from evalrpc.store.base import Store
from evalrpc.store.sqlite import DATABASE_NAME, SqliteStore
from evalrpc.v1 import job_pb2 as pb

JOURNAL_NAME = f"{DATABASE_NAME}-wal"
PAGE_BYTES = 4096

TORN = settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass
class History:
    """What a store acknowledged, with the length of its journal at that time, and the files it had in the end."""

    acknowledged: list[tuple[int, dict[str, pb.JobInfo]]] = field(default_factory=list)
    database: bytes = b""
    journal: bytes = b""
    checkpointed: bytes = b""
    """The database after a checkpoint of the whole journal."""

    def before(self, journal_bytes: int) -> dict[str, pb.JobInfo]:
        """Return the jobs as they stood when the journal had at most this length."""
        return [jobs for length, jobs in self.acknowledged if length <= journal_bytes][-1]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    data_dir = tmp_path_factory.mktemp("history")
    store = SqliteStore(data_dir, SystemClock(), 1000)
    history, jobs = History([(0, {})]), {}
    for number in range(30):
        job = submit(store, labels={"pad": "x" * (100 * number)})
        for change in (None, begin, complete)[: 1 + number % 3]:
            job = store.update(job.job_id, change).result(SECONDS) if change else job
            jobs[job.job_id] = job
            history.acknowledged.append(((data_dir / JOURNAL_NAME).stat().st_size, dict(jobs)))
    history.database = (data_dir / DATABASE_NAME).read_bytes()
    history.journal = (data_dir / JOURNAL_NAME).read_bytes()
    store._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    history.checkpointed = (data_dir / DATABASE_NAME).read_bytes()
    store.close()
    lengths = [length for length, _ in history.acknowledged]
    assert lengths == sorted(set(lengths)), "no checkpoint came between"
    return history


@contextmanager
def store_of(database: bytes, journal: bytes) -> Iterator[Store]:
    """Open a store on these files, which a crash left."""
    folder = Path(tempfile.mkdtemp())
    (folder / DATABASE_NAME).write_bytes(database)
    (folder / JOURNAL_NAME).write_bytes(journal)
    store = SqliteStore(folder, SystemClock(), 1000)
    try:
        yield store
    finally:
        store.close()
        shutil.rmtree(folder)


def check(store: Store, expected: dict[str, pb.JobInfo]) -> None:
    """Compare a store with what was acknowledged, and see that it takes jobs again."""
    assert sorted(listed(store)) == sorted(expected)
    assert all(read(store, job_id) == job for job_id, job in expected.items())
    told = events(store)
    assert [event.revision for event in told] == list(range(1, store.head_revision + 1))
    assert {event.job.job_id: event.job for event in told} == expected, "the journal and the jobs say the same"
    assert submit(store).revision == len(told) + 1


@TORN
@given(data=st.data())
def test_a_journal_cut_anywhere_has_all_that_was_acknowledged_before(history: History, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(history.journal)))
    with store_of(history.database, history.journal[:length]) as store:
        check(store, history.before(length))


@TORN
@given(data=st.data(), garbage=st.binary(min_size=1, max_size=3 * PAGE_BYTES))
def test_a_journal_that_ends_in_garbage_has_all_that_was_acknowledged_before(
    history: History, data: st.DataObject, garbage: bytes
) -> None:
    length = data.draw(st.integers(0, len(history.journal) - 1))
    torn = history.journal[:length] + garbage + history.journal[length + len(garbage) :]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(garbage, history.journal[length:], strict=False))
    with store_of(history.database, torn) as store:
        check(store, history.before(length + sum(1 for _ in same)))


@TORN
@given(data=st.data())
def test_a_checkpoint_torn_between_any_pages_loses_nothing(history: History, data: st.DataObject) -> None:
    pages = len(history.checkpointed) // PAGE_BYTES
    written = data.draw(st.lists(st.booleans(), min_size=pages, max_size=pages))
    before = history.database.ljust(len(history.checkpointed), b"\0")
    mixed = b"".join(
        (history.checkpointed if is_written else before)[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        for page, is_written in enumerate(written)
    )
    with store_of(mixed, history.journal) as store:
        check(store, history.before(len(history.journal)))
