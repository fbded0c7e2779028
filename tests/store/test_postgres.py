"""What is the PostgreSQL store's own: several of them on one database, and a database that goes away."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
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

from evalrpc.clock import SystemClock
from evalrpc.errors import ConfigurationError, DataDirectoryInUseError, QueueFullError, StoreUnavailableError
from evalrpc.jobs.holds import QUEUE
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.store.base import Change, Submission
from evalrpc.store.postgres import checking, listening
from evalrpc.store.postgres import store as store_module
from evalrpc.store.postgres.checking import check_clock, check_database
from evalrpc.store.postgres.connecting import Connection
from evalrpc.store.postgres.hosts import give_up_host
from evalrpc.store.postgres.lease import Part
from evalrpc.store.postgres.migrations import MIGRATIONS
from evalrpc.store.postgres.progress import JobProgress
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


class ClockAhead(SystemClock):
    """The clock of a machine that is ahead by so many seconds, or behind."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def now(self) -> Timestamp:
        return Timestamp(seconds=super().now().seconds + self._seconds)


@pytest.mark.parametrize(("seconds", "words"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_clock_that_is_off_is_said_at_the_start_and_by_doctor(
    seconds: int, words: str, conninfo: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = rf"the clock of this machine is (3600|359\d|360\d)\.\d seconds {words} that of the database: .*; have NTP set both"
    PostgresStore(conninfo, tmp_path, ClockAhead(seconds), 1).close()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.match(said, warning)
    assert re.match(said, check_clock(conninfo, ClockAhead(seconds)))


def test_a_clock_that_is_right_is_not_spoken_of(conninfo: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PostgresStore(conninfo, tmp_path, SystemClock(), 1).close()
    assert not caplog.records
    assert not check_clock(conninfo)


def test_a_database_that_is_too_old_is_refused_at_the_start(
    conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_MIN_VERSION", 99_00_00)
    monkeypatch.setattr(store_module, "migrate", lambda _: pytest.fail("nothing may be made there"))
    with pytest.raises(ConfigurationError, match=r"setting store: the database .* has version \d+, and 13 or newer is needed"):
        PostgresStore(conninfo, tmp_path, SystemClock(), 1)


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

SHORT_SECONDS = 0.5
"""Of a lease that is to expire."""


class Runner:
    """A server that may run jobs, on a machine. Its lease does not expire by itself unless a test says so."""

    def __init__(self, store: PostgresStore, host: str = "alpha", seconds: float = 3600.0) -> None:
        self.store = store
        self.runs, self.places, self.is_lost = threading.Event(), threading.Event(), threading.Event()
        self.description = "{}"
        part = Part(host, lambda: self.description, self.runs.set, self.places.set, lambda reason: self.is_lost.set())
        store.take_part(part, seconds)

    def begin(self, job_id: str) -> pb.JobInfo:
        return self.store.update_as_runner(job_id, begin).result(SECONDS)

    def hosts(self) -> dict[str, bool]:
        return {host.name: host.is_reachable for host in self.store.hosts.hosts}


def test_one_server_of_a_machine_runs_its_jobs_until_it_gives_the_lease_back(open_store: Opener) -> None:
    first = Runner(open_store())
    assert first.places.wait(SECONDS)
    second = Runner(open_store())
    job = submit(second.store)
    with pytest.raises(StoreUnavailableError, match="another server sees to this job"):
        second.begin(job.job_id)
    assert first.begin(job.job_id).status == RUNNING
    first.store.stop_running()
    assert second.places.wait(SECONDS)
    with pytest.raises(StoreUnavailableError, match="another server sees to this job"):
        first.store.update_as_runner(job.job_id, complete).result(SECONDS)
    assert second.store.update_as_runner(job.job_id, complete).result(SECONDS).status == COMPLETED


def test_who_can_not_renew_a_lease_trusts_it_no_more_before_another_server_gets_it(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Runner(open_store(), seconds=SHORT_SECONDS)

    def cut(*_: object) -> None:
        raise psycopg.OperationalError("cut off")

    def begin_while_trusted() -> bool:
        with contextlib.suppress(StoreUnavailableError):  # on a busy machine it may be renewed too late
            return first.begin(job.job_id).status == RUNNING
        return False

    job = submit(first.store)
    eventually(begin_while_trusted, "for it to have the lease, and to trust it")
    assert first.store._leases is not None
    monkeypatch.setattr(first.store._leases, "_connected", cut)
    second = Runner(open_store(), seconds=SHORT_SECONDS)
    assert second.runs.wait(SECONDS)
    assert not first.store.is_trusted()
    with pytest.raises(StoreUnavailableError, match="another server sees to this job"):
        first.store.update_as_runner(job.job_id, complete).result(SECONDS)
    assert not first.is_lost.is_set(), "it can't know"
    monkeypatch.undo()
    assert first.is_lost.wait(SECONDS)


def test_each_machine_has_a_server_and_one_of_them_is_the_scheduler(open_store: Opener) -> None:
    first = Runner(open_store())
    assert first.places.wait(SECONDS)
    second = Runner(open_store(), "beta")
    assert second.runs.wait(SECONDS)
    assert not second.places.is_set()
    eventually(lambda: first.hosts() == second.hosts() == {"alpha": True, "beta": True}, "for each to know the other")
    first.store.stop_running(has_runs=True)
    assert second.places.wait(SECONDS)
    eventually(lambda: second.hosts() == {"alpha": False, "beta": True}, "for it to be out of reach")
    second.store.stop_running(has_runs=False)
    with closing(open_store()) as store:
        assert [host.name for host in store.hosts.hosts] == ["alpha"]


def test_what_a_machine_has_is_known_no_later_than_what_its_server_commits(open_store: Opener) -> None:
    first, second = Runner(open_store()), open_store()
    assert first.runs.wait(SECONDS)
    job = submit(first.store)
    seen: list[str] = []

    def look(changes: Sequence[Change]) -> None:
        seen.extend(second.hosts.hosts[0].description for change in changes if change.job.status == RUNNING)

    second.follow(second.position, look)
    first.description = "broken"
    first.begin(job.job_id)
    eventually(lambda: seen, "for the change")
    assert seen == ["broken"]


def test_a_machine_that_is_given_up_is_gone_and_its_server_hears_of_it(open_store: Opener, conninfo: str) -> None:
    first = Runner(open_store())
    assert first.runs.wait(SECONDS)
    job = submit(first.store)
    first.begin(job.job_id)
    with pytest.raises(ConfigurationError, match="a server on alpha sees to its runs: stop it first"):
        give_up_host(conninfo, "alpha")
    with pytest.raises(ConfigurationError, match="there is no host gamma, only: alpha"):
        give_up_host(conninfo, "gamma")
    with pytest.raises(ConfigurationError, match="there is no host , only: alpha"):
        give_up_host(conninfo, "")
    with psycopg.connect(conninfo, autocommit=True) as connection:  # it stands still
        connection.execute("UPDATE leases SET expires_at = clock_timestamp() - interval '1 hour'")
        with contextlib.suppress(ConfigurationError):  # it has gone on just before
            give_up_host(conninfo, "alpha")
            assert first.is_lost.wait(SECONDS)
            with pytest.raises(StoreUnavailableError, match="another server sees to this job"):
                first.store.update_as_runner(job.job_id, complete).result(SECONDS)


# Progress.


def test_progress_is_known_at_the_other_stores_once_in_order_and_also_where_it_comes_first(open_store: Opener) -> None:
    first, second = Runner(open_store()), open_store()
    assert first.runs.wait(SECONDS)
    heard: list[str] = []
    refused: list[str] = []

    def hear(progress: JobProgress) -> bool:
        if progress.job_id == "early" and not refused:
            refused.append(progress.job_id)
            return False
        heard.append(f"{progress.job_id}: {progress.unstored.wait_reason}")
        return True

    own: list[JobProgress] = []
    second.share_progress(hear)
    first.store.share_progress(lambda progress: own.append(progress) or True)

    def say(job_id: str, text: str) -> None:
        first.store.say_progress(JobProgress(job_id, 1, pb.JobInfo(wait_reason=text)))

    say("a", "one")
    eventually(lambda: heard == ["a: one"], "for it to be heard")
    say("a", "two")
    eventually(lambda: heard == ["a: one", "a: two"], "for what comes next")
    say("early", "x")
    eventually(lambda: heard[2:] == ["early: x"], "for it to be handed over again")
    with closing(open_store()) as third:
        late: list[str] = []
        third.share_progress(lambda progress: late.append(progress.job_id) or True)
        eventually(lambda: sorted(late) == ["a", "early"], "for the latest")
    first.store.forget_progress("a")
    first.store.forget_progress("early")

    def is_forgotten() -> bool:
        with second._readers.reading() as connection:
            return connection.execute("SELECT count(*) FROM progress").fetchone() == (0,)

    eventually(is_forgotten, "for it to be forgotten")
    assert not own


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
