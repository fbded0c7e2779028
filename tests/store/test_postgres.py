"""What is the PostgreSQL store's own: several of them on one database, and a database that goes away."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from postgres_cluster import Cluster, shared_cluster, start_cluster
from store_jobs import (
    CLOCK,
    SECONDS,
    Recorder,
    begin,
    complete,
    events,
    finish,
    listed,
    new_job,
    open_sqlite,
    read,
    run,
    submit,
)
from waiting import eventually

from evalrpc.errors import ConfigurationError, DataDirectoryInUseError, QueueFullError, StoreUnavailableError
from evalrpc.jobs.holds import QUEUE
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.store.base import Submission
from evalrpc.store.postgres import listening
from evalrpc.store.postgres.checking import check_database
from evalrpc.store.postgres.connecting import Connection
from evalrpc.store.postgres.hosts import give_up_host
from evalrpc.store.postgres.migrations import MIGRATIONS
from evalrpc.store.postgres.store import PostgresStore
from evalrpc.store.postgres.writer import Writer
from evalrpc.v1 import jobs_pb2 as pb

QUEUED, RUNNING, COMPLETED = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED


@pytest.fixture
def conninfo(tmp_path: Path) -> str:
    return shared_cluster().schema_for(tmp_path)


Opener = Callable[..., PostgresStore]


@pytest.fixture
def open_store(conninfo: str, tmp_path: Path) -> Iterator[Opener]:
    """Open stores of one database, as several servers do."""
    opened: list[PostgresStore] = []

    def opener(max_queued: int = 1000) -> PostgresStore:
        opened.append(PostgresStore(conninfo, tmp_path, CLOCK, max_queued, Entitlements(SharePolicy())))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


# Several servers.


def test_what_one_store_commits_the_other_passes_on_once_and_in_order(open_store: Opener) -> None:
    here, there = open_store(), open_store()
    recorder = Recorder()
    there.follow(there.position, recorder)
    job = submit(here)
    finish(here, job.job_id)
    own = submit(there)
    eventually(lambda: len(recorder.changes) == 4, "for all changes")
    assert [change.job.status for change in recorder.changes] == [QUEUED, RUNNING, COMPLETED, QUEUED]
    assert [change.previous for change in recorder.changes] == [0, QUEUED, RUNNING, 0]
    assert [change.event and change.event.revision for change in recorder.changes] == [1, 2, 3, 4]
    assert own.revision == there.head_revision == 4
    assert there.status_counts()[COMPLETED] == 1
    eventually(lambda: here.head_revision == 4, "for the change of the other one")
    assert events(here) == events(there)


def test_a_change_without_an_event_is_passed_on_too_and_a_later_one_is_not_told_before_its_time(open_store: Opener) -> None:
    here, there = open_store(), open_store()
    recorder = Recorder()
    there.follow(there.position, recorder)
    job = submit(here)
    run(here, job.job_id)
    for model in ("a", "b"):
        here.update(job.job_id, lambda job, model=model: job.results[model].SetInParent()).result(SECONDS)
    eventually(lambda: recorder.changes and set(recorder.changes[-1].job.results) == {"a", "b"}, "for the results")
    here.update(job.job_id, complete).result(SECONDS)
    eventually(lambda: there.head_revision == 3, "for its end")
    numbers = [change.number for change in recorder.changes]
    assert numbers == sorted(set(numbers))
    assert [change.job.status for change in recorder.changes if change.event] == [QUEUED, RUNNING, COMPLETED]
    assert read(there, job.job_id) == read(here, job.job_id)


def test_both_count_for_one_queue_and_its_limit(open_store: Opener) -> None:
    here, there = open_store(max_queued=3), open_store(max_queued=3)
    for store in (here, there, here):
        submit(store)
    for store in (here, there):
        with pytest.raises(QueueFullError):
            submit(store)
    finish(there, listed(here)[0])
    submit(here)
    assert here.status_counts()[QUEUED] == 3


def test_the_same_request_at_two_stores_is_one_job(open_store: Opener) -> None:
    stores = open_store(), open_store()
    futures = [store.submit(Submission(new_job(), "r", b"f")) for _ in range(10) for store in stores]
    assert len({future.result(SECONDS).job_id for future in futures}) == 1
    assert len(listed(stores[0])) == 1


def test_a_follower_at_one_store_is_completed_by_its_source_at_the_other(open_store: Opener) -> None:
    here, there = open_store(), open_store()
    source = submit(here, cache_key=b"k")
    follower = submit(there, cache_key=b"k")
    assert follower.cached_from == source.job_id
    finish(here, source.job_id)
    assert read(here, follower.job_id).status == COMPLETED
    eventually(lambda: read(there, follower.job_id).status == COMPLETED, "for the other store to hear of it")


def test_a_revision_that_another_store_has_told_is_looked_up(open_store: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresStore, "_wake", lambda *_: None)  # notifications are lost
    here, there = open_store(), open_store()
    job = submit(here)
    assert there.head_revision == 0
    assert there.events_after(job.revision, 10) == []
    assert there.head_revision == job.revision


def test_a_deletion_is_told_with_as_much_as_the_other_store_knows(open_store: Opener) -> None:
    here, there = open_store(), open_store()
    recorder = Recorder()
    there.follow(there.position, recorder)
    job = submit(here, owner="alice", labels={"a": "b"})
    eventually(lambda: there.head_revision == 1, "for it to be known")
    finish(here, job.job_id)
    here.delete(job.job_id).result(SECONDS)
    eventually(lambda: there.head_revision == 4, "for the deletion")
    deletion = recorder.changes[-1]
    assert deletion.deleted
    assert (deletion.job.job_id, deletion.job.owner) == (job.job_id, "alice")
    assert there.cached_job(job.job_id) is None
    assert listed(there) == []


def test_a_hold_is_heard_of(open_store: Opener) -> None:
    here, there = open_store(), open_store()
    here.set_hold(QUEUE, is_held=True).result(SECONDS)
    eventually(lambda: there.holds.is_paused, "for the hold")
    there.set_hold(QUEUE, is_held=False).result(SECONDS)
    eventually(lambda: not here.holds.is_paused, "for its end")


def test_many_writers_at_once_make_no_gap_and_no_revision_twice(open_store: Opener) -> None:
    stores = [open_store() for _ in range(3)]
    recorders = [Recorder() for _ in stores]
    for store, recorder in zip(stores, recorders, strict=True):
        store.follow(store.position, recorder)
    threads = [threading.Thread(target=lambda store=store: [submit(store) for _ in range(20)]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for recorder in recorders:
        eventually(lambda recorder=recorder: len(recorder.changes) == 60, "for all changes")
        assert [change.event and change.event.revision for change in recorder.changes] == list(range(1, 61))


# A database that goes away.


def test_a_cut_connection_is_noticed_by_nobody(open_store: Opener, conninfo: str) -> None:
    store = open_store()
    job = submit(store)
    for _ in range(3):
        cut_all(conninfo)
        assert listed(store)[-1] == job.job_id
        submit(store)
    assert store.head_revision == 4


@pytest.mark.parametrize("is_committed", [True, False])
def test_what_has_come_of_a_commit_without_an_answer_is_looked_up(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    store = open_store()
    recorder = Recorder()
    store.follow(store.position, recorder)
    send = Writer._send
    cuts = iter([True])

    def lose_answer(writer: Writer, connection: Connection, *rest: object) -> None:
        is_cut = next(cuts, False)
        if is_committed or not is_cut:
            send(writer, connection, *rest)  # type: ignore[arg-type]
        if is_cut:
            connection.close()
            raise psycopg.OperationalError("the connection was cut")

    monkeypatch.setattr(Writer, "_send", lose_answer)
    jobs = [submit(store), submit(store)]
    assert [job.revision for job in jobs] == [1, 2]
    assert listed(store) == [job.job_id for job in jobs][::-1]
    assert [change.job.job_id for change in recorder.changes] == [job.job_id for job in jobs]


def test_a_lost_answer_that_can_not_be_looked_up_says_so_and_the_change_is_heard_of_later(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalrpc.store.postgres.writer._LOOK_UP_SECONDS", 0.0)
    store = open_store()
    recorder = Recorder()
    store.follow(store.position, recorder)
    send = Writer._send
    gone = threading.Event()

    def lose_answer(writer: Writer, connection: Connection, *rest: object) -> None:
        send(writer, connection, *rest)  # type: ignore[arg-type]
        connection.close()
        gone.set()
        raise psycopg.OperationalError("the connection was cut")

    def refuse(_: object) -> Connection:
        raise psycopg.OperationalError("nobody listens")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_send", lose_answer)
        patch.setattr("evalrpc.store.postgres.writer.connect_writer", lambda _: refuse(_) if gone.is_set() else None)
        with pytest.raises(StoreUnavailableError, match="nobody knows whether"):
            submit(store, "r")
    again = submit(store, "r")
    assert [change.job.job_id for change in recorder.changes] == [again.job_id]
    assert listed(store) == [again.job_id]


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    cluster = start_cluster(is_durable=True)
    yield cluster
    cluster.close()


@pytest.mark.slow
def test_nothing_that_was_acknowledged_is_lost_when_the_database_is_killed(own_cluster: Cluster, tmp_path: Path) -> None:
    acknowledged: list[str] = []
    refusals: list[str] = []
    with closing(PostgresStore(own_cluster.conninfo(), tmp_path / "data", CLOCK, 100_000)) as store:
        recorder, stop = Recorder(), threading.Event()
        store.follow(store.position, recorder)

        def keep_submitting() -> None:
            while not stop.is_set():
                try:
                    acknowledged.append(submit(store).job_id)
                except StoreUnavailableError as error:
                    refusals.append(error.message)
                    time.sleep(0.05)

        threads = [threading.Thread(target=keep_submitting) for _ in range(4)]
        for thread in threads:
            thread.start()
        for round_number in range(1, 4):
            eventually(lambda count=30 * round_number: len(acknowledged) > count, "for submissions")
            own_cluster.kill()
            own_cluster.start()
        count = len(acknowledged)
        eventually(lambda: len(acknowledged) > count, "for it to go on by itself")
        stop.set()
        for thread in threads:
            thread.join()
        assert set(acknowledged) <= set(listed(store, limit=10**6))
        submit(store)
        revisions = [change.event.revision for change in recorder.changes if change.event]
        assert revisions == list(range(1, store.head_revision + 1))
    assert all("try again" in refusal or "ask again" in refusal for refusal in refusals)


def test_while_the_database_is_gone_calls_say_so_and_what_to_do(own_cluster: Cluster, tmp_path: Path) -> None:
    with closing(PostgresStore(own_cluster.conninfo(), tmp_path / "data", CLOCK, 100)) as store:
        job = submit(store)
        own_cluster.kill()
        for call in (lambda: submit(store), lambda: listed(store)):
            with pytest.raises(StoreUnavailableError, match=r"the database postgres at .*; .*try again"):
                call()
        assert read(store, job.job_id) == job, "what is in memory is answered"
        good, detail = check_database(own_cluster.conninfo())
        assert (good, "can't be reached" in detail) == (False, True)
        own_cluster.start()
        assert submit(store).revision == 2
        assert check_database(own_cluster.conninfo())[0]


def test_a_database_that_is_not_there_keeps_a_store_from_opening_and_no_password_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"store: the database jobs at 127\.0\.0\.1 can't be used") as caught:
        PostgresStore("postgresql://me:geheim@127.0.0.1:1/jobs", tmp_path, CLOCK, 1)
    assert "geheim" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="must be as in") as caught:
        PostgresStore("postgresql://me:geheim@host/jobs?nonsense=1", tmp_path, CLOCK, 1)
    assert "geheim" not in str(caught.value)


def test_a_server_that_stops_within_a_commit_holds_up_the_others_for_a_while_only(
    open_store: Opener, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    job = submit(store)
    with psycopg.connect(conninfo, autocommit=True) as stopped:
        stopped.execute("SET idle_in_transaction_session_timeout = '0.3s'")
        stopped.execute("BEGIN")
        stopped.execute("SELECT FROM head FOR UPDATE")
        assert run(store, job.job_id).status == RUNNING
        with pytest.raises(psycopg.Error):
            stopped.execute("COMMIT")
        with contextlib.suppress(psycopg.Error):
            stopped.close()


# The lease.


class Runner:
    """A server that may run jobs, on a machine."""

    def __init__(self, store: PostgresStore, host: str = "alpha", seconds: float = 0.5) -> None:
        self.store = store
        self.runs, self.is_lost = threading.Event(), threading.Event()
        store.run_for(host, seconds, self.runs.set, self.is_lost.set)

    def begin(self, job_id: str) -> pb.JobInfo:
        return self.store.update_as_runner(job_id, begin).result(SECONDS)


def test_one_server_runs_the_jobs_until_it_gives_the_lease_back(open_store: Opener) -> None:
    first = Runner(open_store())
    assert first.runs.wait(SECONDS)
    second = Runner(open_store())
    job = submit(second.store)
    with pytest.raises(StoreUnavailableError, match="another server runs the jobs"):
        second.begin(job.job_id)
    assert first.begin(job.job_id).status == RUNNING
    first.store.stop_running()
    assert second.runs.wait(SECONDS)
    with pytest.raises(StoreUnavailableError, match="another server runs the jobs"):
        first.store.update_as_runner(job.job_id, complete).result(SECONDS)
    assert second.store.update_as_runner(job.job_id, complete).result(SECONDS).status == COMPLETED


def test_who_can_not_renew_the_lease_hears_of_it_before_another_server_gets_it(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Runner(open_store())
    assert first.runs.wait(SECONDS)
    assert first.store._lease is not None
    monkeypatch.setattr(first.store._lease, "_take", lambda: None)  # cut off
    second = Runner(open_store())
    assert second.runs.wait(SECONDS)
    assert first.is_lost.is_set()


def test_the_lease_passes_to_another_machine_only_without_runs(open_store: Opener, conninfo: str) -> None:
    first = Runner(open_store())
    assert first.runs.wait(SECONDS)
    job = submit(first.store)
    first.begin(job.job_id)
    first.store.stop_running()
    second = Runner(open_store(), "beta")
    with pytest.raises(ConfigurationError, match="the jobs ran on alpha, not on gamma"):
        give_up_host(conninfo, "gamma")
    assert not second.runs.is_set()
    give_up_host(conninfo, "alpha")
    assert second.runs.wait(SECONDS)
    with pytest.raises(ConfigurationError, match="a server on beta runs the jobs: stop it first"):
        give_up_host(conninfo, "beta")
    second.store.update_as_runner(job.job_id, complete).result(SECONDS)
    second.store.stop_running()
    assert Runner(open_store()).runs.wait(SECONDS), "nothing runs, so any machine may take over"


# Its folder and its schema.


def test_a_database_has_one_folder_and_no_server_on_sqlite_works_there(conninfo: str, tmp_path: Path) -> None:
    with closing(PostgresStore(conninfo, tmp_path / "data", CLOCK, 10)):
        with pytest.raises(DataDirectoryInUseError):
            open_sqlite(tmp_path / "data", 10)
        with pytest.raises(ConfigurationError, match="belongs to another data folder"):
            PostgresStore(conninfo, tmp_path / "other", CLOCK, 10)
    PostgresStore(conninfo, tmp_path / "data", CLOCK, 10).close()


def test_a_database_of_a_newer_version_is_refused(conninfo: str, tmp_path: Path) -> None:
    PostgresStore(conninfo, tmp_path, CLOCK, 10).close()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(ConfigurationError, match=f"version 99, and this evalrpc knows up to {len(MIGRATIONS)}"):
        PostgresStore(conninfo, tmp_path, CLOCK, 10)


def test_nothing_of_a_deleted_job_is_left_in_any_table(open_store: Opener, conninfo: str) -> None:
    store = open_store()
    job = submit(store, "secret-request", labels={"secret": "secret"}, request={"model": "secret", "tasks": ["secret"]})
    finish(store, job.job_id)
    store.delete(job.job_id).result(SECONDS)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        names = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        rows = [
            repr(row) for (name,) in connection.execute(names).fetchall() for row in connection.execute(f"SELECT * FROM {name}")
        ]
    assert [row for row in rows if "secret" in row] == []


def test_without_notifications_changes_are_found_by_looking(open_store: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(listening, "CHANNEL", "another")
    here, there = open_store(), open_store()
    job = submit(here)
    begun = here.update(job.job_id, begin).result(SECONDS)
    eventually(lambda: there.head_revision == begun.revision, "for the changes")


def cut_all(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'evalrpc'"
        ).fetchall()
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'evalrpc' AND query NOT LIKE 'LISTEN%'"
        eventually(lambda: connection.execute(left).fetchone() == (0,), "for the sessions to end")
