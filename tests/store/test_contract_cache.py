"""What every store promises about jobs that share the run of another: hits, followers, and whose files are kept."""

from collections.abc import Callable

import pytest
from store_jobs import CLOCK, SECONDS, Gate, Opener, Recorder, begin, events, finish, listed, new_job, nth, read, run, submit

from evalrpc.errors import IllegalTransitionError, JobNotFinishedError, QueueFullError, RequestIdReusedError
from evalrpc.jobs import transitions
from evalrpc.store.base import Deleted, QueuedRow, Store, Submission
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

QUEUED, RUNNING = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED
RESULTS = {"m": ModelResult(results="/out/results.json")}


def ask(store: Store, **fields: object) -> pb.JobInfo:
    return submit(store, cache_key=b"k", **fields)


def update(store: Store, job_id: str, change: Callable[[pb.JobInfo], None]) -> pb.JobInfo:
    return store.update(job_id, change).result(SECONDS)


def complete(job: pb.JobInfo) -> None:
    transitions.complete(job, RESULTS, CLOCK.now())


def completed(store: Store, **fields: object) -> pb.JobInfo:
    job_id = ask(store, **fields).job_id
    run(store, job_id)
    return update(store, job_id, complete)


def cancel(store: Store, job_id: str) -> pb.JobInfo:
    return update(store, job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now()))


def fail(store: Store, job_id: str, reason: str = "HARNESS_FAILED") -> pb.JobInfo:
    return update(store, job_id, lambda job: transitions.fail(job, pb.JobError(reason=reason), CLOCK.now()))


def run_and_fail(store: Store, job_id: str) -> None:
    run(store, job_id)
    fail(store, job_id)


def cancel_running(store: Store, job_id: str) -> None:
    run(store, job_id)
    cancel(store, job_id)


def end_cancelled(store: Store, job_id: str) -> None:
    cancel_running(store, job_id)
    update(store, job_id, lambda job: transitions.cancel(job, CLOCK.now()))


def cancel_and_delete(store: Store, job_id: str) -> None:
    cancel(store, job_id)
    delete(store, job_id)


def supersede(store: Store, job_id: str) -> None:
    del job_id
    submit(store, supersede_key="s")


def delete(store: Store, job_id: str) -> Deleted:
    return store.delete(job_id).result(SECONDS)


def set_priority(store: Store, job_id: str, priority: int) -> pb.JobInfo:
    return update(store, job_id, lambda job: setattr(job, "priority", priority))


def row_of(store: Store, job_id: str) -> QueuedRow:
    (row,) = [row for row in store.queued_rows() if row.job_id == job_id]
    return row


def sources(store: Store, *jobs: pb.JobInfo) -> list[str]:
    """Return what each job follows or shares, as it stands now; the queue's rows must say the same."""
    current = [read(store, job.job_id) for job in jobs]
    rows = {row.job_id: row.follows for row in store.queued_rows()}
    assert all(rows[job.job_id] == job.cached_from for job in current if job.status == QUEUED)
    return [job.cached_from for job in current]


def statuses(store: Store, *jobs: pb.JobInfo) -> list[int]:
    return [read(store, job.job_id).status for job in jobs]


# A hit on a job that is COMPLETED.


def test_a_hit_is_a_new_job_that_is_completed_in_the_commit_of_its_submission(store: Store) -> None:
    source = completed(store, labels={"a": "b"}, priority=1)
    recorder = Recorder()
    store.follow(store.position, recorder)
    before = CLOCK.now().ToNanoseconds()
    hit = ask(store, request_id="r", labels={"c": "d"}, priority=3)
    assert hit.job_id != source.job_id
    assert (hit.status, hit.labels, hit.priority) == (COMPLETED, {"c": "d"}, 3)
    assert (hit.cached_from, hit.cached_from_attempt) == (source.job_id, 1)
    assert hit.HasField("attempt")
    assert (hit.attempt, list(hit.attempts), hit.HasField("error"), list(hit.gpus)) == (0, [], False, [])
    assert before <= hit.created_at.ToNanoseconds() <= hit.started_at.ToNanoseconds() <= CLOCK.now().ToNanoseconds()
    assert hit.started_at == hit.completed_at
    assert hit.results == source.results == RESULTS
    assert hit.revision == source.revision + nth(store, 1) == store.head_revision
    (event,) = events(store, job_id=hit.job_id)
    assert (event.type, event.revision, event.terminal, event.job) == (pb.JOB_EVENT_TYPE_STATUS, hit.revision, True, hit)
    (change,) = recorder.changes
    assert (change.job, change.previous) == (hit, pb.JOB_STATUS_UNSPECIFIED)
    assert read(store, source.job_id) == source
    assert listed(store) == [hit.job_id, source.job_id]
    assert listed(store, labels={"c": "d"}, statuses=[COMPLETED]) == [hit.job_id]
    assert store.status_counts()[COMPLETED] == 2
    assert store.status_counts()[QUEUED] == 0


