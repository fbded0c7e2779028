"""What every store promises."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from example_count import example_count
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_jobs import (
    CLOCK,
    OPENERS,
    SECONDS,
    Gate,
    Opener,
    Recorder,
    begin,
    complete,
    events,
    finish,
    listed,
    new_job,
    nth,
    read,
    run,
    submit,
)
from waiting import eventually

from evalrpc.errors import (
    ChangesMissedError,
    ConflictError,
    IllegalTransitionError,
    JobFinishedError,
    JobNotFinishedError,
    JobNotFoundError,
    QueueFullError,
    RequestIdReusedError,
    RevisionCompactedError,
    RevisionInFutureError,
    RunFailedError,
    StoreUnavailableError,
)
from evalrpc.jobs import transitions
from evalrpc.jobs.filters import JobMatcher
from evalrpc.store.base import MAX_LISTED_BYTES, Change, Expected, PendingRemoval, Store, Submission
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.v1.results_pb2 import ModelResult

QUEUED, RUNNING = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED
NEVER = Timestamp()


# Submitting.


def delete(store: Store, job_id: str) -> None:
    finish(store, job_id)
    store.delete(job_id).result(SECONDS)


def test_a_submitted_job_is_queued_with_its_time_and_revision(store: Store) -> None:
    before = CLOCK.now().ToNanoseconds()
    job = submit(store, labels={"a": "b"}, priority=3)
    assert job.status == QUEUED
    assert before <= job.created_at.ToNanoseconds() <= CLOCK.now().ToNanoseconds()
    assert job.revision == store.head_revision == nth(store, 1)
    assert read(store, job.job_id) == job
    assert job.labels == {"a": "b"}


def test_the_submission_that_was_handed_over_is_not_modified(store: Store) -> None:
    job = new_job()
    store.submit(Submission(job)).result(SECONDS)
    assert job.status == pb.JOB_STATUS_UNSPECIFIED
    assert job.revision == 0


def test_everything_is_there_after_reopening(open_store: Opener) -> None:
    store = open_store()
    queued, running, done = submit(store), submit(store), submit(store)
    running, done = run(store, running.job_id), finish(store, done.job_id)
    journal, counts, head = events(store), dict(store.status_counts()), store.head_revision
    store.close()
    store = open_store()
    assert [read(store, job.job_id) for job in (queued, running, done)] == [queued, running, done]
    assert events(store) == journal
    assert {key: value for key, value in store.status_counts().items() if value} == {k: v for k, v in counts.items() if v}
    assert store.head_revision == head
    assert [row.job_id for row in store.queued_rows()] == [queued.job_id]
    assert [job for _, job in store.running_jobs()] == [running]
    assert submit(store).revision > head


def test_a_store_without_its_caches_answers_as_before(store: Store) -> None:
    jobs = [submit(store) for _ in range(3)]
    before = [read(store, job.job_id) for job in jobs]
    store.shrink()
    assert [read(store, job.job_id) for job in jobs] == before
    assert submit(store).revision > jobs[-1].revision


def test_a_request_id_gives_the_same_job_again_as_it_stands_now(open_store: Opener) -> None:
    store = open_store()
    job = submit(store, "r1", b"same")
    assert submit(store, "r1", b"same").job_id == job.job_id
    run(store, job.job_id)
    store.close()
    store = open_store()
    again = submit(store, "r1", b"same")
    assert (again.job_id, again.status) == (job.job_id, RUNNING)
    assert len(listed(store)) == 1
    assert store.head_revision == nth(store, 2)


def test_a_request_id_with_other_contents_is_refused_and_changes_nothing(store: Store) -> None:
    job = submit(store, "r1", b"one")
    with pytest.raises(RequestIdReusedError) as caught:
        submit(store, "r1", b"two")
    assert caught.value.metadata["request_id"] == "r1"
    assert listed(store) == [job.job_id]
    assert store.head_revision == job.revision


def test_what_was_submitted_is_found_by_its_request_id_owner_and_contents(store: Store) -> None:
    job = submit(store, "r1", b"one", owner="alice")
    run(store, job.job_id)
    found = store.find_submitted(Submission(pb.JobInfo(owner="alice"), "r1", b"one"))
    assert found == read(store, job.job_id), "as it stands now"
    for owner, request_id, fingerprint in (("bob", "r1", b"one"), ("alice", "r2", b"one"), ("alice", "r1", b"two")):
        assert store.find_submitted(Submission(pb.JobInfo(owner=owner), request_id, fingerprint)) is None


def test_the_same_request_id_in_one_commit_makes_one_job(store: Store) -> None:
    gate = Gate(store)
    futures = [store.submit(Submission(new_job(), "r1", b"f")) for _ in range(10)]
    gate.open()
    assert len({future.result(SECONDS).job_id for future in futures}) == 1
    assert len(listed(store)) == 2


def test_the_same_request_id_of_two_owners_is_two_jobs(open_store: Opener) -> None:
    store = open_store()
    gate = Gate(store)
    alices, bobs = (store.submit(Submission(new_job(owner=owner), "r1", owner.encode())) for owner in ("alice", "bob"))
    gate.open()
    alices_id, bobs_id = alices.result(SECONDS).job_id, bobs.result(SECONDS).job_id
    assert alices_id != bobs_id
    store.close()
    store = open_store()
    assert submit(store, "r1", b"alice", owner="alice").job_id == alices_id
    assert submit(store, "r1", b"bob", owner="bob").job_id == bobs_id
    assert submit(store, "r1", b"alice").job_id not in (alices_id, bobs_id), "whoever has not signed in is another one"
    with pytest.raises(RequestIdReusedError):
        submit(store, "r1", b"bob", owner="alice")


def test_without_a_request_id_every_call_makes_a_job(store: Store) -> None:
    assert len({submit(store).job_id for _ in range(3)}) == 3


def test_the_request_id_of_a_deleted_job_is_free_again(store: Store) -> None:
    job = submit(store, "r1", b"one")
    finish(store, job.job_id)
    store.delete(job.job_id).result(SECONDS)
    assert submit(store, "r1", b"two").job_id != job.job_id


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(open_store: Opener) -> None:
    store = open_store(max_queued=2)
    first, _ = submit(store), submit(store, "r2")
    with pytest.raises(QueueFullError) as caught:
        submit(store)
    assert caught.value.retry_delay_seconds
    assert submit(store, "r2").status == QUEUED, "what was accepted before can always be asked for again"
    run(store, first.job_id)
    submit(store)
    with pytest.raises(QueueFullError):
        submit(store)


def test_the_queue_is_as_full_after_reopening_as_before(open_store: Opener) -> None:
    store = open_store(max_queued=1)
    submit(store)
    store.close()
    store = open_store(max_queued=1)
    with pytest.raises(QueueFullError):
        submit(store)


def test_the_limit_holds_within_one_commit(open_store: Opener) -> None:
    store = open_store(max_queued=5)
    gate = Gate(store)
    futures = [store.submit(Submission(new_job())) for _ in range(20)]
    gate.open()
    refused = [future for future in futures if isinstance(future.exception(SECONDS), QueueFullError)]
    assert len(refused) == 16
    assert len(listed(store)) == 5


def test_a_new_job_supersedes_the_queued_ones_with_its_key_in_one_commit(store: Store) -> None:
    recorder = Recorder()
    old, other = submit(store, supersede_key="k"), submit(store, supersede_key="other")
    running = submit(store, supersede_key="k2")
    run(store, running.job_id)
    store.follow(store.position, recorder)
    new = submit(store, supersede_key="k")
    ended = read(store, old.job_id)
    assert (ended.status, ended.error.reason) == (CANCELLED, "SUPERSEDED")
    assert new.job_id in ended.error.message
    assert ended.HasField("completed_at")
    assert read(store, other.job_id).status == QUEUED
    assert [(change.job.job_id, change.job.status) for change in recorder.changes] == [
        (old.job_id, CANCELLED),
        (new.job_id, QUEUED),
    ]
    assert len(recorder.commits) == 1
    submit(store, supersede_key="k2")
    assert read(store, running.job_id).status == RUNNING, "only queued jobs are superseded"


def test_a_new_job_supersedes_only_those_of_its_owner(store: Store) -> None:
    owners = ["", "alice", "bob"]
    old = {owner: submit(store, supersede_key="k", owner=owner).job_id for owner in owners}
    new = submit(store, supersede_key="k", owner="alice")
    assert [read(store, old[owner]).status for owner in owners] == [QUEUED, CANCELLED, QUEUED]
    assert new.job_id in read(store, old["alice"]).error.message
    submit(store, supersede_key="k")
    assert [read(store, old[owner]).status for owner in owners] == [CANCELLED, CANCELLED, QUEUED]


def test_superseding_makes_room_in_a_full_queue(open_store: Opener) -> None:
    store = open_store(max_queued=1)
    submit(store, supersede_key="k")
    assert submit(store, supersede_key="k").status == QUEUED


def test_a_repeated_submission_does_not_supersede_its_own_job(store: Store) -> None:
    job = submit(store, "r1", supersede_key="k")
    assert submit(store, "r1", supersede_key="k").job_id == job.job_id
    assert read(store, job.job_id).status == QUEUED


# Changing.


def test_a_status_change_has_the_next_revision_and_its_event_in_the_journal(store: Store) -> None:
    job = submit(store)
    running = run(store, job.job_id)
    assert running.revision == nth(store, 2)
    last = events(store)[-1]
    assert (last.type, last.revision, last.terminal) == (pb.JOB_EVENT_TYPE_STATUS, running.revision, False)
    assert last.job == running
    done = store.update(job.job_id, complete).result(SECONDS)
    assert events(store)[-1].terminal
    assert events(store)[-1].job == done


def relabel(store: Store, job_id: str, **labels: str) -> pb.JobInfo:
    return store.update(job_id, lambda job: transitions.update(job, labels, None)).result(SECONDS)


def prioritise(store: Store, job_id: str, priority: int) -> pb.JobInfo:
    return store.update(job_id, lambda job: transitions.update(job, None, priority)).result(SECONDS)


def test_partial_results_make_no_event(store: Store) -> None:
    job = submit(store)
    run(store, job.job_id)
    recorder = Recorder()
    store.follow(store.position, recorder)
    results = {"m": ModelResult(results="/r.json")}
    changed = store.update(job.job_id, lambda job: transitions.keep_results(job, results)).result(SECONDS)
    assert changed.revision == store.head_revision == nth(store, 2)
    assert read(store, job.job_id).results["m"].results == "/r.json"
    assert len(events(store)) == 2
    (change,) = recorder.changes
    assert change.event is None
    assert not change.status_changed


@pytest.mark.parametrize(
    "change",
    [
        lambda job: transitions.update(job, {"a": "2"}, None),
        lambda job: transitions.update(job, {}, None),
        lambda job: transitions.update(job, None, 5),
        lambda job: transitions.request_cancel(job, "why", CLOCK.now()),
    ],
    ids=["labels", "no labels", "priority", "cancel"],
)
def test_what_clients_change_within_a_status_has_a_revision_and_an_event_of_its_own(
    store: Store, change: Callable[[pb.JobInfo], None]
) -> None:
    job = run(store, submit(store, labels={"a": "1"}).job_id)
    recorder = Recorder()
    store.follow(store.position, recorder)
    changed = store.update(job.job_id, change).result(SECONDS)
    assert changed.revision == store.head_revision == nth(store, 3)
    assert read(store, job.job_id) == changed
    last = events(store)[-1]
    assert (last.type, last.revision, last.terminal) == (pb.JOB_EVENT_TYPE_UPDATED, changed.revision, False)
    assert last.job == changed
    assert last.HasField("time")
    (told,) = recorder.changes
    assert told.event is not None
    assert told.event == store.events_after(job.revision, 10)[0]
    assert (told.previous, told.status_changed) == (RUNNING, False)


def test_an_update_that_changes_nothing_is_no_change(store: Store) -> None:
    job = run(store, submit(store, labels={"a": "1"}, priority=3).job_id)
    recorder = Recorder()
    store.follow(store.position, recorder)
    same = store.update(job.job_id, lambda job: transitions.update(job, {"a": "1"}, 3)).result(SECONDS)
    assert same == job
    assert store.head_revision == job.revision
    assert len(events(store)) == 2
    assert recorder.changes == []


def test_an_event_says_what_the_job_was_before(store: Store) -> None:
    job_id = submit(store, labels={"a": "1"}).job_id
    relabel(store, job_id, b="2")
    prioritise(store, job_id, 1)
    run(store, job_id)
    assert [(event.previous, event.labels_before) for event in store.events_after(0, 10)] == [
        (pb.JOB_STATUS_UNSPECIFIED, None),
        (QUEUED, {"a": "1"}),
        (QUEUED, None),
        (QUEUED, None),
    ]
    assert [event.type for event in events(store)] == [
        pb.JOB_EVENT_TYPE_STATUS,
        pb.JOB_EVENT_TYPE_UPDATED,
        pb.JOB_EVENT_TYPE_UPDATED,
        pb.JOB_EVENT_TYPE_STATUS,
    ]


def test_jobs_are_found_by_their_labels_of_now_and_queued_by_their_priority_of_now(open_store: Opener) -> None:
    store = open_store()
    job, other = submit(store, labels={"a": "1", "b": "1"}), submit(store)
    relabel(store, job.job_id, a="2", c="3")
    prioritise(store, job.job_id, 7)
    for _ in range(2):
        assert listed(store, labels={"a": "2"}) == listed(store, labels={"c": "3"}) == [job.job_id]
        assert listed(store, labels={"a": "1"}) == listed(store, labels={"b": "1"}) == []
        assert [(row.job_id, row.priority) for row in store.queued_rows()] == [(job.job_id, 7), (other.job_id, 0)]
        store.close()
        store = open_store()
    delete(store, job.job_id)
    assert listed(store, labels={"a": "2"}) == []


def test_a_job_can_be_submitted_changed_and_deleted_in_one_commit(store: Store) -> None:
    job = new_job(labels={"a": "1"})
    gate = Gate(store)
    steps: list[Future[Any]] = [
        store.submit(Submission(job)),
        store.update(job.job_id, lambda job: transitions.update(job, {"a": "2"}, 4)),
        store.update(job.job_id, begin),
        store.update(job.job_id, lambda job: transitions.update(job, {"b": "3"}, None)),
    ]
    gate.open()
    for step in steps:
        step.result(SECONDS)
    assert listed(store, labels={"b": "3"}) == [job.job_id]
    assert listed(store, labels={"a": "1"}) == listed(store, labels={"a": "2"}) == []
    gate = Gate(store)
    steps = [store.update(job.job_id, complete), store.delete(job.job_id)]
    gate.open()
    for step in steps:
        step.result(SECONDS)
    kinds = [event.type for event in events(store) if event.job.job_id == job.job_id]
    assert kinds == [pb.JOB_EVENT_TYPE_DELETED] * 6
    assert listed(store, labels={"b": "3"}) == []


def test_what_the_lifecycle_forbids_is_refused_and_changes_nothing(store: Store) -> None:
    job = submit(store)
    with pytest.raises(IllegalTransitionError):
        store.update(job.job_id, complete).result(SECONDS)
    assert read(store, job.job_id) == job
    assert store.head_revision == job.revision
    done = finish(store, job.job_id)
    for change in (begin, lambda job: transitions.fail(job, pb.JobError(reason="X"), CLOCK.now())):
        with pytest.raises(IllegalTransitionError):
            store.update(job.job_id, change).result(SECONDS)
    assert read(store, job.job_id) == done


def test_a_second_step_of_the_same_kind_is_refused_though_the_status_would_stay(store: Store) -> None:
    job_id = submit(store).job_id
    running = run(store, job_id)
    with pytest.raises(IllegalTransitionError):
        run(store, job_id)
    assert read(store, job_id) == running
    done = store.update(job_id, complete).result(SECONDS)
    with pytest.raises(IllegalTransitionError):
        store.update(job_id, complete).result(SECONDS)
    assert read(store, job_id) == done


def test_an_update_of_a_job_that_is_not_as_expected_is_refused_and_never_runs(store: Store) -> None:
    job_id = submit(store).job_id
    changed: list[pb.JobInfo] = []
    for expect in (Expected(RUNNING), Expected(QUEUED, 1), Expected(attempt=1)):
        with pytest.raises(ConflictError):
            store.update(job_id, changed.append, expect).result(SECONDS)
    assert changed == []
    assert store.update(job_id, begin, Expected(QUEUED, 0)).result(SECONDS).status == RUNNING
    with pytest.raises(ConflictError, match="it is RUNNING, with 1 attempts"):
        store.update(job_id, complete, Expected(RUNNING, 2)).result(SECONDS)
    assert store.update(job_id, complete, Expected(RUNNING, 1)).result(SECONDS).status == COMPLETED


def test_an_update_that_expects_another_revision_is_refused_with_that_of_now(store: Store) -> None:
    job = submit(store)
    changed = prioritise(store, job.job_id, 1)
    with pytest.raises(ConflictError) as caught:
        store.update(job.job_id, begin, Expected(revision=job.revision)).result(SECONDS)
    assert caught.value.metadata == {"revision": str(changed.revision)}
    assert read(store, job.job_id) == changed
    assert store.update(job.job_id, begin, Expected(revision=changed.revision)).result(SECONDS).status == RUNNING


def test_of_two_updates_that_expect_the_same_in_one_commit_the_first_counts(store: Store) -> None:
    job_id = submit(store).job_id
    gate = Gate(store)
    first, second = (store.update(job_id, begin, Expected(QUEUED, 0)) for _ in range(2))
    gate.open()
    assert first.result(SECONDS).attempt == 1
    with pytest.raises(ConflictError):
        second.result(SECONDS)


def test_a_change_that_raises_leaves_the_job_as_it_was(store: Store) -> None:
    job = finish(store, submit(store).job_id)

    def refuse(job: pb.JobInfo) -> None:
        job.priority = 77
        raise JobFinishedError("no")

    with pytest.raises(JobFinishedError):
        store.update(job.job_id, refuse).result(SECONDS)
    assert read(store, job.job_id) == job


def test_a_refused_write_leaves_its_neighbours_in_the_commit_alone(store: Store) -> None:
    job = submit(store)
    gate = Gate(store)
    head = store.head_revision
    futures: list[Future[Any]] = [
        store.submit(Submission(new_job())),
        store.update(job.job_id, complete),
        store.update("nobody", begin),
        store.delete(job.job_id),
        store.update(job.job_id, begin),
        store.submit(Submission(new_job())),
        store.update(job.job_id, complete),
    ]
    gate.open()
    outcomes = [type(error).__name__ if (error := future.exception(SECONDS)) else "done" for future in futures]
    assert outcomes == ["done", "IllegalTransitionError", "JobNotFoundError", "JobNotFinishedError", "done", "done", "done"]
    revisions = [future.result().revision for future in futures if not future.exception()]
    assert revisions == [head + nth(store, number) for number in range(1, 5)]
    assert read(store, job.job_id).status == COMPLETED


def test_an_unknown_job_is_not_found(store: Store) -> None:
    for ask in (lambda: store.job("x"), lambda: run(store, "x"), lambda: store.delete("x").result(SECONDS)):
        with pytest.raises(JobNotFoundError) as caught:
            ask()
        assert caught.value.metadata["resource_name"] == "x"
    assert store.cached_job("x") is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_write_that_its_caller_gave_up_is_committed_with_the_others(store: Store) -> None:
    gate = Gate(store)
    given_up, kept = (store.submit(Submission(new_job())) for _ in range(2))
    assert not given_up.cancel()
    gate.open()
    assert given_up.result(SECONDS).status == kept.result(SECONDS).status == QUEUED
    assert submit(store).status == QUEUED


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # a bug ends the writer thread, as it should
def test_a_bug_in_a_change_leaves_no_caller_waiting(store: Store) -> None:
    gate = Gate(store)
    job_id = listed(store)[0]

    def bug(job: pb.JobInfo) -> None:
        raise ZeroDivisionError

    futures = [store.update(job_id, bug), store.submit(Submission(new_job()))]
    gate.open()
    store.wait_closed()
    for future in futures:
        assert future.exception(SECONDS) is not None
    with pytest.raises(StoreUnavailableError):
        submit(store)


def test_many_writers_at_once_lose_nothing_and_share_commits(store: Store) -> None:
    recorder = Recorder()
    store.follow(store.position, recorder)
    ids: list[str] = []

    def work() -> None:
        ids.extend(submit(store).job_id for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == sorted(listed(store))
    assert [change.job.revision for change in recorder.changes] == [nth(store, number) for number in range(1, 401)]
    numbers = [change.number for change in recorder.changes]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == store.position
    assert store.status_counts()[QUEUED] == 400


def test_writes_that_wait_are_committed_together(store: Store) -> None:
    recorder = Recorder()
    gate = Gate(store)
    store.follow(store.position, recorder)
    futures = [store.submit(Submission(new_job())) for _ in range(100)]
    gate.open()
    for future in futures:
        future.result(SECONDS)
    assert max(len(commit) for commit in recorder.commits) == 100


# Listeners.


def test_listeners_are_notified_in_order_and_before_the_caller(store: Store) -> None:
    notified: list[tuple[str, int]] = []
    first_told = threading.Event()
    release = threading.Event()

    def slow(changes: Sequence[Change]) -> None:
        notified.extend(("first", change.job.revision) for change in changes)
        first_told.set()
        assert release.wait(SECONDS)

    store.follow(store.position, slow)
    store.follow(store.position, lambda changes: notified.extend(("second", change.job.revision) for change in changes))
    future = store.submit(Submission(new_job()))
    assert first_told.wait(SECONDS)
    assert not future.done(), "a caller must not know before the listeners"
    assert store.head_revision == nth(store, 1), "a listener finds what it is notified of"
    release.set()
    future.result(SECONDS)
    assert notified == [("first", nth(store, 1)), ("second", nth(store, 1))]


def test_a_listener_that_hears_of_a_job_can_read_it(store: Store) -> None:
    read_back: list[tuple[int, int]] = []
    store.follow(
        store.position, lambda changes: read_back.extend((read(store, c.job.job_id).revision, c.job.revision) for c in changes)
    )
    finish(store, submit(store).job_id)
    assert read_back == [(nth(store, number), nth(store, number)) for number in (1, 2, 3)]


def test_every_change_has_a_number_also_one_without_a_revision(store: Store) -> None:
    recorder = Recorder()
    store.follow(store.position, recorder)
    job_id = submit(store).job_id
    run(store, job_id)
    store.update(job_id, lambda job: transitions.keep_results(job, {"m": ModelResult()})).result(SECONDS)
    store.update(job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now())).result(SECONDS)
    store.update(job_id, lambda job: transitions.cancel(job, CLOCK.now())).result(SECONDS)
    store.delete(job_id).result(SECONDS)
    numbers = [change.number for change in recorder.changes]
    assert len(numbers) == 6
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == store.position


def test_whoever_follows_from_a_position_that_is_past_has_to_read_again(store: Store) -> None:
    position = store.position
    submit(store)
    with pytest.raises(ChangesMissedError):
        store.follow(position, Recorder())
    recorder = Recorder()
    store.follow(store.position, recorder)
    job = submit(store)
    assert [change.job for change in recorder.changes] == [job]


def test_a_change_says_what_was_before_and_where_the_job_stands_in_the_order_of_arrival(store: Store) -> None:
    recorder = Recorder()
    store.follow(store.position, recorder)
    first = submit(store)
    second = submit(store)
    finish(store, first.job_id)
    store.delete(first.job_id).result(SECONDS)
    seen = [(change.previous, change.job.status, change.deleted, change.status_changed) for change in recorder.changes]
    assert seen == [
        (pb.JOB_STATUS_UNSPECIFIED, QUEUED, False, True),
        (pb.JOB_STATUS_UNSPECIFIED, QUEUED, False, True),
        (QUEUED, RUNNING, False, True),
        (RUNNING, COMPLETED, False, True),
        (COMPLETED, COMPLETED, True, False),
    ]
    sequences = {change.job.job_id: change.sequence for change in recorder.changes}
    assert sequences[first.job_id] < sequences[second.job_id]
    for change in recorder.changes:
        assert change.event is not None
        if not change.deleted:
            assert change.event.parse().job == change.job


# Deleting.


@pytest.mark.parametrize("make", [lambda store, job: job, lambda store, job: run(store, job.job_id)])
def test_a_live_job_can_not_be_deleted(store: Store, make: Callable[[Store, pb.JobInfo], pb.JobInfo]) -> None:
    job = make(store, submit(store))
    with pytest.raises(JobNotFinishedError):
        store.delete(job.job_id).result(SECONDS)
    assert read(store, job.job_id) == job


def test_a_deleted_job_is_gone_and_its_events_are_blank(open_store: Opener) -> None:
    store = open_store()
    job, other = submit(store, labels={"a": "b"}), submit(store)
    relabel(store, job.job_id, a="c")
    finish(store, job.job_id)
    recorder = Recorder()
    store.follow(store.position, recorder)
    journal = events(store)
    store.delete(job.job_id).result(SECONDS)
    revision = nth(store, 6)
    (change,) = recorder.changes
    assert change.deleted
    assert change.event == store.events_after(nth(store, 5), 10)[0]
    for _ in range(2):
        assert store.head_revision == revision
        assert store.cached_job(job.job_id) is None
        with pytest.raises(JobNotFoundError):
            store.job(job.job_id)
        with pytest.raises(JobNotFoundError):
            events(store, job_id=job.job_id)
        assert listed(store) == [other.job_id]
        assert listed(store, labels={"a": "c"}) == []
        assert store.status_counts()[COMPLETED] == 0
        blanked = events(store)
        assert [event.revision for event in blanked] == [*(event.revision for event in journal), revision]
        for before, event in zip(journal, blanked, strict=False):
            gone = pb.JobInfo(job_id=job.job_id, revision=event.revision)
            kind = pb.JOB_EVENT_TYPE_DELETED
            if event.job.job_id == job.job_id:
                assert event == pb.JobEvent(type=kind, revision=event.revision, time=before.time, job=gone, terminal=True)
            else:
                assert event == before
        assert (blanked[-1].type, blanked[-1].job.job_id, blanked[-1].terminal) == (kind, job.job_id, True)
        assert all(event.previous is None and event.labels_before is None for event in store.events_after(nth(store, 2), 10))
        store.close()
        store = open_store()
    assert submit(store).revision == nth(store, 7)


def test_a_deletion_is_compacted_as_any_event_and_its_revision_never_comes_again(open_store: Opener) -> None:
    store = open_store()
    delete(store, submit(store).job_id)
    assert store.compact(nth(store, 2), NEVER).result(SECONDS) == nth(store, 2)
    assert [event.type for event in events(store, after=nth(store, 2))] == [pb.JOB_EVENT_TYPE_DELETED] * 2
    later = Timestamp()
    later.FromNanoseconds(CLOCK.now().ToNanoseconds() + 10**9)
    assert store.compact(1000, later).result(SECONDS) == nth(store, 4)
    store.close()
    store = open_store()
    assert (store.head_revision, store.oldest_revision) == (nth(store, 4), nth(store, 4))
    assert submit(store).revision == nth(store, 5)


steps = st.lists(
    st.tuples(
        st.sampled_from(["submit", "begin", "complete", "lose", "labels", "priority", "cancel", "delete"]), st.integers(0, 3)
    ),
    max_size=40,
)


@settings(
    max_examples=example_count(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=steps)
def test_revisions_grow_with_every_event_and_the_journal_is_what_followers_heard_but_for_deleted_jobs(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int]]
) -> None:
    changes: dict[str, Callable[[pb.JobInfo], None]] = {
        "begin": begin,
        "complete": complete,
        "lose": lambda job: transitions.fail(job, pb.JobError(reason="R"), CLOCK.now()),
        "labels": lambda job: transitions.update(job, {"a": str(len(job.attempts)), "b": str(job.priority)}, None),
        "priority": lambda job: transitions.update(job, None, job.priority + 1),
        "cancel": lambda job: transitions.request_cancel(job, "", CLOCK.now()),
    }
    for name in OPENERS:
        store = OPENERS[name](tmp_path_factory.mktemp("store") / "data", 1000)
        try:
            recorder = Recorder()
            store.follow(store.position, recorder)
            ids: list[str] = []
            writes: list[Future[Any]] = []
            for kind, number in script:
                job_id = ids[number % len(ids)] if ids else "nobody"
                if kind == "submit":
                    ids.append(submit(store).job_id)
                elif kind == "delete":
                    writes.append(store.delete(job_id))
                else:
                    writes.append(store.update(job_id, changes[kind]))
            for write in writes:
                write.exception(SECONDS)
            heard = [change.event for change in recorder.changes if change.event is not None]
            revisions = [event.revision for event in heard]
            assert revisions == [nth(store, number + 1) for number in range(len(heard))]
            assert store.head_revision == max(revisions, default=0)
            gone = {change.job.job_id for change in recorder.changes if change.deleted}
            for event, journalled in zip(heard, store.events_after(0, 1000), strict=True):
                assert event.revision == journalled.revision
                if journalled.parse().job.job_id in gone:
                    assert journalled.parse().type == pb.JOB_EVENT_TYPE_DELETED
                else:
                    assert event == journalled
            for job_id in set(ids) - gone:
                assert read(store, job_id) == events(store, job_id=job_id)[-1].job
                assert listed(store, labels=dict(read(store, job_id).labels)).count(job_id) == 1
        finally:
            store.close()


# Listing.


def test_jobs_are_listed_newest_first_page_by_page(store: Store) -> None:
    ids = [submit(store).job_id for _ in range(7)]
    assert listed(store) == ids[::-1]
    paged: list[str] = []
    before: int | None = None
    while page := store.list_jobs(JobFilter(), before, 3):
        paged += [job.job_id for _, job in page]
        before = page[-1].sequence
        submit(store)  # arrives while one pages: in a new listing only
    assert paged == ids[::-1]


LARGE_FILTERS = [
    {},
    {"job_id_prefix": "aaaaaaaa"},
    {"labels": {"large": "yes"}},
    {"label_selector": "large,!other"},
    {"tasks": ["t"], "statuses": [QUEUED]},
    {"created_after": Timestamp(seconds=1)},
]


@pytest.mark.parametrize("conditions", LARGE_FILTERS)
def test_no_more_jobs_are_read_than_the_bytes_of_a_page(store: Store, conditions: dict[str, Any]) -> None:
    ids = [
        submit(store, job_id=f"aaaaaaaa-0000-4000-8000-00000000000{n}", labels={"large": "yes", "text": "x" * 10_000}).job_id
        for n in range(7)
    ]
    found: list[list[str]] = []
    before: int | None = None
    while page := store.list_jobs(JobFilter(**conditions), before, 1000, 20_001):
        found.append([job.job_id for _, job in page])
        before = page[-1].sequence
    assert found == [ids[6:4:-1], ids[4:2:-1], ids[2:0:-1], ids[0:1]]
    assert [len(store.list_jobs(JobFilter(**conditions), None, 1000, bound)) for bound in (1, 10**9)] == [1, 7]


def test_no_more_events_are_read_than_the_bytes_of_a_page(store: Store) -> None:
    for _ in range(6):
        submit(store, labels={"text": "x" * 1_000_000})
    first = store.events_after(0, 1000)
    assert MAX_LISTED_BYTES <= sum(len(event.event) for event in first) <= MAX_LISTED_BYTES + 1_100_000
    rest = store.events_after(first[-1].revision, 1000)
    assert len(first) + len(rest) == 6
    assert rest[-1].revision == store.head_revision


def test_a_page_stays_in_place_while_jobs_are_deleted_and_changed(store: Store) -> None:
    ids = [submit(store).job_id for _ in range(6)]
    first = store.list_jobs(JobFilter(), None, 2)
    finish(store, ids[4])
    store.delete(ids[4]).result(SECONDS)
    run(store, ids[3])
    assert listed(store, before=first[-1].sequence) == ids[3::-1]


times = st.integers(0, 5)
made_jobs = st.lists(
    st.tuples(
        st.sampled_from(["m1", "m2"]),
        st.lists(st.sampled_from(["t1", "t2", "t3"]), min_size=1, max_size=3, unique=True),
        st.sampled_from(["h1", "h2"]),
        st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"])),
        st.sampled_from(["queued", "running", "completed"]),
    ),
    max_size=8,
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "statuses": st.lists(st.sampled_from([QUEUED, RUNNING, COMPLETED, FAILED]), max_size=3),
        "models": st.lists(st.sampled_from(["m1", "m2", "m3"]), max_size=2),
        "tasks": st.lists(st.sampled_from(["t1", "t2", "t9"]), max_size=2),
        "harnesses": st.lists(st.sampled_from(["h1", "h2"]), max_size=2),
        "labels": st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"])),
    },
)


@settings(max_examples=example_count(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=made_jobs, conditions=filters, after=st.none() | times, before=st.none() | times)
def test_every_filter_takes_just_the_jobs_that_match(
    tmp_path_factory: pytest.TempPathFactory, made: list[Any], conditions: dict[str, Any], after: int | None, before: int | None
) -> None:
    for name in OPENERS:
        store = OPENERS[name](tmp_path_factory.mktemp("store") / "data", 1000)
        try:
            jobs: list[pb.JobInfo] = []
            for model, tasks, harness, labels, state in made:
                job = submit(store, request={"model": model, "tasks": tasks, "harness": harness}, labels=labels)
                if state == "running":
                    job = run(store, job.job_id)
                elif state == "completed":
                    job = finish(store, job.job_id)
                jobs.append(job)
            job_filter = JobFilter(**conditions)
            if jobs and after is not None:
                job_filter.created_after.CopyFrom(jobs[after % len(jobs)].created_at)
            if jobs and before is not None:
                job_filter.created_before.CopyFrom(jobs[before % len(jobs)].created_at)
            expected = [job for job in jobs[::-1] if JobMatcher(job_filter).matches(job)]
            assert [job for _, job in store.list_jobs(job_filter, None, 100)] == expected
            assert [job for _, job in store.list_jobs(job_filter, None, 2)] == expected[:2]
        finally:
            store.close()


def test_a_filter_means_what_the_schema_says(store: Store) -> None:
    a = submit(store, request={"model": "m1", "tasks": ["t1", "t2"]}, labels={"x": "1", "y": "2"})
    b = submit(store, request={"model": "m2", "tasks": ["t2"], "harness": "h2"}, labels={"x": "1"})
    assert listed(store, models=["m1", "m2"]) == [b.job_id, a.job_id]
    assert listed(store, tasks=["t1"]) == [a.job_id]
    assert listed(store, tasks=["t1", "t2"]) == [b.job_id, a.job_id], "any of the tasks suffices"
    assert listed(store, labels={"x": "1", "y": "2"}) == [a.job_id], "all labels must hold"
    assert listed(store, harnesses=["h2"], models=["m1"]) == []
    assert listed(store, created_after=b.created_at) == [b.job_id], "created at this time or later"
    assert listed(store, created_before=b.created_at) == [a.job_id], "created before this time"
    assert listed(store, statuses=[CANCELLED]) == []
    c = submit(store, owner="alice")
    assert listed(store, owners=["alice"]) == [c.job_id]
    assert listed(store, owners=[""]) == [b.job_id, a.job_id], "the empty text stands for jobs without an owner"
    assert listed(store, owners=["alice", ""]) == [c.job_id, b.job_id, a.job_id], "any of the owners suffices"
    assert listed(store, owners=["bob"]) == []


# The journal.


def test_events_are_given_in_order_after_a_revision_and_of_one_job_if_asked(store: Store) -> None:
    first, second = submit(store), submit(store)
    finish(store, first.job_id)
    revisions = [nth(store, number) for number in (1, 2, 3, 4)]
    assert [event.revision for event in events(store)] == revisions
    assert [event.revision for event in events(store, after=revisions[1])] == revisions[2:]
    assert [event.revision for event in events(store, after=revisions[0], limit=2)] == revisions[1:3]
    assert [event.revision for event in events(store, job_id=second.job_id)] == [second.revision]
    assert events(store, after=revisions[3]) == []


def test_events_are_given_of_the_jobs_of_one_owner_if_asked_even_once_these_are_deleted(open_store: Opener) -> None:
    store = open_store()
    alices, bobs, nobodys = (finish(store, submit(store, owner=owner).job_id) for owner in ("alice", "bob", ""))
    store.delete(alices.job_id).result(SECONDS)

    def check() -> None:
        for owner, job, numbers in (("alice", alices, [1, 2, 3, 10]), ("bob", bobs, [4, 5, 6]), ("", nobodys, [7, 8, 9])):
            found = store.events_after(0, 100, owner=owner)
            assert [event.revision for event in found] == [nth(store, number) for number in numbers]
            assert {event.owner for event in found} == {owner}
            assert {event.parse().job.job_id for event in found} == {job.job_id}
            assert [event.revision for event in store.events_after(nth(store, numbers[0]), 1, owner=owner)] == [
                nth(store, numbers[1])
            ]
        assert store.events_after(0, 100, owner="carol") == []
        assert [event.owner for event in store.events_after(0, 100)] == ["alice"] * 3 + ["bob"] * 3 + [""] * 3 + ["alice"]

    check()
    store.close()
    store = open_store()
    check()


def test_a_revision_beyond_the_head_is_in_the_future(store: Store) -> None:
    head = submit(store).revision
    with pytest.raises(RevisionInFutureError) as caught:
        store.events_after(head + 1, 10)
    assert caught.value.metadata == {"head_revision": str(head)}


def test_compaction_keeps_the_newest_events_and_says_where_the_journal_begins(open_store: Opener) -> None:
    store = open_store()
    for _ in range(10):
        submit(store)
    assert store.oldest_revision == 0
    revisions = [nth(store, number) for number in range(1, 11)]
    assert store.compact(nth(store, 4), NEVER).result(SECONDS) == revisions[5]
    for _ in range(2):
        assert store.oldest_revision == revisions[5]
        assert [event.revision for event in events(store, after=revisions[5])] == revisions[6:]
        with pytest.raises(RevisionCompactedError) as caught:
            store.events_after(revisions[4], 10)
        assert caught.value.metadata == {"oldest_revision": str(revisions[5])}
        assert store.head_revision == revisions[9]
        store.close()
        store = open_store()


def test_old_events_are_dropped_by_age_and_the_head_stays(open_store: Opener) -> None:
    store = open_store()
    for _ in range(3):
        submit(store)
    later = Timestamp()
    later.FromNanoseconds(CLOCK.now().ToNanoseconds() + 10**9)
    assert store.compact(1000, later).result(SECONDS) == nth(store, 3)
    assert store.events_after(nth(store, 3), 10) == []
    store.close()
    store = open_store()
    assert (store.head_revision, store.oldest_revision) == (nth(store, 3), nth(store, 3))
    assert submit(store).revision == nth(store, 4)


def test_compacting_again_or_with_nothing_to_drop_changes_nothing(store: Store) -> None:
    submit(store)
    one = nth(store, 1)
    assert store.compact(10 * one, NEVER).result(SECONDS) < one
    assert store.compact(one, NEVER).result(SECONDS) < one
    assert len(events(store, after=store.oldest_revision)) == 1
    submit(store)
    assert store.compact(one, NEVER).result(SECONDS) == one
    assert store.compact(one, NEVER).result(SECONDS) == one


def journal_bytes(store: Store) -> list[int]:
    """Return how much each event counts."""
    return [len(event.event) for event in store.events_after(store.oldest_revision, 10_000)]


def test_the_oldest_events_are_dropped_until_the_others_fit_into_a_number_of_bytes(open_store: Opener) -> None:
    store = open_store()
    for number in range(10):
        submit(store, request={"model": "m" * (1 + 100 * number)})
    sizes = journal_bytes(store)
    assert store.compact(10**6, NEVER, sum(sizes)).result(SECONDS) == 0
    assert store.compact(10**6, NEVER, sum(sizes) - 1).result(SECONDS) == nth(store, 1)
    for _ in range(2):
        assert store.compact(10**6, NEVER, sum(sizes[4:])).result(SECONDS) == nth(store, 4)
        assert journal_bytes(store) == sizes[4:]
        store.close()
        store = open_store()  # the size is known again
    submit(store)
    sizes = journal_bytes(store)
    assert store.compact(10**6, NEVER, sum(sizes[1:])).result(SECONDS) == nth(store, 5)
    assert store.compact(10**6, NEVER, 1).result(SECONDS) == store.head_revision
    assert events(store, after=store.oldest_revision) == []
    submit(store)
    assert store.compact(10**6, NEVER, sum(journal_bytes(store))).result(SECONDS) == nth(store, 11)


def test_events_that_are_large_are_dropped_some_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.store.compaction.CHUNK_BYTES", 1000)
    for _ in range(6):
        submit(store, request={"model": "m" * 300})
    oldest = [store.compact(1, NEVER).result(SECONDS) for _ in range(5)]
    assert oldest == sorted(oldest)
    assert 0 < oldest[0] < oldest[-1] == nth(store, 5)


def test_a_deleted_job_leaves_the_folders_outside_of_the_data_folder_to_be_removed(open_store: Opener) -> None:
    store = open_store()
    inside, outside = submit(store), submit(store, request={"output_dir": "mine"})
    path = Path("/root/mine") / outside.job_id
    for job in (inside, outside):
        folder = str(path / "attempt-1")
        store.update(job.job_id, partial(transitions.begin_attempt, gpus=(), output_dir=folder, now=CLOCK.now())).result(
            SECONDS
        )
        store.update(job.job_id, complete).result(SECONDS)
    assert store.pending_removals() == []
    for job in (inside, outside):
        store.delete(job.job_id).result(SECONDS)
    for _ in range(2):
        assert store.pending_removals() == [PendingRemoval(outside.job_id, path)]
        store.close()
        store = open_store()
    store.forget_removal(str(path)).result(SECONDS)
    assert store.pending_removals() == []


def test_nobody_reads_past_a_gap_while_the_journal_is_compacted(store: Store) -> None:
    """Every answer is complete from its `after` on, or says that it can't be."""
    stop = threading.Event()
    problems: list[str] = []

    def follow() -> None:
        after = 0
        while not stop.is_set():
            try:
                page = store.events_after(after, 5)
            except RevisionCompactedError as error:
                after = int(error.metadata["oldest_revision"])
                continue
            except RevisionInFutureError as error:
                problems.append(f"a revision that the journal itself gave: {error}")
                return
            if [event.revision for event in page] != [after + nth(store, number + 1) for number in range(len(page))]:
                problems.append(f"after {after}: {[event.revision for event in page]}")
            if page:
                after = page[-1].revision

    readers = [threading.Thread(target=follow) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(60):
        submit(store)
        store.compact(nth(store, 3), NEVER).result(SECONDS)
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems


# Reading while others write.


def test_a_read_never_gives_a_state_that_a_caller_knows_to_be_out_of_date(store: Store) -> None:
    ids = [submit(store).job_id for _ in range(4)]
    known = dict.fromkeys(ids, 0)
    deleted: set[str] = set()
    stop = threading.Event()
    problems: list[str] = []

    def watch() -> None:
        while not stop.is_set():
            for job_id in ids:
                floor, gone = known[job_id], job_id in deleted
                for source in (store.job, store.cached_job):
                    try:
                        stored = source(job_id)
                    except JobNotFoundError:
                        stored = None
                    if stored is None:
                        continue
                    if gone:
                        problems.append("a deleted job came back")
                    elif stored.parse().priority < floor:
                        problems.append("an old state came back")

    def write(job_id: str) -> None:
        def set_priority(number: int) -> Callable[[pb.JobInfo], None]:
            return lambda job: setattr(job, "priority", number)

        for number in range(1, 30):
            store.update(job_id, set_priority(number)).result(SECONDS)
            known[job_id] = number
        finish(store, job_id)
        store.delete(job_id).result(SECONDS)
        deleted.add(job_id)

    readers = [threading.Thread(target=watch) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(job_id,)) for job_id in ids]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    eventually(lambda: len(deleted) == len(ids))
    stop.set()
    for thread in readers:
        thread.join()
    assert not problems


