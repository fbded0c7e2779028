"""What happens to a job's message at each step of its life. Pure: each function changes the message that it is given, and the
store commits it. Each raises IllegalTransitionError, and changes nothing, where the lifecycle has no such step."""

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.errors import IllegalTransitionError, JobFinishedError, JobNotQueuedError
from evalrpc.jobs import lifecycle
from evalrpc.jobs.size_limits import MAX_WARNING_BYTES, MAX_WARNINGS
from evalrpc.protobuf.texts import bounded_name, cut, last_lines
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.results_pb2 import ModelResult

MAX_MESSAGE_BYTES: Final = 2048
"""The size of a JobError's message."""

MAX_TAIL_LINES: Final = 50
MAX_TAIL_BYTES: Final = 16 * 1024
"""The size of a JobError's log tail."""

RETRYABLE_REASONS: Final = frozenset({"RUN_LOST", "PROCESS_SIGNALLED", "OUT_OF_MEMORY"})
"""Failures that another attempt may fix. A wrong task name is none of them."""

PREEMPTED_REASON: Final = "PREEMPTED"
"""The run was ended to make room for a job that comes first. Such an attempt does not count."""

ENGINE_LOST_REASON: Final = "ENGINE_LOST"
"""The engine that answered for the model has ended. Such an attempt does not count, up to MAX_ENGINES_LOST of them."""

MAX_ENGINES_LOST: Final = 3

UNKILLABLE_REASON: Final = "PROCESS_UNKILLABLE"
"""Some process of the run could not be ended."""

KEPT_ATTEMPTS: Final = 20
"""How many of the first attempts of a job, and of the last, are kept, whatever their number."""

FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 60.0


def is_follower(job: pb.JobInfo) -> bool:
    """Return whether a job waits for another job of the same evaluation, whose results it will share."""
    return job.status == pb.JOB_STATUS_QUEUED and bool(job.cached_from)


def follow(job: pb.JobInfo, source_id: str) -> None:
    """Let a new or QUEUED job wait for another one of the same evaluation."""
    _require_waiting(job)
    job.cached_from = source_id


def unfollow(job: pb.JobInfo) -> None:
    """Let a QUEUED job run itself, since the one that it followed did not complete."""
    _require_waiting(job)
    job.ClearField("cached_from")


def share_results(job: pb.JobInfo, source: pb.JobInfo, now: Timestamp) -> None:
    """Complete a new job, or one that follows `source`, with the results of `source`, which is COMPLETED. It names the job that
    really ran, which `source` may not have done itself."""
    _require_waiting(job)
    _move(job, pb.JOB_STATUS_COMPLETED)
    job.cached_from = source.cached_from or source.job_id
    job.cached_from_attempt = source.cached_from_attempt or source.attempt
    for model, result in source.results.items():
        job.results[model].CopyFrom(result)
    _take_over_warnings(job)
    job.started_at.CopyFrom(now)
    _end(job, now)


def raise_priority(job: pb.JobInfo, priority: int) -> None:
    """Let a live job be served no later than a job that follows it."""
    job.priority = max(job.priority, priority)


def begin_attempt(
    job: pb.JobInfo,
    gpus: tuple[str, ...],
    output_dir: str,
    now: Timestamp,
    gpu_mode: pb.GpuMode.ValueType = pb.GPU_MODE_UNSPECIFIED,
    node: str = "",
) -> None:
    """QUEUED to RUNNING, with a new attempt. Never of a job that follows another."""
    if is_follower(job):
        raise IllegalTransitionError(f"job {job.job_id} follows job {job.cached_from}, so it must not run")
    _move(job, pb.JOB_STATUS_RUNNING)
    job.attempt += 1
    job.ClearField("retry_at")
    job.ClearField("results")
    job.ClearField("usage")
    job.started_at.CopyFrom(now)
    job.gpus[:] = gpus
    job.attempt_count = job.attempt
    job.attempts.add(number=job.attempt, started_at=now, gpus=gpus, output_dir=output_dir, gpu_mode=gpu_mode, node=node)
    _forget_preempted(job)


def counted_attempts(job: pb.JobInfo) -> int:
    """Return how many attempts of a job count, of `max_attempts`."""
    return sum(1 for attempt in job.attempts if attempt.error.reason not in (PREEMPTED_REASON, ENGINE_LOST_REASON))


def note_engines(job: pb.JobInfo, engine_id: str, judge_engine_id: str) -> None:
    """Record which engines answer for the models of a RUNNING job; empty: none does, or an endpoint."""
    _require(job, pb.JOB_STATUS_RUNNING)
    job.attempts[-1].engine_id = engine_id
    job.attempts[-1].judge_engine_id = judge_engine_id


def request_preemption(job: pb.JobInfo) -> None:
    """Record that a RUNNING job is to give way to another one, which the scheduler carries out: see `preempt`.

    Raises IllegalTransitionError for a job that is not preemptible, or that is about to be cancelled.
    """
    _require(job, pb.JOB_STATUS_RUNNING)
    if not job.preemptible or job.HasField("cancel_requested_at"):
        raise IllegalTransitionError(f"job {job.job_id} can't be preempted: it is not preemptible, or is being cancelled")
    job.attempts[-1].error.reason = PREEMPTED_REASON
    job.attempts[-1].error.message = "gave way to a job that comes before it in the order of service"


