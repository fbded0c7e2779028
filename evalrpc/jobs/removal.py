"""What jobs have on the disk, removed with the last of those that share it."""

import shutil
from pathlib import Path

from evalrpc.jobs.paths import job_dir
from evalrpc.v1.jobs_pb2 import JobInfo


def remove_files(data_dir: Path, owner_id: str, deleted: JobInfo) -> None:
    """Remove all that the server itself created on the disk for the job `owner_id`, once the last job that refers to it is
    deleted: that is the owner itself, or one that shared its run."""
    folders = {job_dir(data_dir, owner_id)}
    folders |= {Path(attempt.output_dir).parent for attempt in deleted.attempts}
    for folder in folders:
        if folder.name == owner_id:  # the server's own, whatever folder was asked for
            shutil.rmtree(folder, ignore_errors=True)
