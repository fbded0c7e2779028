"""What every store promises about suite runs: all of their jobs or none, and a state that is that of the jobs."""

import uuid

import pytest
from store_jobs import CLOCK, SECONDS, Gate, Opener, Recorder, finish, listed, new_job, read, run, submit

from evalrpc.config import QuotaSettings
from evalrpc.errors import (
    InvalidRequestError,
    JobNotFoundError,
    QueueFullError,
    QuotaExceededError,
    RequestIdReusedError,
    SuiteRunNotFoundError,
)
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.store.base import Store, Submission, SuiteSubmission
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import Suite, SuiteRun

QUEUED, RUNNING, COMPLETED = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED
FAILED, CANCELLED = pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED


def submission(
    count: int = 2, request_id: str = "", fingerprint: bytes = b"f", owner: str = "", cache_keys: tuple[bytes, ...] = ()
) -> SuiteSubmission:
    suite_run = SuiteRun(suite_run_id=str(uuid.uuid4()), suite=Suite(name="release"), owner=owner)
    jobs = [new_job(owner=owner, suite_run_id=suite_run.suite_run_id) for _ in range(count)]
    for number, job in enumerate(jobs):
        suite_run.jobs.add(entry=f"e{number}", job_id=job.job_id)
    keys = cache_keys or (b"",) * count
    submissions = [Submission(job, cache_key=key) for job, key in zip(jobs, keys, strict=True)]
    return SuiteSubmission(suite_run, submissions, request_id, fingerprint)


def submit_suite(store: Store, *given: int | str, **fields: object) -> SuiteRun:
    return store.submit_suite(submission(*given, **fields)).result(SECONDS)  # type: ignore[arg-type]


def statuses(suite_run: SuiteRun) -> list[int]:
    return [job.status for job in suite_run.jobs]


def test_a_run_and_its_jobs_are_added_in_one_commit(store: Store) -> None:
    recorder = Recorder()
    store.follow(0, recorder)
    suite_run = submit_suite(store, 3)
    assert [len(commit) for commit in recorder.commits] == [3]
    assert [change.job.job_id for change in recorder.changes] == [job.job_id for job in suite_run.jobs]
    assert (suite_run.status, statuses(suite_run)) == (QUEUED, [QUEUED] * 3)
    assert suite_run.revision == store.head_revision
    assert suite_run.created_at.seconds
    assert store.suite_run(suite_run.suite_run_id) == suite_run
    assert listed(store, suite_run_ids=[suite_run.suite_run_id]) == [job.job_id for job in suite_run.jobs][::-1]


def test_a_run_is_as_its_jobs_are_also_after_reopening(open_store: Opener) -> None:
    store = open_store()
    suite_run = submit_suite(store)
    first, second = (job.job_id for job in suite_run.jobs)
    run(store, first)
    assert statuses(store.suite_run(suite_run.suite_run_id)) == [RUNNING, QUEUED]
    store.update(first, lambda job: transitions.complete(job, {}, CLOCK.now())).result(SECONDS)
    finish(store, second)
    store.close()
    ended = open_store().suite_run(suite_run.suite_run_id)
    assert (ended.status, statuses(ended), ended.suite.name) == (COMPLETED, [COMPLETED, COMPLETED], "release")
    assert ended.HasField("completed_at")


def test_the_same_request_id_is_the_same_run_of_its_owner(store: Store) -> None:
    first = submit_suite(store, request_id="r", owner="alice")
    assert submit_suite(store, request_id="r", owner="alice").suite_run_id == first.suite_run_id
    assert submit_suite(store, request_id="r", owner="bob").suite_run_id != first.suite_run_id
    with pytest.raises(RequestIdReusedError):
        submit_suite(store, request_id="r", fingerprint=b"other", owner="alice")
    repeated = submission(request_id="r", owner="alice")
    found = store.find_submitted_suite(repeated)
    assert found is not None
    assert found.suite_run_id == first.suite_run_id
    assert store.find_submitted_suite(submission(request_id="r", fingerprint=b"other", owner="alice")) is None
    assert store.find_submitted_suite(submission(owner="alice")) is None
    assert len(listed(store)) == 4


def test_a_request_id_counts_within_one_commit(store: Store) -> None:
    gate = Gate(store)
    futures = [store.submit_suite(submission(request_id="r")) for _ in range(2)]
    gate.open()
    assert len({future.result(SECONDS).suite_run_id for future in futures}) == 1


def test_there_is_room_for_all_jobs_or_for_none(open_store: Opener) -> None:
    policy = SharePolicy(quotas={"alice": QuotaSettings(max_queued=3)})
    store = open_store(5, Entitlements(policy))
    submit(store, owner="alice")
    with pytest.raises(QuotaExceededError):
        submit_suite(store, 3, owner="alice")
    submit_suite(store, 2, owner="alice")
    with pytest.raises(QueueFullError):
        submit_suite(store, 3)
    submit_suite(store, 2)
    assert len(listed(store)) == 5