def is_giving_way(job: pb.JobInfo) -> bool:
    """Return whether a job is RUNNING, and its run is to end to make room for another job."""
    return job.status == pb.JOB_STATUS_RUNNING and bool(job.attempts) and job.attempts[-1].error.reason == PREEMPTED_REASON


def preempt(job: pb.JobInfo, now: Timestamp) -> None:
    """RUNNING to QUEUED, of a job that was to give way, once no process of it is left. Where a cancel was asked for meanwhile,
    to CANCELLED."""
    if job.HasField("cancel_requested_at"):
        cancel(job, now)
        return
    error = job.attempts[-1].error
    _move(job, pb.JOB_STATUS_QUEUED)
    _end_attempt(job, error, now)
    _wait_again(job)


def last_preempted_at(job: pb.JobInfo) -> Timestamp | None:
    """Return when an attempt of a job last ended to make room for another job."""
    ended = (attempt for attempt in reversed(job.attempts) if attempt.error.reason == PREEMPTED_REASON)
    return next((attempt.completed_at for attempt in ended if attempt.HasField("completed_at")), None)


def keep_results(job: pb.JobInfo, results: Mapping[str, ModelResult]) -> None:
    """Record what a RUNNING job has finished so far, replacing what was recorded before."""
    _require(job, pb.JOB_STATUS_RUNNING)
    job.ClearField("results")
    for model, result in results.items():
        job.results[model].CopyFrom(result)


def complete(job: pb.JobInfo, results: Mapping[str, ModelResult], now: Timestamp) -> None:
    """RUNNING to COMPLETED, with the warnings of the results among those of the job."""
    keep_results(job, results)
    _take_over_warnings(job)
    _move(job, pb.JOB_STATUS_COMPLETED)
    _end(job, now)


def fail(job: pb.JobInfo, error: pb.JobError, now: Timestamp) -> None:
    """RUNNING to FAILED, or back to QUEUED where another attempt may fix it and one is left.

    Where a cancel was asked for, to CANCELLED, and where it was to give way, to QUEUED: whatever ended the run, that is what
    was wanted, and nothing of it is left.
    """
    if is_giving_way(job) and error.reason != UNKILLABLE_REASON:
        preempt(job, now)
        return
    if job.HasField("cancel_requested_at") and error.reason != UNKILLABLE_REASON:
        cancel(job, now)
        return
    is_retried = _is_tried_again(job, error)
    _move(job, pb.JOB_STATUS_QUEUED if is_retried else pb.JOB_STATUS_FAILED)
    error = _bounded(error)
    _end_attempt(job, error, now)
    if is_retried:
        _wait_again(job)
        job.retry_at.FromNanoseconds(now.ToNanoseconds() + int(backoff_seconds(max(1, counted_attempts(job))) * 1e9))
        return
    job.error.CopyFrom(error)
    _end(job, now)


def _is_tried_again(job: pb.JobInfo, error: pb.JobError) -> bool:
    if error.reason == PREEMPTED_REASON:  # by a cluster
        return True
    return _may_lose_another_engine(job) if error.reason == ENGINE_LOST_REASON else _may_fail_again(job, error)


def _may_fail_again(job: pb.JobInfo, error: pb.JobError) -> bool:
    return error.reason in RETRYABLE_REASONS and counted_attempts(job) < job.max_attempts


def _may_lose_another_engine(job: pb.JobInfo) -> bool:
    """Return whether a job whose engine is lost once more is tried again. This attempt has no error yet."""
    return sum(1 for attempt in job.attempts if attempt.error.reason == ENGINE_LOST_REASON) < MAX_ENGINES_LOST


def backoff_seconds(attempts: int) -> float:
    """Return how long to wait after so many attempts: doubling, within bounds."""
    return float(min(FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1), MAX_BACKOFF_SECONDS))


def update(job: pb.JobInfo, labels: Mapping[str, str] | None, priority: int | None) -> None:
    """Replace the labels, and the priority, of a job in any status. None leaves them.

    Raises JobFinishedError for the priority of a terminal job.
    """
    if priority is not None:
        if job.status in lifecycle.TERMINAL:
            raise JobFinishedError(
                f"job {job.job_id} is already {lifecycle.status_name(job.status)}: its priority means nothing any more"
            )
        job.priority = priority
    if labels is not None:
        job.ClearField("labels")
        job.labels.update(labels)