def test_a_hit_names_the_job_that_ran_and_never_one_that_is_a_hit_itself(open_store: Opener) -> None:
    store = open_store()
    source = completed(store)
    first = ask(store)
    assert ask(store).cached_from == source.job_id
    delete(store, source.job_id)
    store.close()
    store = open_store()
    hit = ask(store)
    assert (hit.cached_from, hit.cached_from_attempt, hit.results) == (source.job_id, 1, RESULTS)
    delete(store, first.job_id)
    assert ask(store).cached_from == source.job_id


def test_a_hit_names_the_attempt_that_its_results_are_of(store: Store) -> None:
    source, follower = ask(store, max_attempts=2), ask(store)
    for _ in range(2):
        run(store, source.job_id)
        if read(store, source.job_id).attempt == 1:
            fail(store, source.job_id, "RUN_LOST")
    update(store, source.job_id, complete)
    assert [read(store, follower.job_id).cached_from_attempt, ask(store).cached_from_attempt] == [2, 2]


def test_a_request_id_names_the_job_of_its_own_submission(open_store: Opener) -> None:
    store = open_store()
    source = submit(store, "r1", cache_key=b"k")
    follower = submit(store, "r2", cache_key=b"k")
    assert len({source.job_id, follower.job_id}) == 2
    finish(store, source.job_id)
    hit = submit(store, "r3", cache_key=b"k")
    store.close()
    store = open_store()
    for request_id, job in (("r1", source), ("r2", follower), ("r3", hit)):
        again = submit(store, request_id, cache_key=b"k")
        assert (again.job_id, again.status) == (job.job_id, COMPLETED)
    with pytest.raises(RequestIdReusedError):
        submit(store, "r2", b"other", cache_key=b"k")
    assert len(listed(store)) == 3


def test_a_hit_supersedes_as_any_new_job_does(store: Store) -> None:
    completed(store)
    old = submit(store, supersede_key="s")
    hit = ask(store, supersede_key="s")
    assert (hit.status, read(store, old.job_id).error.reason) == (COMPLETED, "SUPERSEDED")


@pytest.mark.parametrize("step", [run_and_fail, cancel, cancel_running, end_cancelled, cancel_and_delete])
def test_a_job_that_came_to_nothing_serves_no_other(store: Store, step: Callable[..., object]) -> None:
    job = ask(store)
    step(store, job.job_id)
    assert store.find_identical(b"k") is None
    new = ask(store)
    assert (new.cached_from, new.status, sources(store, new)) == ("", QUEUED, [""])


def test_a_job_with_another_key_or_none_shares_no_run(store: Store) -> None:
    jobs = [submit(store), submit(store), ask(store), submit(store, cache_key=b"other")]
    assert sources(store, *jobs) == [""] * 4


def test_of_several_identical_jobs_the_one_that_ran_latest_is_shared_and_else_a_hit(store: Store) -> None:
    first = ask(store)
    cancel_running(store, first.job_id)
    second = ask(store)
    assert ask(store).cached_from == second.job_id
    update(store, first.job_id, complete)  # it succeeded before it was ended
    assert ask(store).cached_from == first.job_id, "what is COMPLETED comes before what may still fail"
    finish(store, second.job_id)
    assert ask(store).cached_from == second.job_id
    delete(store, second.job_id)
    assert ask(store).cached_from == first.job_id
    delete(store, first.job_id)
    assert ask(store).cached_from in (first.job_id, second.job_id), "hits of it are left"


# Followers.


