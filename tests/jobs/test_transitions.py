"""What happens to a job's message at each step of its life."""

from collections.abc import Callable

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.errors import IllegalTransitionError, JobFinishedError, JobNotQueuedError
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.size_limits import KIB, RESERVED_BYTES
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


def test_an_attempt_says_how_its_processes_share_its_gpus() -> None:
    job = queued_job()
    transitions.begin_attempt(job, ("0", "1"), "/out", at(5), pb.GPU_MODE_MODEL_PARALLEL)
    assert job.attempts[-1].gpu_mode == pb.GPU_MODE_MODEL_PARALLEL


def test_completing_sets_results_and_times_and_lets_go_of_the_gpus() -> None:
    job = running_job()
    transitions.complete(job, {"m": ModelResult(results="/out/1/m/results.json")}, at(20))
    assert (job.status, job.completed_at, list(job.gpus)) == (COMPLETED, at(20), [])
    assert job.results["m"].results == "/out/1/m/results.json"
    assert job.attempts[0].completed_at == at(20)
    assert list(job.attempts[0].gpus) == ["0", "3"], "an attempt remembers what it held"
    assert not job.HasField("error")
    assert not job.attempts[0].HasField("error")


def test_the_warnings_of_the_results_are_among_those_of_the_job_once() -> None:
    job = running_job()
    job.warnings.append("the harness lists no task 't'")
    results = {
        name: ModelResult(warnings=["1 of 2 answers failed: why", "the harness lists no task 't'"]) for name in ("m", "n")
    }
    transitions.complete(job, results, at(9))
    assert list(job.warnings) == ["the harness lists no task 't'", "1 of 2 answers failed: why"]


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


def test_only_a_queued_job_is_cancelled_where_that_is_asked_for() -> None:
    job = running_job()
    before = job.SerializeToString(deterministic=True)
    with pytest.raises(JobNotQueuedError):
        transitions.request_cancel(job, "", at(15), queued_only=True)
    assert job.SerializeToString(deterministic=True) == before
    transitions.request_cancel(job, "", at(16))
    with pytest.raises(JobNotQueuedError):
        transitions.request_cancel(job, "", at(17), queued_only=True)
    job = queued_job()
    transitions.request_cancel(job, "", at(5), queued_only=True)
    assert job.status == CANCELLED


def test_an_update_changes_what_is_given_and_nothing_else() -> None:
    job = queued_job()
    job.labels["a"] = "1"
    transitions.update(job, None, 4)
    assert (job.priority, job.labels) == (4, {"a": "1"})
    transitions.update(job, {"b": "2"}, None)
    assert (job.priority, job.labels) == (4, {"b": "2"})
    transitions.update(job, {}, 0)
    assert (job.priority, job.labels) == (0, {})


def test_a_terminal_job_keeps_its_priority() -> None:
    job = queued_job()
    transitions.request_cancel(job, "", at(5))
    before = job.SerializeToString(deterministic=True)
    with pytest.raises(JobFinishedError):
        transitions.update(job, {"a": "1"}, 1)
    assert job.SerializeToString(deterministic=True) == before
    transitions.update(job, {"a": "1"}, None)
    assert job.labels == {"a": "1"}


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


def test_warnings_are_held_to_their_bounds_and_each_is_there_once() -> None:
    job = running_job()
    transitions.add_warnings(job, ["about the submission"])
    results = {name: ModelResult(warnings=[f"{number}" * 5000 for number in range(40)]) for name in "ab"}
    transitions.complete(job, results, at(20))
    assert (len(job.warnings), len(set(job.warnings)), job.warnings[0]) == (32, 32, "about the submission")
    assert max(len(warning.encode()) for warning in job.warnings) == 1024


# Jobs that share the run of another.


def completed_job() -> pb.JobInfo:
    job = running_job()
    transitions.complete(job, {"m": ModelResult(results="/out/1/m/results.json")}, at(20))
    return job


def follower() -> pb.JobInfo:
    job = pb.JobInfo(job_id="job-2", status=QUEUED, created_at=at(5), max_attempts=1)
    transitions.follow(job, "job-1")
    return job


