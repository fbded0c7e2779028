"""Which attempt of a job a caller means, and where it left its files: in its own folders, or in those of the job whose run it
shares."""

from pathlib import Path

from evalrpc.errors import AttemptNotFoundError
from evalrpc.jobs.paths import attempt_dir, attempt_output_dir, job_dir, output_path
from evalrpc.v1.jobs_pb2 import JobInfo


def attempt_number(job: JobInfo, wanted: int) -> int:
    """Return the number of an attempt; 0 means the latest. It stays 0 for a job that shares the run of another, which has no
    other attempt. Raises AttemptNotFoundError."""
    if job.cached_from_attempt and not wanted:
        return 0
    number = wanted or job.attempt
    if not 1 <= number <= job.attempt:
        raise AttemptNotFoundError(f"job {job.job_id} has no attempt {number or 1}: {_what_there_is(job)}")
    return number


def run_dir(data_dir: Path, job: JobInfo, attempt: int) -> Path:
    """Return the folder that the server keeps for an attempt, by its number from `attempt_number`."""
    if attempt:
        return attempt_dir(data_dir, job.job_id, attempt)
    return attempt_dir(data_dir, job.cached_from, job.cached_from_attempt)


def output_dir(data_dir: Path, job: JobInfo, attempt: int = 0) -> Path | None:
    """Return the output folder of an attempt; None if the latest is meant and none has begun. Raises AttemptNotFoundError."""
    if not attempt and not job.attempts and not job.cached_from_attempt:
        return None
    number = attempt_number(job, attempt)
    if not number:
        return output_path(run_dir(data_dir, job, number))
    known = next((each.output_dir for each in job.attempts if each.number == number), "")
    return Path(known) if known else _forgotten_output_dir(data_dir, job, number)


def _forgotten_output_dir(data_dir: Path, job: JobInfo, number: int) -> Path:
    """Return the output folder of an attempt that the job does not list, since there were too many. It is beside the others."""
    latest = Path(job.attempts[-1].output_dir)
    return attempt_output_dir(data_dir, latest.parent if job.request.output_dir else job_dir(data_dir, job.job_id), job, number)


def _what_there_is(job: JobInfo) -> str:
    if job.cached_from_attempt:
        return f"it shares the run of job {job.cached_from}; leave the attempt out"
    return f"it has {job.attempt}" if job.attempt else "none has begun"