def test_counts_follow_every_change(store: Store) -> None:
    ids = [submit(store).job_id for _ in range(4)]
    run(store, ids[0])
    finish(store, ids[1])
    store.update(ids[2], lambda job: transitions.request_cancel(job, "", CLOCK.now())).result(SECONDS)
    counts = {status: count for status, count in store.status_counts().items() if count}
    assert counts == {QUEUED: 1, RUNNING: 1, COMPLETED: 1, CANCELLED: 1}


def test_the_queue_can_be_built_again_from_the_rows(store: Store) -> None:
    plain = submit(store)
    urgent = submit(store, priority=7, request={"num_gpus": 0})
    tried = run(store, submit(store, request={"num_gpus": 3}).job_id)
    store.update(tried.job_id, lambda job: setattr(job, "max_attempts", 2)).result(SECONDS)
    tried = store.update(tried.job_id, lambda job: transitions.fail(job, pb.JobError(reason="RUN_LOST"), CLOCK.now())).result(
        SECONDS
    )
    running = run(store, submit(store).job_id)
    finish(store, submit(store).job_id)
    rows = store.queued_rows()
    assert [(row.job_id, row.priority, row.num_gpus) for row in rows] == [
        (plain.job_id, 0, 1),
        (urgent.job_id, 7, 0),
        (tried.job_id, 0, 3),
    ]
    assert [row.created_ns for row in rows] == [job.created_at.ToNanoseconds() for job in (plain, urgent, tried)]
    assert [row.retry_ns for row in rows] == [0, 0, tried.retry_at.ToNanoseconds()]
    assert [row.sequence for row in rows] == sorted({row.sequence for row in rows})
    assert [job.job_id for _, job in store.running_jobs()] == [running.job_id]