@pytest.mark.parametrize("step", [read, run], ids=["queued", "running"])
def test_a_job_follows_an_identical_one_and_completes_in_its_commit(store: Store, step: Callable[..., pb.JobInfo]) -> None:
    source = ask(store, labels={"a": "b"})
    step(store, source.job_id)
    source = read(store, source.job_id)
    followers = [ask(store, labels={"c": "d"}) for _ in range(2)]
    for follower in followers:
        assert (follower.status, follower.cached_from, follower.cached_from_attempt) == (QUEUED, source.job_id, 0)
        assert (follower.attempt, follower.labels, list(follower.results)) == (0, {"c": "d"}, [])
        assert [event.job for event in events(store, job_id=follower.job_id)] == [follower]
    assert read(store, source.job_id) == source, "it hears nothing of them"
    assert sources(store, *followers) == [source.job_id] * 2
    if source.status == QUEUED:
        run(store, source.job_id)
    recorder = Recorder()
    store.follow(store.position, recorder)
    source = update(store, source.job_id, complete)
    (commit,) = recorder.commits
    ids = [job.job_id for job in (source, *followers)]
    assert [(change.job.job_id, change.job.status, change.status_changed) for change in commit] == [
        (job_id, COMPLETED, True) for job_id in ids
    ]
    assert [change.job.revision for change in commit] == [source.revision + nth(store, number) for number in range(3)]
    for follower in (read(store, job_id) for job_id in ids[1:]):
        assert follower.started_at == follower.completed_at == source.completed_at
        assert (follower.attempt, list(follower.attempts), follower.results) == (0, [], RESULTS)
        assert (follower.cached_from, follower.cached_from_attempt) == (source.job_id, 1)
        assert [event.terminal for event in events(store, job_id=follower.job_id)] == [False, True]


@pytest.mark.parametrize("end", [run_and_fail, end_cancelled, cancel, cancel_and_delete, supersede])
def test_if_the_source_does_not_complete_the_first_in_the_queue_runs_and_the_others_follow_it(
    store: Store, end: Callable[..., object]
) -> None:
    source = ask(store, supersede_key="s")
    late, urgent, equal = ask(store, priority=-1), ask(store, priority=2), ask(store, priority=2)
    places = [row_of(store, job.job_id).sequence for job in (late, urgent, equal)]
    recorder = Recorder()
    store.follow(store.position, recorder)
    end(store, source.job_id)
    assert sources(store, late, urgent, equal) == [urgent.job_id, "", urgent.job_id]
    assert statuses(store, late, urgent, equal) == [QUEUED] * 3
    assert [read(store, job.job_id).priority for job in (late, urgent, equal)] == [-1, 2, 2]
    assert [row_of(store, job.job_id).sequence for job in (late, urgent, equal)] == places
    ended = next(commit for commit in recorder.commits if commit[0].job.status in (CANCELLED, FAILED))
    assert {change.job.job_id for change in ended} >= {source.job_id, late.job_id, urgent.job_id, equal.job_id}
    run(store, urgent.job_id)
    update(store, urgent.job_id, complete)
    assert statuses(store, late, urgent, equal) == [COMPLETED] * 3
    assert sources(store, late, urgent, equal) == [urgent.job_id, "", urgent.job_id]


def test_followers_are_handed_on_as_often_as_sources_fail(store: Store) -> None:
    jobs = [ask(store) for _ in range(4)]
    for number, job in enumerate(jobs):
        assert sources(store, *jobs[number:]) == ["", *[job.job_id] * (3 - number)]
        run_and_fail(store, job.job_id)
    assert statuses(store, *jobs) == [FAILED] * 4


def test_a_source_that_is_tried_again_keeps_its_followers(open_store: Opener) -> None:
    store = open_store()
    source = ask(store, max_attempts=2)
    follower = ask(store)
    run(store, source.job_id)
    assert fail(store, source.job_id, "RUN_LOST").status == QUEUED
    late = ask(store)
    assert sources(store, follower, late) == [source.job_id] * 2
    store.close()
    store = open_store()
    run(store, source.job_id)
    update(store, source.job_id, complete)
    assert statuses(store, follower, late) == [COMPLETED] * 2


