"""Where things lie in the data directory.

data_dir/jobs/JOB_ID/attempt-N/log              what the harness printed
data_dir/jobs/JOB_ID/attempt-N/run/             the executor's traces
data_dir/jobs/JOB_ID/attempt-N/complete-results the complete results, where the job's message can't hold them
data_dir/jobs/JOB_ID/attempt-N/output/          what the harness wrote, unless the request names an `output_dir`
data_dir/jobs/JOB_ID/attempt-N/preparation/     the same of the run that prepared its model, if there was one
data_dir/preparations/FINGERPRINT/              a prepared model
data_dir/engines/ENGINE_ID/                     an engine: what it serves, logs and traces of its processes
data_dir/engines/hosts/HOST/ENGINE_ID/          the same where several servers share the folder
data_dir/homes/UID/                             the home of an account of runs, where these have accounts of their own
output_root/OUTPUT_DIR/JOB_ID/attempt-N/        what it wrote, where the request does
"""

import os
from pathlib import Path
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.v1.jobs_pb2 import JobInfo

JOBS_DIR: Final = "jobs"
HOMES_DIR: Final = "homes"
"""The homes of the accounts of runs, where these have accounts of their own."""

PREPARATIONS_DIR: Final = "preparations"
"""The prepared models."""

ENGINES_DIR: Final = "engines"
"""The engines that serve models, and the gateway to them."""

_HOSTS: Final = "hosts"


def engines_dir(data_dir: Path, host: str) -> Path:
    """Return the folder of the engines of a machine, one of several; without a name, of the only one."""
    return data_dir / ENGINES_DIR / _HOSTS / host if host else data_dir / ENGINES_DIR


def job_dir(data_dir: Path, job_id: str) -> Path:
    """Return the folder that holds all that the server itself writes for a job."""
    return data_dir / JOBS_DIR / job_id


def attempt_dir(data_dir: Path, job_id: str, attempt: int) -> Path:
    """Return the folder of one attempt."""
    return job_dir(data_dir, job_id) / f"attempt-{attempt}"


def log_path(directory: Path) -> Path:
    """Return the file in an attempt's folder that takes the harness's output."""
    return directory / "log"


def results_path(directory: Path) -> Path:
    """Return the file in an attempt's folder that takes the complete results, where the job's message can't hold them."""
    return directory / "complete-results"


def output_path(directory: Path) -> Path:
    """Return the folder in an attempt's folder that takes the results, unless the request names an `output_dir`."""
    return directory / "output"


def preparation_dir(directory: Path) -> Path:
    """Return the folder in an attempt's folder that belongs to the run which prepared its model."""
    return directory / "preparation"


def job_output_dir(data_dir: Path, output_root: Path | None, job: JobInfo) -> Path:
    """Return the folder below which the results of all attempts of a job lie. Looks at the disk, for links.

    Raises RunFailedError with reason START_FAILED for an `output_dir` that is not allowed (any more).
    """
    if not job.request.output_dir:
        return job_dir(data_dir, job.job_id)
    base = allowed_output_dir(output_root, job.request.output_dir)
    if base is None:
        raise RunFailedError("START_FAILED", f"output_dir {job.request.output_dir!r} is outside the server's output root")
    return base / job.job_id


def output_folders(job: JobInfo) -> set[Path]:
    """Return the folders of a job that hold its results and lie outside of the data directory."""
    if not job.request.output_dir:
        return set()
    folders = {Path(attempt.output_dir).parent for attempt in job.attempts}
    return {folder for folder in folders if folder.name == job.job_id}  # the server's own, whatever folder was asked for


def attempt_output_dir(data_dir: Path, output_base: Path, job: JobInfo, attempt: int) -> Path:
    """Return the folder that receives the results of one attempt, in what `job_output_dir` gave."""
    if output_base == job_dir(data_dir, job.job_id):
        return output_path(attempt_dir(data_dir, job.job_id, attempt))
    return output_base / f"attempt-{attempt}"


def allowed_output_dir(output_root: Path | None, output_dir: str) -> Path | None:
    """Return where an `output_dir` of a request leads, or None if that is not inside the output root, also through links."""
    if output_root is None:
        return None
    root = Path(os.path.realpath(output_root))
    target = Path(os.path.realpath(root / output_dir))
    return target if target.is_relative_to(root) else None
