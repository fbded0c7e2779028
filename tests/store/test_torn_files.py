"""What a power cut leaves: a journal that ends anywhere, or a checkpoint half done. What was acknowledged before is there."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from example_count import example_count
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from store_jobs import SECONDS, begin, complete, events, listed, read, submit

from evalrpc.clock import SystemClock
from evalrpc.store.base import Store
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore
from evalrpc.v1 import jobs_pb2 as pb

JOURNAL_NAME = f"{DATABASE_NAME}-wal"
PAGE_BYTES = 4096

TORN = settings(
    max_examples=example_count(60),
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

PLACES = st.floats(0, 1)
"""Places in a file, from its beginning to its end."""


class History:
    """What a store acknowledged, with the length of its journal at that time, and the files it had in the end."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[int, dict[str, pb.JobInfo]]] = [(0, {})]
        self.database = b""
        self.journal = b""
        self.checkpointed = b""
        """The database after a checkpoint of the whole journal."""

    def before(self, journal_bytes: int) -> dict[str, pb.JobInfo]:
        """Return the jobs as they stood when the journal had at most this length."""
        return [jobs for length, jobs in self.acknowledged if length <= journal_bytes][-1]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    data_dir = tmp_path_factory.mktemp("history")
    store = SqliteStore(data_dir, SystemClock(), 1000)
    history, jobs = History(), {}
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
    found = events(store)
    assert [event.revision for event in found] == list(range(1, store.head_revision + 1))
    assert {event.job.job_id: event.job for event in found} == expected, "the journal and the jobs say the same"
    assert submit(store).revision == len(found) + 1


@TORN
@given(where=PLACES)
def test_a_journal_cut_anywhere_has_all_that_was_acknowledged_before(history: History, where: float) -> None:
    length = round(where * len(history.journal))
    with store_of(history.database, history.journal[:length]) as store:
        check(store, history.before(length))


@TORN
@given(where=PLACES, garbage=st.binary(min_size=1, max_size=3 * PAGE_BYTES))
def test_a_journal_that_ends_in_garbage_has_all_that_was_acknowledged_before(
    history: History, where: float, garbage: bytes
) -> None:
    length = round(where * (len(history.journal) - 1))
    torn = history.journal[:length] + garbage + history.journal[length + len(garbage) :]
    differences = (
        place for place in range(length, len(history.journal)) if torn[place : place + 1] != history.journal[place : place + 1]
    )
    whole = next(differences, len(history.journal))  # the garbage may be just what was there
    with store_of(history.database, torn) as store:
        check(store, history.before(whole))


@TORN
@given(seed=st.integers(0, 2**32))
def test_a_checkpoint_torn_between_any_pages_loses_nothing(history: History, seed: int) -> None:
    pages = len(history.checkpointed) // PAGE_BYTES
    dice = random.Random(seed)
    written = [dice.random() < 0.5 for _ in range(pages)]
    before = history.database.ljust(len(history.checkpointed), b"\0")
    mixed = b"".join(
        (history.checkpointed if is_written else before)[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        for page, is_written in enumerate(written)
    )
    with store_of(mixed, history.journal) as store:
        check(store, history.before(len(history.journal)))