def test_a_job_that_is_being_cancelled_keeps_its_followers_until_it_has_ended_and_gets_no_more(store: Store) -> None:
    source, follower = ask(store), ask(store)
    cancel_running(store, source.job_id)
    new = ask(store)
    assert sources(store, follower, new) == [source.job_id, ""]
    update(store, source.job_id, lambda job: transitions.cancel(job, CLOCK.now()))
    assert sources(store, follower, new) == ["", ""]


def test_a_job_that_completes_although_it_is_being_cancelled_completes_its_followers(store: Store) -> None:
    source, follower = ask(store), ask(store)
    cancel_running(store, source.job_id)
    update(store, source.job_id, complete)
    assert read(store, follower.job_id).results == RESULTS


def test_ending_a_follower_never_touches_its_source(store: Store) -> None:
    source = ask(store)
    cancelled, superseded, left = ask(store), ask(store, supersede_key="s"), ask(store)
    run(store, source.job_id)
    source = read(store, source.job_id)
    cancel(store, cancelled.job_id)
    submit(store, supersede_key="s")
    assert read(store, source.job_id) == source
    ended = [read(store, job.job_id) for job in (cancelled, superseded)]
    assert [(job.status, job.error.reason) for job in ended] == [(CANCELLED, "CANCELLED"), (CANCELLED, "SUPERSEDED")]
    assert [(job.cached_from, job.HasField("started_at"), job.attempt) for job in ended] == [("", False, 0)] * 2
    update(store, source.job_id, complete)
    assert statuses(store, cancelled, superseded, left) == [CANCELLED, CANCELLED, COMPLETED]


def test_a_follower_neither_runs_nor_is_deleted_nor_is_followed(store: Store) -> None:
    source, follower = ask(store), ask(store)
    with pytest.raises(IllegalTransitionError):
        update(store, follower.job_id, begin)
    with pytest.raises(IllegalTransitionError):
        update(store, follower.job_id, complete)
    with pytest.raises(JobNotFinishedError):
        delete(store, follower.job_id)
    assert read(store, follower.job_id) == follower
    assert ask(store).cached_from == source.job_id
    found = store.find_identical(b"k")
    assert found is not None
    assert found.job_id == source.job_id


# Priorities.


@pytest.mark.parametrize("step", [read, run], ids=["queued", "running"])
def test_a_source_takes_the_highest_priority_of_its_followers(open_store: Opener, step: Callable[..., pb.JobInfo]) -> None:
    store = open_store()
    other, source = submit(store, priority=1), ask(store)
    step(store, source.job_id)
    ask(store, priority=-5)
    assert read(store, source.job_id).priority == 0
    follower = ask(store, priority=3)
    assert read(store, source.job_id).priority == 3
    set_priority(store, follower.job_id, 7)
    assert [read(store, job.job_id).priority for job in (source, follower, other)] == [7, 7, 1]
    assert set_priority(store, source.job_id, 2).priority == 7, "it stays before those that follow it"
    assert set_priority(store, source.job_id, 9).priority == 9
    assert set_priority(store, source.job_id, 8).priority == 8
    cancel(store, follower.job_id)
    assert read(store, source.job_id).priority == 8, "what it has taken it keeps"
    assert set_priority(store, source.job_id, 0).priority == 0
    store.close()
    store = open_store()
    assert read(store, source.job_id).priority == 0
    assert {row.job_id: row.priority for row in store.queued_rows()}.get(source.job_id, 0) == 0


def test_the_queue_is_in_the_order_of_the_new_priorities_after_reopening(open_store: Opener) -> None:
    store = open_store()
    source = ask(store)
    ask(store, priority=3)
    store.close()
    assert row_of(open_store(), source.job_id).priority == 3


def test_a_follower_that_runs_itself_has_its_own_priority(store: Store) -> None:
    source, follower = ask(store, priority=5), ask(store, priority=-1)
    cancel(store, source.job_id)
    assert (sources(store, follower), row_of(store, follower.job_id).priority) == ([""], -1)


def test_followers_are_handed_on_by_their_latest_priorities(store: Store) -> None:
    source, first, second = ask(store), ask(store), ask(store)
    set_priority(store, second.job_id, 1)
    cancel(store, source.job_id)
    assert sources(store, first, second) == [second.job_id, ""]


# Superseding.


