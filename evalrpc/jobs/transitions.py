"""What happens to a job's message at each step of its life. Pure: each function changes the message that it is given, and the
store commits it. Each raises IllegalTransitionError, and changes nothing, where the lifecycle has no such step."""

from collections.abc import Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.errors import IllegalTransitionError, JobFinishedError
from evalrpc.jobs import lifecycle
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

UNKILLABLE_REASON: Final = "PROCESS_UNKILLABLE"
"""Some process of the run could not be ended."""

FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 60.0


def begin_attempt(job: pb.JobInfo, gpus: tuple[str, ...], output_dir: str, now: Timestamp) -> None:
    """QUEUED to RUNNING, with a new attempt."""
    _move(job, pb.JOB_STATUS_RUNNING)
    job.attempt += 1
    job.ClearField("retry_at")
    job.ClearField("results")
    job.started_at.CopyFrom(now)
    job.gpus[:] = gpus
    job.attempts.add(number=job.attempt, started_at=now, gpus=gpus, output_dir=output_dir)


def keep_results(job: pb.JobInfo, results: Mapping[str, ModelResult]) -> None:
    """Record what a RUNNING job has finished so far, replacing what was recorded before."""
    _require(job, pb.JOB_STATUS_RUNNING)
    job.ClearField("results")
    for model, result in results.items():
        job.results[model].CopyFrom(result)


def complete(job: pb.JobInfo, results: Mapping[str, ModelResult], now: Timestamp) -> None:
    """RUNNING to COMPLETED."""
    keep_results(job, results)
    _move(job, pb.JOB_STATUS_COMPLETED)
    _end(job, now)


def fail(job: pb.JobInfo, error: pb.JobError, now: Timestamp) -> None:
    """RUNNING to FAILED, or back to QUEUED where another attempt may fix it and one is left.

    Where a cancel was asked for, to CANCELLED: whatever ended the run, that is what was wanted, and nothing of it is left.
    """
    if job.HasField("cancel_requested_at") and error.reason != UNKILLABLE_REASON:
        cancel(job, now)
        return
    is_retried = error.reason in RETRYABLE_REASONS and job.attempt < job.max_attempts
    _move(job, pb.JOB_STATUS_QUEUED if is_retried else pb.JOB_STATUS_FAILED)
    error = _bounded(error)
    _end_attempt(job, error, now)
    if is_retried:
        job.ClearField("started_at")
        job.ClearField("progress")
        job.retry_at.FromNanoseconds(now.ToNanoseconds() + int(backoff_seconds(job.attempt) * 1e9))
        return
    job.error.CopyFrom(error)
    _end(job, now)


def backoff_seconds(attempts: int) -> float:
    """Return how long to wait after so many attempts: doubling, within bounds."""
    return float(min(FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1), MAX_BACKOFF_SECONDS))


def request_cancel(job: pb.JobInfo, reason: str, now: Timestamp) -> None:
    """QUEUED to CANCELLED at once; RUNNING only records the request, which the scheduler carries out.

    Asking again changes nothing. Raises JobFinishedError for a job that is COMPLETED or FAILED.
    """
    if job.status == pb.JOB_STATUS_CANCELLED:
        return
    if job.status in lifecycle.TERMINAL:
        raise JobFinishedError(
            f"job {job.job_id} is already {lifecycle.status_name(job.status)}: there is nothing left to cancel"
        )
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


def shorten(message: str) -> str:
    """Cut a message to one line of the size that a JobError may have."""
    return cut(" ".join(message.split()), MAX_MESSAGE_BYTES)


def _require(job: pb.JobInfo, status: lifecycle.Status) -> None:
    if job.status != status:
        expected, found = lifecycle.status_name(status), lifecycle.status_name(job.status)
        raise IllegalTransitionError(f"job {job.job_id} is {found}, where this needs one that is {expected}")


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


def _end(job: pb.JobInfo, now: Timestamp) -> None:
    job.completed_at.CopyFrom(now)
    job.ClearField("retry_at")
    _end_attempt(job, None, now)


def _end_attempt(job: pb.JobInfo, error: pb.JobError | None, now: Timestamp) -> None:
    del job.gpus[:]
    if not job.attempts or job.attempts[-1].HasField("completed_at"):
        return
    attempt = job.attempts[-1]
    attempt.completed_at.CopyFrom(now)
    if error is not None:
        attempt.error.CopyFrom(error)
        del attempt.error.log_tail[:]