def test_only_terminal_jobs_that_are_too_old_or_too_many_are_expired(store: Store) -> None:
    done = [finish(store, submit(store).job_id) for _ in range(5)]
    submit(store)
    run(store, submit(store).job_id)
    ids = [job.job_id for job in done]
    assert store.expired_jobs(NEVER, 3, 100) == ids[:2]
    assert store.expired_jobs(done[3].completed_at, 100, 100) == ids[:3]
    assert store.expired_jobs(CLOCK.now(), 0, 100) == ids
    assert store.expired_jobs(NEVER, 0, 100) == ids
    assert store.expired_jobs(CLOCK.now(), 0, 2) == ids[:2]
    assert store.expired_jobs(NEVER, 5, 100) == []


def test_a_stored_job_comes_with_its_owner_from_memory_and_from_the_disk(open_store: Opener) -> None:
    store = open_store()
    alices, nobodys = submit(store, owner="alice").job_id, submit(store).job_id
    assert store.cached_job(alices).owner == "alice"  # type: ignore[union-attr]
    assert [row.owner for row in store.queued_rows()] == ["alice", ""]
    run(store, alices)
    store.close()
    store = open_store()
    assert [store.job(job_id).owner for job_id in (alices, nobodys)] == ["alice", ""]
    assert store.cached_job(alices).owner == "alice"  # type: ignore[union-attr]


