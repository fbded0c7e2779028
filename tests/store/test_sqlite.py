"""What is the SQLite store's own: its files, its lock, a full disk, a killed process."""

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from store_jobs import ORPHAN, SECONDS, Gate, complete, finish, listed, new_job, read, run, submit

from evalrpc.clock import SystemClock
from evalrpc.errors import ConfigurationError, DataDirectoryInUseError, StoreUnavailableError
from evalrpc.jobs import transitions
from evalrpc.store.base import StoredJob, Submission
from evalrpc.store.cache import JobCache
from evalrpc.store.sqlite.migrations import MIGRATIONS
from evalrpc.store.sqlite.store import DATABASE_NAME, SqliteStore
from evalrpc.store.transaction import Transaction
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.results_pb2 import ModelResult


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def open_store(data_dir: Path) -> SqliteStore:
    return SqliteStore(data_dir, SystemClock(), 10_000)


@pytest.fixture
def store(data_dir: Path) -> Iterator[SqliteStore]:
    store = open_store(data_dir)
    yield store
    store.close()


def start(program: str, data_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen((sys.executable, "-c", program, str(data_dir)), stdout=subprocess.PIPE, text=True)


# Files and the lock.

HOLDER = """
import sys
from pathlib import Path
from evalrpc.clock import SystemClock
from evalrpc.store.sqlite.store import SqliteStore
store = SqliteStore(Path(sys.argv[1]), SystemClock(), 10)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(data_dir: Path) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", HOLDER, str(data_dir)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(DataDirectoryInUseError, match="data_dir"):
                open_store(data_dir)
        finally:
            holder.kill()
    open_store(data_dir).close()


def test_a_second_store_in_the_same_process_is_refused(store: SqliteStore, data_dir: Path) -> None:
    with pytest.raises(DataDirectoryInUseError):
        open_store(data_dir)
    assert submit(store).revision == 1


def test_the_data_folder_is_made_with_all_its_parents(tmp_path: Path) -> None:
    open_store(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b" / DATABASE_NAME).exists()


def test_a_data_dir_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="data_dir"):
        open_store(tmp_path / "file")


def database(data_dir: Path) -> Path:
    return data_dir / DATABASE_NAME


def with_jobs(data_dir: Path, count: int = 50) -> Path:
    store = open_store(data_dir)
    for _ in range(count):
        submit(store, labels={"pad": "x" * 200})
    store.close()
    return database(data_dir)


OPENER = """
import sys
from pathlib import Path
from evalrpc.clock import SystemClock
from evalrpc.store.sqlite.store import SqliteStore
kept = []
for _ in range(2):
    try:
        SqliteStore(Path(sys.argv[1]), SystemClock(), 10).close()
    except Exception as error:
        kept.append(error)  # with its traceback, and with that what was opened
        print(type(error).__name__, error)
"""


def errors_of_opening_twice(data_dir: Path) -> list[str]:
    """Open the store twice in a process of its own, so that what a failure leaves open stays there."""
    with start(OPENER, data_dir) as opener:
        output, _ = opener.communicate(timeout=SECONDS)
    return output.splitlines()


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(data_dir: Path) -> None:
    path = with_jobs(data_dir, 1)
    set_version(path, 99)
    before = path.read_bytes()
    refusal = errors_of_opening_twice(data_dir)[0]
    assert refusal.startswith("ConfigurationError setting data_dir: its database has version 99")
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_a_configuration_error_each_time(data_dir: Path) -> None:
    data_dir.mkdir()
    database(data_dir).write_bytes(b"not a database at all" * 1000)
    refusals = errors_of_opening_twice(data_dir)
    assert [refusal.split()[:3] for refusal in refusals] == [["ConfigurationError", "setting", "data_dir:"]] * 2


def test_a_store_of_a_newer_version_lets_go_of_the_lock(data_dir: Path) -> None:
    set_version(with_jobs(data_dir, 1), 99)
    refusals = errors_of_opening_twice(data_dir)
    assert [refusal.split()[0] for refusal in refusals] == ["ConfigurationError"] * 2


@pytest.mark.parametrize(
    "whole_bytes",
    [100, 4096],
)
def test_a_database_with_broken_pages_is_a_configuration_error(data_dir: Path, whole_bytes: int) -> None:
    path = with_jobs(data_dir)
    whole = path.read_bytes()
    path.write_bytes(whole[:whole_bytes] + b"\xff" * (len(whole) - whole_bytes))
    assert errors_of_opening_twice(data_dir)[0].startswith("ConfigurationError setting data_dir")


def test_a_database_without_its_tables_is_a_configuration_error(data_dir: Path) -> None:
    data_dir.mkdir()
    set_version(database(data_dir), 1)
    assert errors_of_opening_twice(data_dir)[0].startswith("ConfigurationError setting data_dir")


def test_a_database_of_an_earlier_version_is_brought_up_to_date(data_dir: Path) -> None:
    data_dir.mkdir()
    connection = sqlite3.connect(database(data_dir))
    connection.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    connection.execute("INSERT INTO jobs VALUES (7, 'j', 1, 'h', 'm', 0, 0, NULL, 'r', x'66', 1, 0, NULL, ?)", (b"",))
    connection.execute("INSERT INTO job_tasks VALUES ('t', 7)")
    connection.execute("INSERT INTO journal VALUES (3, 'j', 1, ?), (4, 'deleted', 1, ?)", (b"", b""))
    connection.execute("UPDATE sqlite_sequence SET seq = 9")  # two jobs came later and were deleted
    connection.commit()
    connection.close()
    store = open_store(data_dir)
    assert [job.sequence for job in store.list_jobs(JobFilter(tasks=["t"]), None, 10)] == [7]
    assert [event.revision for event in store.events_after(0, 10, "j")] == [3]
    assert [event.revision for event in store.events_after(0, 10)] == [3, 4]
    assert store.job(submit(store).job_id).sequence == 10
    source = submit(store, cache_key=b"k")
    assert submit(store, cache_key=b"k").cached_from == source.job_id
    store.close()


def test_jobs_of_a_store_in_which_a_hit_was_no_job_are_shared_by_new_ones(data_dir: Path) -> None:
    data_dir.mkdir()
    connection = sqlite3.connect(database(data_dir))
    connection.executescript(f"{''.join(MIGRATIONS[:4])} PRAGMA user_version = 4;")
    for sequence, (job_id, status) in enumerate((("done", 3), ("other", 3), ("waiting", 1), ("failed", 4)), start=1):
        job = pb.JobInfo(job_id=job_id, status=status, attempt=1)
        row = (sequence, job_id, status, "h", "m", 0, 0, None, f"r{sequence}", b"f", 1, 0, 1 if status > 2 else None)
        connection.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * 14)})", (*row, job.SerializeToString()))
    connection.execute("INSERT INTO twins VALUES (x'6b', 1), (x'6c', 3), (x'6d', 4)")
    connection.execute("INSERT INTO joined_requests VALUES ('joined', x'66', 1)")
    connection.commit()
    connection.close()
    store = open_store(data_dir)
    assert submit(store, cache_key=b"k").cached_from == "done"
    assert submit(store, cache_key=b"l").cached_from == "waiting"
    assert submit(store, cache_key=b"m").cached_from == ""
    assert submit(store, "r1", b"f").job_id == "done"
    again = submit(store, "joined", b"f", cache_key=b"k")
    assert (again.status, again.cached_from) == (pb.JOB_STATUS_COMPLETED, "done"), "a job that was submitted before is one now"
    assert submit(store, "joined", b"f", cache_key=b"k") == again
    assert store.delete("other").result(SECONDS).files_of == "other"
    store.close()


def test_events_of_an_earlier_version_do_not_say_what_was_before(data_dir: Path) -> None:
    data_dir.mkdir()
    connection = sqlite3.connect(database(data_dir))
    connection.executescript("".join(MIGRATIONS[:4]) + "PRAGMA user_version = 4;")
    connection.execute("INSERT INTO journal VALUES (3, 7, 1, ?)", (b"",))
    connection.commit()
    connection.close()
    store = open_store(data_dir)
    assert [(event.previous, event.labels_before) for event in store.events_after(0, 10)] == [(None, None)]
    store.close()


def test_events_of_an_earlier_version_count_for_the_size_of_the_journal(data_dir: Path) -> None:
    data_dir.mkdir()
    connection = sqlite3.connect(database(data_dir))
    connection.executescript(f"{''.join(MIGRATIONS[:7])} PRAGMA user_version = 7;")
    for revision in range(1, 5):
        connection.execute("INSERT INTO journal VALUES (?, 7, 1, ?, NULL, NULL)", (revision, bytes(100 * revision)))
    connection.commit()
    connection.close()
    store = open_store(data_dir)
    for max_bytes, oldest in ((1000, 0), (999, 1), (700, 2), (699, 3), (1, 4)):
        assert store.compact(1000, Timestamp(), max_bytes).result(SECONDS) == oldest
    store.close()


def test_what_was_there_before_jobs_had_owners_is_all_there_and_has_none(data_dir: Path) -> None:
    data_dir.mkdir()
    connection = sqlite3.connect(database(data_dir))
    connection.executescript("".join(MIGRATIONS[:8]) + "PRAGMA user_version = 8;")
    jobs = [
        pb.JobInfo(job_id="waiting", status=pb.JOB_STATUS_QUEUED, attempt=0, max_attempts=1, revision=1, supersede_key="k"),
        pb.JobInfo(job_id="done", status=pb.JOB_STATUS_COMPLETED, attempt=1, max_attempts=1, revision=2, labels={"a": "1"}),
    ]
    for sequence, job in enumerate(jobs, start=1):
        columns = "sequence, job_id, status, harness, model, priority, num_gpus, supersede_key, request_id, fingerprint"
        row = (sequence, job.job_id, job.status, "h", "m", 0, 0, job.supersede_key or None, f"r{sequence}", b"f")
        connection.execute(
            f"INSERT INTO jobs ({columns}, created_ns, retry_ns, job) VALUES ({', '.join('?' * 13)})",
            (*row, sequence, 0, job.SerializeToString()),
        )
        event = pb.JobEvent(type=pb.JOB_EVENT_TYPE_STATUS, revision=sequence, job=job).SerializeToString()
        connection.execute(
            "INSERT INTO journal (revision, sequence, created_ns, event, previous) VALUES (?, ?, ?, ?, 0)",
            (sequence, sequence, sequence, event),
        )
    connection.execute("INSERT INTO job_labels VALUES ('a', 2, '1')")
    connection.commit()
    connection.close()
    store = open_store(data_dir)
    assert [job for _, job in store.list_jobs(JobFilter(owners=[""]), None, 10)] == jobs[::-1]
    assert [job for _, job in store.list_jobs(JobFilter(labels={"a": "1"}), None, 10, owner="")] == jobs[1:]
    assert store.job("done") == (2, pb.JOB_STATUS_COMPLETED, jobs[1].SerializeToString(), "")
    assert [(event.revision, event.owner) for event in store.events_after(0, 10, owner="")] == [(1, ""), (2, "")]
    assert submit(store, "r2", b"f").job_id == "done", "a request_id from before is that of whoever has not signed in"
    alices = submit(store, "r2", b"f", owner="alice", supersede_key="k")
    assert alices.job_id != "done"
    assert store.job("waiting").status == pb.JOB_STATUS_QUEUED
    submit(store, supersede_key="k")
    assert store.job("waiting").status == pb.JOB_STATUS_CANCELLED
    store.close()


def test_nothing_of_a_deleted_job_is_left_in_any_table(store: SqliteStore, data_dir: Path) -> None:
    job = submit(store, labels={"label": "findme-1"}, request={"model": "findme-2", "tasks": ["findme-3"]})
    store.update(job.job_id, lambda job: transitions.update(job, {"label": "findme-4"}, None)).result(SECONDS)
    finish(store, job.job_id)
    assert "findme" in "".join(dump(data_dir))
    store.delete(job.job_id).result(SECONDS)
    assert "findme" not in "".join(dump(data_dir))


def dump(data_dir: Path) -> list[str]:
    """Return all rows of all tables, with what is in their blobs."""
    connection = sqlite3.connect(database(data_dir))
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = [repr(row) for table in tables for row in connection.execute(f"SELECT * FROM {table}")]
    connection.close()
    return rows


def set_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def test_what_is_committed_is_on_the_disk_before_anyone_is_notified(store: SqliteStore) -> None:
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_no_reader_sees_an_event_before_the_head_has_come_to_it(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    committed, release = threading.Event(), threading.Event()
    publish = store._publish

    def hold(transaction: Transaction) -> None:
        committed.set()
        assert release.wait(SECONDS)
        publish(transaction)

    monkeypatch.setattr(store, "_publish", hold)
    future = store.submit(Submission(new_job()))
    try:
        assert committed.wait(SECONDS)
        seen = [event.revision for event in store.events_after(0, 10)]
        assert all(revision <= store.head_revision for revision in seen)
    finally:
        release.set()
        future.result(SECONDS)


# A disk that is full.


def fill_disk(store: SqliteStore) -> None:
    """Let the database grow no further."""
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")


def make_room(store: SqliteStore) -> None:
    store._connection.execute("PRAGMA max_page_count = 1000000")


def submit_until_full(store: SqliteStore) -> list[str]:
    accepted: list[str] = []
    for _ in range(1000):
        try:
            accepted.append(submit(store, request={"model": "m" * 1000}).job_id)
        except StoreUnavailableError:
            return accepted
    raise AssertionError("the disk never was full")


def test_a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room(store: SqliteStore) -> None:
    before = submit(store)
    fill_disk(store)
    accepted = submit_until_full(store)
    head, counts = store.head_revision, dict(store.status_counts())
    with pytest.raises(StoreUnavailableError) as caught:
        submit(store, request={"model": "m" * 10_000})
    assert caught.value.retry_delay_seconds
    assert (store.head_revision, dict(store.status_counts())) == (head, counts)
    assert listed(store) == [*accepted[::-1], before.job_id], "reads go on"
    make_room(store)
    after = submit(store)
    assert after.revision == head + 1
    assert listed(store) == [after.job_id, *accepted[::-1], before.job_id]


def test_a_write_that_failed_leaves_no_trace_in_memory_or_on_the_disk(store: SqliteStore, data_dir: Path) -> None:
    notified: list[str] = []
    store.follow(store.position, lambda changes: notified.extend(change.job.job_id for change in changes))
    fill_disk(store)
    accepted = submit_until_full(store)
    job = new_job(request={"model": "m" * 100_000})
    with pytest.raises(StoreUnavailableError):
        store.submit(Submission(job, "r1")).result(SECONDS)
    assert notified == accepted
    assert store.cached_job(job.job_id) is None
    make_room(store)
    assert store.submit(Submission(job, "r1")).result(SECONDS).job_id == job.job_id
    store.close()
    reopened = open_store(data_dir)
    assert len(listed(reopened)) == len(accepted) + 1
    assert reopened.head_revision == len(accepted) + 1
    reopened.close()


def test_a_running_job_keeps_its_state_while_the_disk_is_full(store: SqliteStore) -> None:
    job = run(store, submit(store).job_id)
    fill_disk(store)
    submit_until_full(store)

    def grow(job: pb.JobInfo) -> None:
        job.cancel_reason = "x" * 100_000

    with pytest.raises(StoreUnavailableError):
        store.update(job.job_id, grow).result(SECONDS)
    assert read(store, job.job_id) == job
    make_room(store)
    assert len(store.update(job.job_id, grow).result(SECONDS).cancel_reason) == 100_000


def test_a_follower_that_could_not_be_written_is_not_waited_for_and_one_that_was_is(store: SqliteStore) -> None:
    source = run(store, submit(store, cache_key=b"k").job_id)
    fill_disk(store)
    submit_until_full(store)
    with pytest.raises(StoreUnavailableError):
        submit(store, cache_key=b"k", labels={"pad": "x" * 100_000})
    assert store._followed == set()
    make_room(store)
    follower = submit(store, cache_key=b"k")
    assert store.update(source.job_id, complete).result(SECONDS).status == read(store, follower.job_id).status


def test_an_end_that_could_not_be_written_leaves_the_followers_and_is_written_with_them_later(store: SqliteStore) -> None:
    source = run(store, submit(store, cache_key=b"k").job_id)
    followers = [submit(store, cache_key=b"k").job_id for _ in range(2)]
    before = [read(store, job_id) for job_id in followers]
    fill_disk(store)
    submit_until_full(store)
    results = {"m": ModelResult(results="x" * 100_000)}
    with pytest.raises(StoreUnavailableError):
        store.update(source.job_id, lambda job: transitions.complete(job, results, SystemClock().now())).result(SECONDS)
    assert [read(store, job_id) for job_id in (source.job_id, *followers)] == [source, *before]
    make_room(store)
    store.update(source.job_id, lambda job: transitions.complete(job, results, SystemClock().now())).result(SECONDS)
    assert [read(store, job_id).results["m"].results for job_id in followers] == ["x" * 100_000] * 2


# A disk that gives back something else.


def test_a_job_that_the_disk_has_garbled_is_reported_and_stops_nothing_else(store: SqliteStore, data_dir: Path) -> None:
    garbled, job = submit(store).job_id, submit(store).job_id
    store.close()
    connection = sqlite3.connect(database(data_dir))
    connection.execute("UPDATE jobs SET job = x'0aff' WHERE job_id = ?", (garbled,))
    connection.execute("UPDATE journal SET event = x'0aff' WHERE revision = 1")
    connection.commit()
    connection.close()
    store = open_store(data_dir)
    for read_it in (
        lambda: store.job(garbled).parse(),
        lambda: listed(store),
        lambda: [event.parse() for event in store.events_after(0, 10)],
        lambda: run(store, garbled),
    ):
        with pytest.raises(StoreUnavailableError, match="damaged"):
            read_it()
    assert finish(store, job).status == pb.JOB_STATUS_COMPLETED
    store.close()


def test_a_garbled_follower_stops_neither_its_source_nor_the_others(data_dir: Path) -> None:
    for end, expected in ((complete, pb.JOB_STATUS_COMPLETED), (cancel, pb.JOB_STATUS_QUEUED)):
        store = open_store(data_dir)
        source = run(store, submit(store, cache_key=b"k").job_id)
        garbled, follower = submit(store, cache_key=b"k").job_id, submit(store, cache_key=b"k").job_id
        store.close()
        connection = sqlite3.connect(database(data_dir))
        connection.execute("UPDATE jobs SET job = x'0aff' WHERE job_id = ?", (garbled,))
        connection.commit()
        connection.close()
        store = open_store(data_dir)
        store.update(source.job_id, end).result(SECONDS)
        assert read(store, follower).status == expected
        for job_id in (source.job_id, follower):  # so that the next round shares nothing
            if read(store, job_id).status == pb.JOB_STATUS_QUEUED:
                store.update(job_id, lambda job: transitions.cancel(job, SystemClock().now())).result(SECONDS)
            store.delete(job_id).result(SECONDS)
        store.close()


def cancel(job: pb.JobInfo) -> None:
    transitions.cancel(job, SystemClock().now())


# What followers cost those who have none.


def test_jobs_without_followers_end_without_a_query_and_are_not_remembered(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [run(store, submit(store, cache_key=b"%d" % number).job_id) for number in range(20)]
    followed = run(store, submit(store, cache_key=b"k").job_id)
    submit(store, cache_key=b"k")
    assert store._followed == {followed.job_id}
    flushes: list[int] = []
    flush = Transaction.flush
    monkeypatch.setattr(Transaction, "flush", lambda transaction: flushes.append(1) or flush(transaction))
    gate = Gate(store)
    before = len(flushes)
    futures = [store.update(job.job_id, complete) for job in jobs]
    gate.open()
    for future in futures:
        future.result(SECONDS)
    assert len(flushes) - before <= 2, "one per commit: that of the gate, and that of all the others"
    assert store.update(followed.job_id, complete).result(SECONDS).status == pb.JOB_STATUS_COMPLETED
    assert store._followed == set()


def test_a_database_that_is_gone_is_not_begun_anew_beside_its_journal_or_its_jobs(data_dir: Path) -> None:
    for trace in ("evalrpc.sqlite3-wal", f"jobs/{ORPHAN}"):
        data_dir.joinpath(trace).parent.mkdir(parents=True, exist_ok=True)
        data_dir.joinpath(trace).write_text("x")
        refusals = errors_of_opening_twice(data_dir)
        assert [refusal.split()[:3] for refusal in refusals] == [["ConfigurationError", "setting", "data_dir:"]] * 2
        assert data_dir.joinpath(trace).exists()
        data_dir.joinpath(trace).unlink()
    (data_dir / "jobs" / "lost+found").mkdir()
    open_store(data_dir).close()


# A process that is killed.

WRITER = f"""
import sys, threading
from pathlib import Path
sys.path[:0] = {sys.path!r}  # that of the tests
from store_jobs import finish, submit
from evalrpc.clock import SystemClock
from evalrpc.store.sqlite.store import SqliteStore
store = SqliteStore(Path(sys.argv[1]), SystemClock(), 1_000_000)
lock = threading.Lock()

def say(text):
    with lock:
        print(text, flush=True)

def work():
    while True:
        job = submit(store)
        say(f"{{job.job_id}} 1 {{job.revision}}")
        done = finish(store, job.job_id)
        say(f"{{job.job_id}} 3 {{done.revision}}")

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
threading.Event().wait()
"""


def test_a_process_killed_in_the_middle_loses_nothing_that_was_acknowledged(data_dir: Path) -> None:
    acknowledged: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        with start(WRITER, data_dir) as writer:
            assert writer.stdout is not None
            for _ in range(100):
                job_id, status, revision = writer.stdout.readline().split()
                acknowledged[job_id] = (int(status), int(revision))
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read()
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                job_id, status, revision = line.split()
                acknowledged[job_id] = (int(status), int(revision))
        store = open_store(data_dir)
        for job_id, (status, revision) in acknowledged.items():
            job = read(store, job_id)
            assert job.status >= status
            assert job.revision >= revision
        revisions = [event.revision for event in store.events_after(0, 1_000_000)]
        assert revisions == list(range(1, store.head_revision + 1)), "each change has its event, and each event its change"
        for job in (store.job(job_id).parse() for job_id in listed(store, limit=100_000)):
            last = store.events_after(0, 10, job.job_id)[-1]
            assert pb.JobEvent.FromString(last.event).job == job
        store.close()


# The cache.


def stored(serialized: bytes) -> StoredJob:
    return StoredJob(1, pb.JOB_STATUS_QUEUED, serialized, "")


def test_the_cache_drops_what_was_not_used_for_longest() -> None:
    cache = JobCache(10)
    cache.put("a", stored(b"aaaa"))
    cache.put("b", stored(b"bbbb"))
    assert cache.get("a") == stored(b"aaaa")
    cache.put("c", stored(b"cccc"))
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (stored(b"aaaa"), None, stored(b"cccc"))


def test_a_job_larger_than_the_cache_is_just_not_kept() -> None:
    cache = JobCache(10)
    cache.put("a", stored(b"a" * 100))
    cache.put("b", stored(b"b"))
    assert (cache.get("a"), cache.get("b")) == (None, stored(b"b"))


def test_the_cache_counts_a_replaced_job_once() -> None:
    cache = JobCache(10)
    for _ in range(100):
        cache.put("a", stored(b"aaaa"))
    cache.put("b", stored(b"bbbb"))
    assert (cache.get("a"), cache.get("b")) == (stored(b"aaaa"), stored(b"bbbb"))
    cache.remove("a")
    cache.remove("a")
    cache.put("c", stored(b"cccc"))
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, stored(b"bbbb"), stored(b"cccc"))


def test_a_reader_that_was_overtaken_by_the_writer_fills_nothing_in() -> None:
    cache = JobCache(100)
    generation = cache.generation
    cache.put("a", stored(b"new"))
    cache.fill("a", stored(b"old"), generation)
    assert cache.get("a") == stored(b"new")
    generation = cache.generation
    cache.remove("a")
    cache.fill("a", stored(b"old"), generation)
    assert cache.get("a") is None
    cache.fill("a", stored(b"read"), cache.generation)
    assert cache.get("a") == stored(b"read")


def test_jobs_that_fell_out_of_the_cache_are_read_from_the_disk(data_dir: Path) -> None:
    store = open_store(data_dir)
    job = finish(store, submit(store).job_id)
    store.close()
    store = open_store(data_dir)
    assert store.cached_job(job.job_id) is None
    assert read(store, job.job_id) == job
    assert store.cached_job(job.job_id) is not None
    store.close()


def test_filters_that_nobody_uses_again_leave_few_prepared_statements(store: SqliteStore) -> None:
    def statements() -> int:
        return sum(type(each).__name__ == "Statement" for each in gc.get_objects())

    submit(store)
    before = statements()
    for count in range(1, 60):
        store.list_jobs(JobFilter(label_selector=",".join(f"key-{number}" for number in range(count))), None, 10)
    assert statements() - before <= 24