@pytest.mark.parametrize("job", [pb.JobInfo(job_id="job-2", created_at=at(5)), follower()])
def test_a_job_that_shares_a_run_has_its_results_and_no_attempt(job: pb.JobInfo) -> None:
    transitions.share_results(job, completed_job(), at(25))
    assert (job.status, job.started_at, job.completed_at, job.created_at) == (COMPLETED, at(25), at(25), at(5))
    assert (job.cached_from, job.cached_from_attempt, job.attempt, list(job.attempts)) == ("job-1", 1, 0, [])
    assert job.results == completed_job().results
    third = pb.JobInfo(job_id="job-3")
    transitions.share_results(third, job, at(30))
    assert (third.cached_from, third.cached_from_attempt, third.results) == ("job-1", 1, job.results)


def test_a_follower_must_not_run_and_may_when_it_follows_nobody() -> None:
    job = follower()
    assert transitions.is_follower(job)
    before = pb.JobInfo()
    before.CopyFrom(job)
    with pytest.raises(IllegalTransitionError, match="job-2 follows job job-1"):
        transitions.begin_attempt(job, (), "/out", at(10))
    assert job == before
    transitions.unfollow(job)
    assert not transitions.is_follower(job)
    transitions.begin_attempt(job, (), "/out", at(10))
    assert job.status == RUNNING


@pytest.mark.parametrize(
    "end", [lambda job: transitions.request_cancel(job, "", at(9)), lambda job: transitions.supersede(job, "job-3", at(9))]
)
def test_a_follower_that_is_ended_shares_nothing(end: Callable[[pb.JobInfo], None]) -> None:
    job = follower()
    end(job)
    assert (job.status, job.cached_from, job.HasField("started_at")) == (CANCELLED, "", False)


@pytest.mark.parametrize("make", [running_job, completed_job])
def test_a_job_that_ran_shares_no_other_run(make: Callable[[], pb.JobInfo]) -> None:
    tried_again = running_job(max_attempts=2)
    transitions.fail(tried_again, pb.JobError(reason="RUN_LOST"), at(20))
    for job in (make(), tried_again):
        before = pb.JobInfo()
        before.CopyFrom(job)
        for step in (
            lambda job: transitions.follow(job, "job-9"),
            lambda job: transitions.share_results(job, completed_job(), at(30)),
        ):
            with pytest.raises(IllegalTransitionError):
                step(job)
        assert job == before


def test_a_priority_is_raised_and_never_lowered_by_followers() -> None:
    job = queued_job()
    for priority, expected in ((3, 3), (-1, 3), (4, 4)):
        transitions.raise_priority(job, priority)
        assert job.priority == expected


# Giving way to another job.


def preemptible_job(max_attempts: int = 1) -> pb.JobInfo:
    job = running_job(max_attempts)
    job.preemptible = True
    return job


def preempted_job(times: int) -> pb.JobInfo:
    """A running job that has given way so often before."""
    job = preemptible_job()
    for _ in range(times):
        transitions.request_preemption(job)
        transitions.preempt(job, at(50))
        transitions.begin_attempt(job, ("0",), "/out", at(60))
    return job


def test_a_job_that_gave_way_waits_in_its_old_place_and_its_attempt_does_not_count() -> None:
    job = preemptible_job()
    transitions.keep_results(job, {"m": ModelResult(results="/r.json")})
    assert not transitions.is_giving_way(job)
    transitions.request_preemption(job)
    assert transitions.is_giving_way(job)
    assert job.status == pb.JOB_STATUS_RUNNING
    transitions.preempt(job, at(30))
    assert (job.status, transitions.is_giving_way(job)) == (pb.JOB_STATUS_QUEUED, False)
    assert not any(map(job.HasField, ("retry_at", "started_at", "error")))
    assert not job.gpus
    assert (job.attempts[0].error.reason, job.attempts[0].completed_at) == ("PREEMPTED", at(30))
    assert (transitions.counted_attempts(job), transitions.last_preempted_at(job)) == (0, at(30))
    transitions.begin_attempt(job, (), "/out", at(40))
    assert (job.attempt, job.attempt_count, transitions.counted_attempts(job)) == (2, 2, 1)
    assert transitions.last_preempted_at(job) == at(30)


