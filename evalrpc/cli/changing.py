"""Changes labels of a job one by one, though a call replaces all of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from evalrpc.client import EvalClient
from evalrpc.errors import ConflictError
from evalrpc.v1.jobs_pb2 import JobInfo


def change_job(
    client: EvalClient, job_id: str, labels: Mapping[str, str], removed: Sequence[str] = (), priority: int | None = None
) -> JobInfo:
    """Set and remove labels, and set the priority unless it is None. Whoever was overtaken looks at the job again."""
    if not labels and not removed:
        return client.update_job(job_id, priority=priority)
    while True:
        job = client.get_job(job_id)
        changed = {key: value for key, value in job.labels.items() if key not in removed} | dict(labels)
        with suppress(ConflictError):
            return client.update_job(job_id, labels=changed, priority=priority, expected_revision=job.revision)
