"""What a job has on the disk, removed with it."""

import shutil
from pathlib import Path

from evalrpc.jobs.paths import job_dir
from evalrpc.v1.jobs_pb2 import JobInfo


def remove_files(data_dir: Path, job: JobInfo) -> None:
    """Remove all that the server itself created on the disk for a job."""
    folders = {job_dir(data_dir, job.job_id)}
    folders |= {Path(attempt.output_dir).parent for attempt in job.attempts}
    for folder in folders:
        if folder.name == job.job_id:  # the server's own, whatever folder was asked for
            shutil.rmtree(folder, ignore_errors=True)