@pytest.mark.parametrize("owner", ["alice", "bob"])
def test_a_suite_that_not_even_an_empty_queue_has_room_for_is_refused_for_good(open_store: Opener, owner: str) -> None:
    store = open_store(3, Entitlements(SharePolicy(quotas={"alice": QuotaSettings(max_queued=2)})))
    too_many = 3 if owner == "alice" else 4
    with pytest.raises(InvalidRequestError, match=f"suite: {too_many} of its jobs .* at most {too_many - 1}") as caught:
        submit_suite(store, too_many, owner=owner)
    assert caught.value.retry_delay_seconds is None
    submit_suite(store, too_many - 1, owner=owner)


def test_jobs_that_share_a_run_take_no_room(open_store: Opener) -> None:
    store = open_store(1)
    source = submit(store, cache_key=b"k")
    finish(store, source.job_id)
    suite_run = submit_suite(store, 3, cache_keys=(b"k", b"", b"k"))
    assert (suite_run.status, statuses(suite_run)) == (RUNNING, [COMPLETED, QUEUED, COMPLETED])


def test_identical_jobs_of_one_run_share_a_run(store: Store) -> None:
    suite_run = submit_suite(store, 2, cache_keys=(b"k", b"k"))
    first, second = (read(store, job.job_id) for job in suite_run.jobs)
    assert (first.cached_from, second.cached_from) == ("", first.job_id)


def test_a_run_goes_with_the_last_of_its_jobs(store: Store) -> None:
    suite_run, other = submit_suite(store, request_id="r"), submit_suite(store)
    first, second = (job.job_id for job in suite_run.jobs)
    for job_id in (first, second):
        finish(store, job_id)
    store.delete(first).result(SECONDS)
    left = store.suite_run(suite_run.suite_run_id)
    assert (left.status, statuses(left)) == (COMPLETED, [pb.JOB_STATUS_UNSPECIFIED, COMPLETED])
    store.delete(second).result(SECONDS)
    with pytest.raises(SuiteRunNotFoundError) as caught:
        store.suite_run(suite_run.suite_run_id)
    assert caught.value.metadata["resource_name"] == suite_run.suite_run_id
    assert store.known_suite_runs([suite_run.suite_run_id, other.suite_run_id]) == {other.suite_run_id}
    again = submit_suite(store, request_id="r")
    assert again.suite_run_id != suite_run.suite_run_id, "nothing of it is left"


def test_runs_are_known_by_their_owner(store: Store) -> None:
    runs = {owner: submit_suite(store, owner=owner).suite_run_id for owner in ("alice", "bob", "")}
    ids = [*runs.values(), str(uuid.uuid4())]
    assert store.known_suite_runs(ids) == set(runs.values())
    for owner, suite_run_id in runs.items():
        assert store.known_suite_runs(ids, owner) == {suite_run_id}
    assert store.known_suite_runs([]) == set()


def test_runs_are_listed_newest_first_from_any_place(open_store: Opener) -> None:
    store = open_store()
    runs = [submit_suite(store, owner=owner).suite_run_id for owner in ("alice", "bob", "alice")]
    submit(store)
    finish(store, store.suite_run(runs[1]).jobs[0].job_id)
    store.close()
    store = open_store()
    listed_runs = list(store.list_suite_runs())
    assert [each.run for each in listed_runs] == [store.suite_run(suite_run_id) for suite_run_id in reversed(runs)]
    assert [each.run.suite_run_id for each in store.list_suite_runs(before_sequence=listed_runs[0].sequence)] == [
        runs[1],
        runs[0],
    ]
    assert [each.run.suite_run_id for each in store.list_suite_runs(owner="alice")] == [runs[2], runs[0]]
    assert [each.run.suite_run_id for each in store.list_suite_runs(runs[1][:13])] == [runs[1]]
    assert not list(store.list_suite_runs(runs[1][:13], owner="alice"))


def test_a_run_keeps_its_place_when_its_first_job_is_deleted(store: Store) -> None:
    first, second = submit_suite(store), submit_suite(store)
    for job in (first.jobs[0], second.jobs[0]):
        finish(store, job.job_id)
        store.delete(job.job_id).result(SECONDS)
    assert [each.run.suite_run_id for each in store.list_suite_runs()] == [second.suite_run_id, first.suite_run_id]


def test_a_job_of_a_run_is_read_as_any_other(store: Store) -> None:
    suite_run = submit_suite(store)
    assert read(store, suite_run.jobs[0].job_id).suite_run_id == suite_run.suite_run_id
    with pytest.raises(JobNotFoundError):
        store.job(suite_run.suite_run_id)