def test_a_new_job_supersedes_its_own_would_be_source_and_runs(store: Store) -> None:
    source = ask(store, supersede_key="s")
    assert store.find_identical(b"k", "s") is None
    new = ask(store, supersede_key="s")
    assert (read(store, source.job_id).error.reason, sources(store, new)) == ("SUPERSEDED", [""])


def test_a_new_job_that_supersedes_its_would_be_source_follows_the_one_that_runs_instead(store: Store) -> None:
    source, follower = ask(store, supersede_key="s"), ask(store, supersede_key="s2")
    also_superseded = ask(store, supersede_key="s", priority=9)
    found = store.find_identical(b"k", "s")
    assert found is not None
    assert found.job_id == follower.job_id
    new = ask(store, supersede_key="s")
    assert statuses(store, source, also_superseded) == [CANCELLED] * 2
    assert sources(store, follower, new) == ["", follower.job_id]


def test_a_running_source_is_not_superseded_but_followed(store: Store) -> None:
    source, follower = ask(store, supersede_key="s"), ask(store, supersede_key="s2")
    run(store, source.job_id)
    new = ask(store, supersede_key="s2")
    assert statuses(store, source, follower, new) == [RUNNING, CANCELLED, QUEUED]
    assert sources(store, new) == [source.job_id]


# The bound of the queue.


def test_followers_count_among_the_queued_jobs_and_hits_do_not(open_store: Opener) -> None:
    store = open_store(max_queued=2)
    completed(store)
    source = submit(store, cache_key=b"other")
    follower = submit(store, cache_key=b"other", supersede_key="s")
    assert store.status_counts()[QUEUED] == 2
    with pytest.raises(QueueFullError):
        submit(store, cache_key=b"other")
    assert sources(store, follower) == [source.job_id]
    assert ask(store).status == COMPLETED, "it does not wait"
    assert submit(store, cache_key=b"other", supersede_key="s").cached_from == source.job_id


# Many at once.


def test_identical_evaluations_in_one_commit_make_one_run(store: Store) -> None:
    gate = Gate(store)
    futures = [store.submit(Submission(new_job(), f"r{number}", b"f", b"k")) for number in range(50)]
    gate.open()
    jobs = [future.result(SECONDS) for future in futures]
    assert len({job.job_id for job in jobs}) == 50
    assert [job.cached_from for job in jobs] == ["", *[jobs[0].job_id] * 49]
    finish(store, jobs[0].job_id)
    assert statuses(store, *jobs) == [COMPLETED] * 50


def test_in_one_commit_a_follower_is_submitted_just_before_and_just_after_its_source_completes(store: Store) -> None:
    source = ask(store)
    run(store, source.job_id)
    gate = Gate(store)
    before = store.submit(Submission(new_job(), cache_key=b"k"))
    ended = store.update(source.job_id, complete)
    after = store.submit(Submission(new_job(), cache_key=b"k"))
    gate.open()
    ended.result(SECONDS)
    jobs = [before.result(SECONDS), after.result(SECONDS)]
    assert [job.status for job in jobs] == [QUEUED, COMPLETED]
    assert statuses(store, *jobs) == [COMPLETED] * 2
    assert sources(store, *jobs) == [source.job_id] * 2


def test_in_one_commit_a_follower_is_submitted_just_before_and_just_after_its_source_fails(store: Store) -> None:
    source = ask(store)
    run(store, source.job_id)
    gate = Gate(store)
    before = store.submit(Submission(new_job(), cache_key=b"k"))
    ended = store.update(source.job_id, lambda job: transitions.fail(job, pb.JobError(reason="R"), CLOCK.now()))
    after = store.submit(Submission(new_job(), cache_key=b"k"))
    gate.open()
    ended.result(SECONDS)
    jobs = [before.result(SECONDS), after.result(SECONDS)]
    assert statuses(store, *jobs) == [QUEUED] * 2
    assert sources(store, *jobs) == ["", jobs[0].job_id]


