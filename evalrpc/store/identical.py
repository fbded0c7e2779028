"""Which of several jobs with the same evaluation others may follow, whatever database has them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from evalrpc.errors import StoreUnavailableError
from evalrpc.store.base import ListedJob, parse_job
from evalrpc.v1 import jobs_pb2 as pb


def readable_jobs(rows: Iterable[tuple[int, bytes]]) -> Iterator[ListedJob]:
    """Yield the jobs of rows with a sequence and a job, but for those that can't be read: they must not stop the others."""
    for sequence, serialized in rows:
        with suppress(StoreUnavailableError):
            yield ListedJob(sequence, parse_job(serialized))


def latest_to_follow(
    live: Iterable[ListedJob], followers_of: Callable[[str], Iterator[ListedJob]], supersede_key: str
) -> pb.JobInfo | None:
    """Return the latest of live jobs, which follow no other, that others may follow once the queued ones with a supersede key
    are cancelled. One that is cancelled then leaves its place to the first of its followers that is not."""

    def is_superseded(job: pb.JobInfo) -> bool:
        return bool(supersede_key) and job.status == pb.JOB_STATUS_QUEUED and job.supersede_key == supersede_key

    def heir(candidate: ListedJob) -> ListedJob | None:
        if candidate.job.HasField("cancel_requested_at"):
            return None
        if not is_superseded(candidate.job):
            return candidate
        return next((each for each in followers_of(candidate.job.job_id) if not is_superseded(each.job)), None)

    latest = max(filter(None, map(heir, live)), key=lambda each: each.sequence, default=None)
    return latest.job if latest else None
