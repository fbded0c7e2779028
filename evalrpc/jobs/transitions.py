"""What happens to a job's message at each step of its life. Pure: each function changes the message that it is given, and the
store commits it."""

from collections.abc import Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.errors import JobFinishedError
from evalrpc.jobs import lifecycle
from evalrpc.v1 import job_pb2 as pb

MAX_MESSAGE_BYTES: Final = 2048

RETRYABLE_REASONS: Final = frozenset({"RUN_LOST", "PROCESS_SIGNALLED", "OUT_OF_MEMORY"})
"""Causes that another attempt may mend. A wrong task name is none."""

UNKILLABLE_REASON: Final = "PROCESS_UNKILLABLE"
"""Some process of the run could not be ended."""

FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 60.0


def begin_attempt(job: pb.JobInfo, gpus: tuple[str, ...], output_dir: str, now: Timestamp) -> None:
    """QUEUED to RUNNING, with a new attempt."""
    job.status = pb.JOB_STATUS_RUNNING
    job.attempt += 1
    job.ClearField("retry_at")
    job.ClearField("results")
    job.started_at.CopyFrom(now)
    job.gpus[:] = gpus
    job.attempts.add(number=job.attempt, started_at=now, gpus=gpus, output_dir=output_dir)


def keep_results(job: pb.JobInfo, results: Mapping[str, pb.ModelResult]) -> None:
    """Note what has finished so far, in place of what was noted before."""
    job.ClearField("results")
    for model, result in results.items():
        job.results[model].CopyFrom(result)


def complete(job: pb.JobInfo, results: Mapping[str, pb.ModelResult], now: Timestamp) -> None:
    """RUNNING to COMPLETED."""
    keep_results(job, results)
    _end(job, pb.JOB_STATUS_COMPLETED, now)


def fail(job: pb.JobInfo, error: pb.JobError, now: Timestamp) -> None:
    """RUNNING to FAILED, or back to QUEUED where another attempt may mend it and one is left.

    Where a cancel was asked for, to CANCELLED: whatever ended the run, that is what was wanted, and nothing of it is left.
    """
    if job.HasField("cancel_requested_at") and error.reason != UNKILLABLE_REASON:
        cancel(job, now)
        return
    _end_attempt(job, error, now)
    if error.reason in RETRYABLE_REASONS and job.attempt < job.max_attempts:
        job.status = pb.JOB_STATUS_QUEUED
        job.ClearField("started_at")
        job.ClearField("progress")
        job.retry_at.FromNanoseconds(now.ToNanoseconds() + int(backoff_seconds(job.attempt) * 1e9))
        return
    job.error.CopyFrom(error)
    _end(job, pb.JOB_STATUS_FAILED, now)


def backoff_seconds(attempts: int) -> float:
    """Return how long to wait after so many attempts: doubling, within bounds."""
    return float(min(FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1), MAX_BACKOFF_SECONDS))


def request_cancel(job: pb.JobInfo, reason: str, now: Timestamp) -> None:
    """QUEUED to CANCELLED at once; RUNNING only notes the wish, which the scheduler carries out.

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
    """To CANCELLED, once no process of it is left."""
    job.error.CopyFrom(pb.JobError(reason="CANCELLED", message=job.cancel_reason or "cancelled on request"))
    _end_attempt(job, job.error, now)
    _end(job, pb.JOB_STATUS_CANCELLED, now)


def shorten(message: str) -> str:
    """Cut a message to one line of the size that a JobError may have."""
    line = " ".join(message.split())
    encoded = line.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return line
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "…"


def _end(job: pb.JobInfo, status: lifecycle.Status, now: Timestamp) -> None:
    job.status = status
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