def test_only_a_preemptible_job_that_runs_is_asked_to_give_way() -> None:
    for job in (running_job(), queued_job(), completed_job()):
        before = job.SerializeToString()
        with pytest.raises(IllegalTransitionError):
            transitions.request_preemption(job)
        assert job.SerializeToString() == before


@pytest.mark.parametrize("reason", ["PROCESS_SIGNALLED", "HARNESS_FAILED", "TIMED_OUT", "RUN_LOST", "SERVER_ERROR"])
def test_whatever_ended_the_run_of_a_job_that_was_to_give_way_it_gave_way(reason: str) -> None:
    job = preemptible_job()
    transitions.request_preemption(job)
    transitions.fail(job, pb.JobError(reason=reason), at(30))
    assert (job.status, job.attempts[0].error.reason) == (pb.JOB_STATUS_QUEUED, "PREEMPTED")


def test_a_cancel_while_a_job_gives_way_and_a_run_that_can_not_be_ended_count_more() -> None:
    for end in (
        lambda job: transitions.preempt(job, at(30)),
        lambda job: transitions.fail(job, pb.JobError(reason="RUN_LOST"), at(30)),
    ):
        job = preemptible_job()
        transitions.request_preemption(job)
        transitions.request_cancel(job, "enough", at(20))
        end(job)
        assert (job.status, job.attempts[0].error.reason) == (pb.JOB_STATUS_CANCELLED, "CANCELLED")
    job = preemptible_job()
    transitions.request_preemption(job)
    transitions.fail(job, pb.JobError(reason="PROCESS_UNKILLABLE"), at(30))
    assert (job.status, job.attempts[0].error.reason) == (pb.JOB_STATUS_FAILED, "PROCESS_UNKILLABLE")


def test_retries_and_their_waits_count_only_attempts_that_did_not_give_way() -> None:
    job = preempted_job(3)
    job.max_attempts = 2
    transitions.fail(job, pb.JobError(reason="RUN_LOST"), at(100))
    assert (job.status, job.retry_at) == (pb.JOB_STATUS_QUEUED, at(101))
    transitions.begin_attempt(job, (), "/out", at(110))
    transitions.fail(job, pb.JobError(reason="RUN_LOST"), at(120))
    assert (job.status, job.attempt, job.attempt_count) == (pb.JOB_STATUS_FAILED, 5, 5)


def test_of_very_many_attempts_the_first_and_the_last_are_kept_and_all_that_count() -> None:
    job = preempted_job(24)
    job.max_attempts = 3
    transitions.fail(job, pb.JobError(reason="RUN_LOST"), at(70))
    for _ in range(50):
        transitions.begin_attempt(job, (), "/out", at(80))
        transitions.request_preemption(job)
        transitions.preempt(job, at(90))
    numbers = [attempt.number for attempt in job.attempts]
    assert numbers == [*range(1, 21), 25, *range(56, 76)]
    assert (job.attempt, job.attempt_count, transitions.counted_attempts(job)) == (75, 75, 1)


def test_the_attempts_of_a_job_fit_into_what_is_reserved_for_them() -> None:
    job = queued_job(max_attempts=10)
    job.preemptible = True
    gpus = tuple(f"GPU-{number:036d}" for number in range(8))
    folder = "/" + "x" * 4095
    counted = 0
    for number in range(100):
        transitions.begin_attempt(job, gpus, folder, at(number))
        if number % 9 == 8 and counted < 9:
            counted += 1
            transitions.fail(job, pb.JobError(reason="RUN_LOST", message="m" * 9999), at(number))
        else:
            transitions.request_preemption(job)
            transitions.preempt(job, at(number))
    others = (70 + 33 + 19 + 4 + 2) * KIB
    assert sum(attempt.ByteSize() + 4 for attempt in job.attempts) + others < RESERVED_BYTES