def test_in_one_commit_a_follower_is_cancelled_and_superseded_while_its_source_completes(store: Store) -> None:
    source = ask(store)
    run(store, source.job_id)
    cancelled, superseded, too_late = ask(store), ask(store, supersede_key="s"), ask(store)
    gate = Gate(store)
    request = lambda job: transitions.request_cancel(job, "", CLOCK.now())  # noqa: E731
    futures = [
        store.update(cancelled.job_id, request),
        store.submit(Submission(new_job(supersede_key="s"))),
        store.update(source.job_id, complete),
        store.update(too_late.job_id, request),
        store.delete(source.job_id),
        store.delete(too_late.job_id),
    ]
    gate.open()
    assert [type(future.exception(SECONDS)).__name__ for future in futures] == ["NoneType"] * 3 + ["JobFinishedError"] + [
        "NoneType"
    ] * 2
    assert statuses(store, cancelled, superseded) == [CANCELLED] * 2
    assert [future.result().files_of for future in futures[4:]] == ["", source.job_id]


def test_in_one_commit_sources_end_one_after_the_other(store: Store) -> None:
    jobs = [ask(store) for _ in range(5)]
    gate = Gate(store)
    futures = [store.update(job.job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now())) for job in jobs[:4]]
    gate.open()
    for future in futures:
        future.result(SECONDS)
    assert statuses(store, *jobs) == [CANCELLED] * 4 + [QUEUED]
    assert sources(store, jobs[4]) == [""]


# Reopening.


def test_followers_are_followers_after_reopening(open_store: Opener) -> None:
    store = open_store()
    source, first, second = ask(store), ask(store, priority=1), ask(store)
    run(store, source.job_id)
    before = [read(store, job.job_id) for job in (source, first, second)]
    rows = store.queued_rows()
    store.close()
    store = open_store()
    assert [read(store, job.job_id) for job in (source, first, second)] == before
    assert store.queued_rows() == rows
    third = ask(store)
    assert sources(store, first, second, third) == [source.job_id] * 3
    fail(store, source.job_id)
    store.close()
    store = open_store()
    assert sources(store, first, second, third) == ["", first.job_id, first.job_id]
    run(store, first.job_id)
    store.close()
    store = open_store()
    update(store, first.job_id, complete)
    store.close()
    store = open_store()
    assert statuses(store, first, second, third) == [COMPLETED] * 3
    assert sources(store, first, second, third) == ["", first.job_id, first.job_id]


# Looking without submitting.


def test_looking_for_an_identical_job_changes_nothing(store: Store) -> None:
    job = submit(store, "r1", cache_key=b"k")
    identical = store.find_identical(b"k")
    assert identical == job
    assert (listed(store), store.head_revision) == ([job.job_id], job.revision)


# Files.


def test_the_files_of_a_job_are_kept_until_the_last_that_refers_to_them_is_deleted(open_store: Opener) -> None:
    store = open_store()
    source, follower = ask(store), ask(store)
    run(store, source.job_id)
    source = update(store, source.job_id, complete)
    hit = ask(store)
    ids = [job.job_id for job in (source, follower, hit)]
    assert store.jobs_with_files(ids) == set(ids)
    assert delete(store, source.job_id) == Deleted(source, "")
    store.close()
    store = open_store()
    assert store.known_jobs(ids) == set(ids[1:])
    assert store.jobs_with_files(ids) == set(ids), "the files of the deleted one are kept, too"
    late = ask(store)
    assert [delete(store, job.job_id).files_of for job in (follower, hit)] == ["", ""]
    assert store.jobs_with_files(ids) == {source.job_id}
    assert delete(store, late.job_id).files_of == source.job_id
    assert store.jobs_with_files(ids) == set()
    assert ask(store).status == QUEUED, "there is nothing left to share"


def test_deleting_hits_first_leaves_the_files_to_the_job_that_ran(store: Store) -> None:
    source, hit = completed(store), ask(store)
    assert delete(store, hit.job_id).files_of == ""
    assert delete(store, source.job_id).files_of == source.job_id


@pytest.mark.parametrize("end", [run_and_fail, cancel])
def test_a_job_without_followers_or_hits_leaves_its_own_files(store: Store, end: Callable[..., object]) -> None:
    job, follower = ask(store), ask(store)
    cancel(store, follower.job_id)
    end(store, job.job_id)
    assert [delete(store, each.job_id).files_of for each in (job, follower)] == [job.job_id, follower.job_id]


def test_many_ids_can_be_asked_for_their_files(store: Store) -> None:
    job = submit(store)
    assert store.jobs_with_files([job.job_id, *map(str, range(50_000))]) == {job.job_id}
    assert store.jobs_with_files([]) == set()
