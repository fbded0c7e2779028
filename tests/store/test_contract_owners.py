"""What every store promises about owners: their quotas, and what their attempts have used."""

import pytest
from store_jobs import CLOCK, SECONDS, Gate, Opener, finish, new_job, read, run, submit

from evalrpc.config import QuotaSettings
from evalrpc.errors import QueueFullError, QuotaExceededError
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.store.base import AttemptUse, Store, Submission
from evalrpc.v1 import jobs_pb2 as pb


def limits(**quotas: QuotaSettings) -> Entitlements:
    return Entitlements(SharePolicy(quotas=quotas))


def uses(store: Store, after_ns: int = 0) -> list[AttemptUse]:
    return list(store.attempt_uses(after_ns))


def test_an_owner_queues_no_more_jobs_than_the_quota_has_and_others_are_not_concerned(open_store: Opener) -> None:
    store = open_store(entitlements=limits(alice=QuotaSettings(max_queued=2)))
    first, _ = submit(store, owner="alice"), submit(store, "r2", owner="alice")
    with pytest.raises(QuotaExceededError, match="alice has 2 of at most 2 jobs in the queue") as caught:
        submit(store, owner="alice")
    assert caught.value.metadata == {"owner": "alice", "quota": "max_queued", "limit": "2"}
    assert caught.value.retry_delay_seconds
    assert submit(store, "r2", owner="alice").owner == "alice", "what was accepted before can always be asked for again"
    for owner in ("bob", "", "bob", ""):
        submit(store, owner=owner)
    run(store, first.job_id)
    submit(store, owner="alice")
    with pytest.raises(QuotaExceededError):
        submit(store, owner="alice")


def test_a_quota_counts_what_is_queued_after_reopening_and_within_one_commit(open_store: Opener) -> None:
    store = open_store()
    submit(store, owner="alice")
    store.close()
    store = open_store(entitlements=limits(default=QuotaSettings(max_queued=3)))
    gate = Gate(store)
    futures = [store.submit(Submission(new_job(owner="alice"))) for _ in range(5)]
    gate.open()
    assert sum(isinstance(future.exception(SECONDS), QuotaExceededError) for future in futures) == 3


def test_a_job_that_supersedes_another_takes_its_place_in_the_quota(open_store: Opener) -> None:
    store = open_store(entitlements=limits(default=QuotaSettings(max_queued=1)))
    before = submit(store, owner="alice", supersede_key="nightly")
    after = submit(store, owner="alice", supersede_key="nightly")
    assert read(store, before.job_id).status == pb.JOB_STATUS_CANCELLED
    assert read(store, after.job_id).status == pb.JOB_STATUS_QUEUED


def test_jobs_that_have_ended_or_were_deleted_leave_room_in_the_quota(open_store: Opener) -> None:
    store = open_store(entitlements=limits(default=QuotaSettings(max_queued=1)))
    for _ in range(3):
        job = submit(store, owner="alice")
        finish(store, job.job_id)
        store.delete(job.job_id).result(SECONDS)


def test_whose_files_take_too_much_submits_no_more(open_store: Opener) -> None:
    entitlements = limits(alice=QuotaSettings(max_bytes=100))
    store = open_store(entitlements=entitlements)
    entitlements.kept_bytes = {"alice": 99, "bob": 10**9}
    submit(store, "r1", owner="alice")
    submit(store, owner="bob")
    entitlements.kept_bytes = {"alice": 100}
    with pytest.raises(QuotaExceededError, match="alice has 100 of at most 100 bytes of files; delete jobs first") as caught:
        submit(store, owner="alice")
    assert caught.value.metadata["quota"] == "max_bytes"
    submit(store, "r1", owner="alice")


def test_another_policy_holds_from_its_exchange_on(open_store: Opener) -> None:
    entitlements = limits(default=QuotaSettings(max_queued=0))
    store = open_store(max_queued=2, entitlements=entitlements)
    with pytest.raises(QuotaExceededError):
        submit(store)
    entitlements.policy = SharePolicy()
    submit(store)
    submit(store)
    with pytest.raises(QueueFullError):
        submit(store)


def test_every_attempt_that_ended_leaves_what_it_has_used_also_when_its_job_is_deleted(open_store: Opener) -> None:
    store = open_store()
    begun: dict[str, pb.JobInfo] = {}
    for owner, gpus in (("alice", ("0", "1")), ("bob", ())):
        job = submit(store, owner=owner, max_attempts=2)
        change = lambda job, gpus=gpus: transitions.begin_attempt(job, gpus, "/out", CLOCK.now())  # noqa: E731
        begun[owner] = store.update(job.job_id, change).result(SECONDS)
    assert uses(store) == [], "they run"
    lost = pb.JobError(reason="RUN_LOST")
    ended = store.update(begun["alice"].job_id, lambda job: transitions.fail(job, lost, CLOCK.now())).result(SECONDS)
    assert ended.status == pb.JOB_STATUS_QUEUED
    attempt = ended.attempts[0]
    expected = AttemptUse("alice", attempt.started_at.ToNanoseconds(), attempt.completed_at.ToNanoseconds(), 2)
    assert uses(store) == [expected]
    store.update(begun["bob"].job_id, lambda job: transitions.complete(job, {}, CLOCK.now())).result(SECONDS)
    store.delete(begun["bob"].job_id).result(SECONDS)
    store.close()
    store = open_store()
    assert [(use.owner, use.width) for use in uses(store)] == [("alice", 2), ("bob", 1)]
    assert uses(store, expected.ended_ns)[0].owner == "bob"
    store.forget_uses(expected.ended_ns + 1).result(SECONDS)
    assert [use.owner for use in uses(store)] == ["bob"]


def test_a_queued_row_says_whose_it_is(open_store: Opener) -> None:
    store = open_store()
    submit(store, owner="alice")
    submit(store)
    assert [row.owner for row in store.queued_rows()] == ["alice", ""]