def test_a_store_knows_the_jobs_of_each_owner(store: Store) -> None:
    alices, bobs, nobodys, gone = (
        finish(store, submit(store, owner=each).job_id).job_id for each in ("alice", "bob", "", "alice")
    )
    store.delete(gone).result(SECONDS)
    ids = [alices, bobs, nobodys, gone, "x", *map(str, range(50_000))]
    assert store.known_jobs(ids, "alice") == {alices}
    assert store.known_jobs(ids, "bob") == {bobs}
    assert store.known_jobs(ids, "") == {nobodys}
    assert store.known_jobs(ids, "carol") == set()


def test_a_store_knows_its_jobs(store: Store) -> None:
    job, gone = submit(store), finish(store, submit(store).job_id)
    store.delete(gone.job_id).result(SECONDS)
    assert store.known_jobs([job.job_id, gone.job_id, "x"]) == {job.job_id}
    assert store.known_jobs([]) == set()
    assert store.known_jobs([job.job_id, *map(str, range(50_000))]) == {job.job_id}


# Closing.


def test_a_closed_store_says_so_and_can_be_closed_again(store: Store) -> None:
    job = submit(store)
    store.close()
    store.close()
    for ask in (lambda: submit(store), lambda: listed(store), lambda: events(store), lambda: run(store, job.job_id)):
        with pytest.raises(StoreUnavailableError):
            ask()


