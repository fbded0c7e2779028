"""What happens to a job's message at each step of its life."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.errors import IllegalTransitionError, JobFinishedError
from evalrpc.jobs import lifecycle, transitions
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

QUEUED, RUNNING = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


def queued_job(max_attempts: int = 1) -> pb.JobInfo:
    return pb.JobInfo(job_id="job-1", status=QUEUED, created_at=at(1), max_attempts=max_attempts)


def running_job(max_attempts: int = 1) -> pb.JobInfo:
    job = queued_job(max_attempts)
    transitions.begin_attempt(job, ("0", "3"), "/out/1", at(10))
    return job


def test_an_attempt_begins_with_its_gpus_its_folder_and_its_time() -> None:
    job = running_job()
    assert (job.status, job.attempt, list(job.gpus), job.started_at) == (RUNNING, 1, ["0", "3"], at(10))
    (attempt,) = job.attempts
    assert (attempt.number, attempt.started_at, list(attempt.gpus), attempt.output_dir) == (1, at(10), ["0", "3"], "/out/1")
    assert not attempt.HasField("completed_at")
    assert not job.HasField("completed_at")


def test_completing_sets_results_and_times_and_lets_go_of_the_gpus() -> None:
    job = running_job()
    transitions.complete(job, {"m": ModelResult(results="/out/1/m/results.json")}, at(20))
    assert (job.status, job.completed_at, list(job.gpus)) == (COMPLETED, at(20), [])
    assert job.results["m"].results == "/out/1/m/results.json"
    assert job.attempts[0].completed_at == at(20)
    assert list(job.attempts[0].gpus) == ["0", "3"], "an attempt remembers what it held"
    assert not job.HasField("error")
    assert not job.attempts[0].HasField("error")


def test_failing_sets_the_error_and_keeps_the_log_tail_out_of_the_attempt() -> None:
    job = running_job()
    transitions.fail(job, pb.JobError(reason="HARNESS_FAILED", message="x", exit_code=1, log_tail=["a", "b"]), at(20))
    assert (job.status, job.error.reason, list(job.error.log_tail)) == (FAILED, "HARNESS_FAILED", ["a", "b"])
    assert (job.attempts[0].error.reason, list(job.attempts[0].error.log_tail)) == ("HARNESS_FAILED", [])
    assert job.completed_at == job.attempts[0].completed_at == at(20)
    assert not job.gpus


@pytest.mark.parametrize("reason", sorted(transitions.RETRYABLE_REASONS))
def test_a_cause_that_a_retry_can_mend_queues_the_job_again_while_attempts_are_left(reason: str) -> None:
    job = running_job(max_attempts=2)
    transitions.fail(job, pb.JobError(reason=reason, message="x"), at(20))
    assert (job.status, job.attempt) == (QUEUED, 1)
    assert not job.HasField("error")
    assert not job.HasField("completed_at")
    assert not job.HasField("started_at")
    assert not job.HasField("progress")
    assert not job.gpus
    assert job.attempts[0].error.reason == reason
    assert job.attempts[0].completed_at == at(20)
    transitions.begin_attempt(job, ("1",), "/out/2", at(30))
    assert [attempt.number for attempt in job.attempts] == [1, 2]
    transitions.fail(job, pb.JobError(reason=reason, message="again"), at(40))
    assert (job.status, job.error.message) == (FAILED, "again")


@pytest.mark.parametrize("reason", ["HARNESS_FAILED", "RESULTS_MISSING", "TIMED_OUT", "START_FAILED", "TASKS_MISSING"])
def test_a_cause_that_a_retry_can_not_mend_fails_the_job_at_once(reason: str) -> None:
    job = running_job(max_attempts=10)
    transitions.fail(job, pb.JobError(reason=reason), at(20))
    assert job.status == FAILED


def test_a_job_whose_end_was_asked_for_is_not_tried_again() -> None:
    job = running_job(max_attempts=3)
    transitions.request_cancel(job, "", at(15))
    transitions.fail(job, pb.JobError(reason="RUN_LOST"), at(20))
    assert job.status in lifecycle.TERMINAL


def test_cancelling_a_queued_job_ends_it_at_once() -> None:
    job = queued_job()
    transitions.request_cancel(job, "no longer needed", at(5))
    assert (job.status, job.completed_at, job.cancel_reason) == (CANCELLED, at(5), "no longer needed")
    assert (job.error.reason, job.error.message) == ("CANCELLED", "no longer needed")
    assert not job.HasField("cancel_requested_at"), "the schema sets it only for a job that ran"


def test_cancelling_without_a_reason_says_so_in_a_plain_sentence() -> None:
    job = queued_job()
    transitions.request_cancel(job, "", at(5))
    assert job.error.message


def test_cancelling_a_running_job_only_notes_the_wish() -> None:
    job = running_job()
    transitions.request_cancel(job, "enough", at(15))
    assert (job.status, job.cancel_requested_at, job.cancel_reason) == (RUNNING, at(15), "enough")
    assert not job.HasField("completed_at")
    transitions.cancel(job, at(20))
    assert (job.status, job.completed_at, job.error.message) == (CANCELLED, at(20), "enough")
    assert job.cancel_requested_at == at(15), "it stays on the terminal job"
    assert job.attempts[0].error.reason == "CANCELLED"


def test_asking_again_changes_nothing() -> None:
    job = running_job()
    transitions.request_cancel(job, "first", at(15))
    before = job.SerializeToString(deterministic=True)
    transitions.request_cancel(job, "second", at(16))
    assert job.SerializeToString(deterministic=True) == before
    transitions.cancel(job, at(20))
    before = job.SerializeToString(deterministic=True)
    transitions.request_cancel(job, "third", at(21))
    assert job.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("status", [COMPLETED, FAILED])
def test_a_finished_job_can_not_be_cancelled(status: int) -> None:
    job = queued_job()
    job.status = status
    with pytest.raises(JobFinishedError):
        transitions.request_cancel(job, "", at(5))


@pytest.mark.parametrize("status", [COMPLETED, FAILED])
def test_a_job_that_finished_while_it_was_being_cancelled_can_not_be_cancelled_again(status: int) -> None:
    job = running_job()
    transitions.request_cancel(job, "", at(15))
    job.status = status
    with pytest.raises(JobFinishedError):
        transitions.request_cancel(job, "", at(25))


def test_cancelling_a_job_that_waits_for_its_second_attempt_leaves_the_first_as_it_was() -> None:
    job = running_job(max_attempts=2)
    transitions.fail(job, pb.JobError(reason="RUN_LOST", message="lost"), at(20))
    transitions.request_cancel(job, "", at(25))
    assert job.status == CANCELLED
    assert (job.attempts[0].error.reason, job.attempts[0].completed_at) == ("RUN_LOST", at(20))


@settings(deadline=None)
@given(st.text())
def test_a_message_becomes_one_line_of_at_most_two_kib(message: str) -> None:
    line = transitions.shorten(message)
    assert len(line.encode()) <= transitions.MAX_MESSAGE_BYTES
    assert len(line.splitlines()) <= 1
    if len(message.encode()) <= transitions.MAX_MESSAGE_BYTES:
        assert line == " ".join(message.split())


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 3000, "\U0001f600" * 2000, "ab\n" * 3000])
def test_a_long_message_keeps_its_beginning_and_shows_that_it_was_cut(text: str) -> None:
    line = transitions.shorten(text)
    assert transitions.MAX_MESSAGE_BYTES - 8 <= len(line.encode()) <= transitions.MAX_MESSAGE_BYTES
    assert line.endswith("…")
    assert line[:2] == text[:2]


STEPS = {
    "begin_attempt": (lambda job: transitions.begin_attempt(job, ("0",), "/out/2", at(30)), {QUEUED}),
    "keep_results": (lambda job: transitions.keep_results(job, {"m": ModelResult()}), {RUNNING}),
    "complete": (lambda job: transitions.complete(job, {"m": ModelResult()}, at(30)), {RUNNING}),
    "fail": (lambda job: transitions.fail(job, pb.JobError(reason="HARNESS_FAILED"), at(30)), {QUEUED, RUNNING}),
    "fail for a while": (lambda job: transitions.fail(job, pb.JobError(reason="RUN_LOST"), at(30)), {RUNNING}),
    "cancel": (lambda job: transitions.cancel(job, at(30)), {QUEUED, RUNNING}),
    "supersede": (lambda job: transitions.supersede(job, "job-2", at(30)), {QUEUED}),
}


@pytest.mark.parametrize("status", [QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_taken_only_from_a_status_that_it_may_follow(name: str, status: lifecycle.Status) -> None:
    step, allowed = STEPS[name]
    job = running_job(max_attempts=3)
    job.status = status
    before = pb.JobInfo()
    before.CopyFrom(job)
    if status in allowed:
        step(job)
        assert job != before
    else:
        with pytest.raises(IllegalTransitionError):
            step(job)
        assert job == before, "nothing is changed"


def test_an_error_is_held_to_its_bounds_whoever_wrote_it() -> None:
    job = running_job()
    error = pb.JobError(reason="R" * 10_000, message="😀" * 10_000, exit_code=0, log_tail=["x" * 1000] * 1000)
    transitions.fail(job, error, at(20))
    for kept in (job.error, job.attempts[0].error):
        assert (len(kept.reason), kept.exit_code, kept.HasField("exit_code"), kept.HasField("signal")) == (255, 0, True, False)
        assert len(kept.message.encode()) <= transitions.MAX_MESSAGE_BYTES
    assert job.error.log_tail[-1] == "x" * 1000
    assert sum(map(len, job.error.log_tail)) <= transitions.MAX_TAIL_BYTES
    assert not job.attempts[0].error.log_tail