def request_cancel(job: pb.JobInfo, reason: str, now: Timestamp, *, queued_only: bool = False) -> None:
    """QUEUED to CANCELLED at once; RUNNING only records the request, which the scheduler carries out.

    Asking again changes nothing. Raises JobFinishedError for a job that is COMPLETED or FAILED, and JobNotQueuedError for one
    that is RUNNING if `queued_only`.
    """
    if job.status == pb.JOB_STATUS_CANCELLED:
        return
    if job.status in lifecycle.TERMINAL:
        raise JobFinishedError(
            f"job {job.job_id} is already {lifecycle.status_name(job.status)}: there is nothing left to cancel"
        )
    if queued_only and job.status == pb.JOB_STATUS_RUNNING:
        raise JobNotQueuedError(f"job {job.job_id} is RUNNING: cancel it without queued_only, or let it run")
    if job.HasField("cancel_requested_at"):
        return
    job.cancel_reason = reason
    if job.status == pb.JOB_STATUS_QUEUED:
        cancel(job, now)
    else:
        job.cancel_requested_at.CopyFrom(now)


def cancel(job: pb.JobInfo, now: Timestamp) -> None:
    """QUEUED or RUNNING to CANCELLED, once no process of it is left."""
    _move(job, pb.JOB_STATUS_CANCELLED)
    job.error.CopyFrom(_bounded(pb.JobError(reason="CANCELLED", message=job.cancel_reason or "cancelled on request")))
    _end_attempt(job, job.error, now)
    _end(job, now)


def supersede(job: pb.JobInfo, by_job_id: str, now: Timestamp) -> None:
    """QUEUED to CANCELLED, since a newer job has the same supersede key."""
    _require(job, pb.JOB_STATUS_QUEUED)
    _move(job, pb.JOB_STATUS_CANCELLED)
    job.error.reason = "SUPERSEDED"
    job.error.message = f"superseded by job {by_job_id}, which has the same supersede_key"
    _end(job, now)


def add_warnings(job: pb.JobInfo, warnings: Iterable[str]) -> None:
    """Add warnings to a job in any status, each once: as many as a job may have, and each within its bound."""
    known = [*job.warnings, *(cut(warning, MAX_WARNING_BYTES) for warning in warnings)]
    job.warnings[:] = list(dict.fromkeys(known))[:MAX_WARNINGS]


def shorten(message: str) -> str:
    """Cut a message to one line of the size that a JobError may have."""
    return cut(" ".join(message.split()), MAX_MESSAGE_BYTES)


def _take_over_warnings(job: pb.JobInfo) -> None:
    """Put what is doubtful about the results among the warnings of the job."""
    add_warnings(job, (warning for _, result in sorted(job.results.items()) for warning in result.warnings))


def _require(job: pb.JobInfo, status: lifecycle.Status) -> None:
    if job.status != status:
        expected, found = lifecycle.status_name(status), lifecycle.status_name(job.status)
        raise IllegalTransitionError(f"job {job.job_id} is {found}, where this needs one that is {expected}")


def _require_waiting(job: pb.JobInfo) -> None:
    """Require a job that is new, or QUEUED, and never ran."""
    if job.status not in (pb.JOB_STATUS_UNSPECIFIED, pb.JOB_STATUS_QUEUED) or job.attempt:
        state = f"{lifecycle.status_name(job.status)}, with {job.attempt} attempts"
        raise IllegalTransitionError(f"job {job.job_id} is {state}: it can't share the run of another any more")


def _move(job: pb.JobInfo, status: lifecycle.Status) -> None:
    lifecycle.require_transition(job.status, status)
    job.status = status


def _bounded(error: pb.JobError) -> pb.JobError:
    """Return an error within its bounds, whoever has written it: a harness may be a plugin."""
    return pb.JobError(
        reason=bounded_name(error.reason),
        message=cut(error.message, MAX_MESSAGE_BYTES),
        exit_code=error.exit_code if error.HasField("exit_code") else None,
        signal=error.signal if error.HasField("signal") else None,
        log_tail=last_lines(error.log_tail, MAX_TAIL_LINES, MAX_TAIL_BYTES),
    )


def _wait_again(job: pb.JobInfo) -> None:
    job.ClearField("started_at")
    job.ClearField("progress")


def _forget_preempted(job: pb.JobInfo) -> None:
    """Keep the first and the last attempts, and of those between the ones that count, of which there are few."""
    between = range(KEPT_ATTEMPTS, len(job.attempts) - KEPT_ATTEMPTS)
    for place in reversed(between):
        if job.attempts[place].error.reason == PREEMPTED_REASON:
            del job.attempts[place]


def _end(job: pb.JobInfo, now: Timestamp) -> None:
    job.completed_at.CopyFrom(now)
    job.ClearField("retry_at")
    if job.status != pb.JOB_STATUS_COMPLETED:
        job.ClearField("cached_from")  # it followed a job, and shares nothing now
    _end_attempt(job, None, now)


def _end_attempt(job: pb.JobInfo, error: pb.JobError | None, now: Timestamp) -> None:
    del job.gpus[:]
    if not job.attempts or job.attempts[-1].HasField("completed_at"):
        return
    attempt = job.attempts[-1]
    attempt.completed_at.CopyFrom(now)
    if error is None:
        attempt.ClearField("error")  # it was to give way, and has completed before that
    else:
        attempt.error.CopyFrom(error)
        del attempt.error.log_tail[:]
