"""Which attempt of a job a caller means, and where it left its files."""

from pathlib import Path

from evalrpc.errors import AttemptNotFoundError
from evalrpc.v1.jobs_pb2 import JobInfo


def attempt_number(job: JobInfo, wanted: int) -> int:
    """Return the number of an attempt; 0 means the latest. Raises AttemptNotFoundError."""
    number = wanted or job.attempt
    if not 1 <= number <= job.attempt:
        there_are = f"it has {job.attempt}" if job.attempt else "none has begun"
        raise AttemptNotFoundError(f"job {job.job_id} has no attempt {number or 1}: {there_are}")
    return number


def output_dir(job: JobInfo, attempt: int = 0) -> Path | None:
    """Return the output folder of an attempt; None if the latest is meant and none has begun. Raises AttemptNotFoundError."""
    if not attempt and not job.attempts:
        return None
    return Path(job.attempts[attempt_number(job, attempt) - 1].output_dir)