def test_closing_finishes_the_writes_under_way(open_store: Opener) -> None:
    store = open_store()
    gate = Gate(store)
    futures = [store.submit(Submission(new_job())) for _ in range(20)]
    closer = threading.Thread(target=store.close)
    closer.start()
    gate.open()
    closer.join()
    ids = {future.result(SECONDS).job_id for future in futures}
    assert ids <= set(listed(open_store()))


def test_wait_closed_returns_when_the_store_is_closed(store: Store) -> None:
    waiter = threading.Thread(target=store.wait_closed)
    waiter.start()
    store.close()
    waiter.join(SECONDS)
    assert not waiter.is_alive()


# Accounts of runs.


def test_each_owner_has_an_account_for_good_and_nobody_else_gets_it(open_store: Opener) -> None:
    store = open_store()
    uids = range(10, 14)
    assert [store.assign_run_uid(owner, uids).result(SECONDS) for owner in ("", "alice", "bob", "alice")] == [10, 11, 12, 11]
    store.close()
    store = open_store()
    assert store.run_uids() == {10: "", 11: "alice", 12: "bob"}
    assert store.assign_run_uid("carol", uids).result(SECONDS) == 13
    with pytest.raises(RunFailedError, match="all 4 accounts for runs have been given away"):
        store.assign_run_uid("dave", uids).result(SECONDS)
    assert store.assign_run_uid("bob", uids).result(SECONDS) == 12


def test_other_accounts_are_given_where_others_are_to_be_had_and_the_old_ones_stay_taken(store: Store) -> None:
    assert store.assign_run_uid("alice", range(10, 12)).result(SECONDS) == 10
    assert store.assign_run_uid("alice", range(20, 22)).result(SECONDS) == 20
    assert store.assign_run_uid("bob", range(10, 12)).result(SECONDS) == 11
    assert store.run_uids() == {10: "alice", 20: "alice", 11: "bob"}


def test_two_owners_at_once_get_two_accounts(store: Store) -> None:
    futures = [store.assign_run_uid(owner, range(10, 100)) for owner in ("alice", "bob", "alice", "carol")]
    assert [future.result(SECONDS) for future in futures] == [10, 11, 10, 12]
