"""Rows on their way into a database: gathered by a transaction, then written with as few statements as can be."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from evalrpc.jobs import lifecycle, suite_states
from evalrpc.jobs.defaults import gpus_needed, queue_of
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.served_models import engine_gpu_count, engine_needs, model_of, needs_text
from evalrpc.jobs.share_policy import charged_width
from evalrpc.store.base import JournalEvent, Submission, SuiteSubmission
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteRun

Row = tuple[Any, ...]


class NewJob(NamedTuple):
    """A job that is to be inserted."""

    sequence: int
    job: pb.JobInfo
    serialized: bytes
    submission: Submission


class Rows:
    """What one transaction writes. Of several changes of one job only the last is written."""

    def __init__(self) -> None:
        self.events: list[Row] = []
        """As `event_row` gives them."""
        self.setbacks: list[Row] = []
        """Sequences of new jobs before which the clock was set back, each with by how many nanoseconds."""
        self.uses: list[Row] = []
        """What attempts have used that have ended: their end, the sequence of the job, their start, their width, the owner."""
        self.quiet: list[Row] = []
        """Changes without an event: their number, and the sequence of the job."""
        self._inserts: dict[int, Submission] = {}
        self._keys: set[bytes] = set()
        self._changed: dict[int, tuple[pb.JobInfo, bytes]] = {}

    def insert(self, sequence: int, job: pb.JobInfo, serialized: bytes, submission: Submission) -> None:
        """Add a new job."""
        self._inserts[sequence] = submission
        self._keys.add(submission.cache_key)
        self._changed[sequence] = (job, serialized)

    def update(self, sequence: int, job: pb.JobInfo, serialized: bytes) -> None:
        """Change a job, which may be a new one."""
        self._changed[sequence] = (job, serialized)

    def use(self, sequence: int, job: pb.JobInfo) -> None:
        """Note what the latest attempt of a job has used, which has ended."""
        attempt = job.attempts[-1]
        started_ns, ended_ns = attempt.started_at.ToNanoseconds(), attempt.completed_at.ToNanoseconds()
        of_engines = engine_gpu_count(job.request)
        width = charged_width(attempt.gpus, of_engines)
        if of_engines:  # as if it had held the GPUs of its engines alone, for its part of the time
            used_ns = width * (ended_ns - started_ns) + int(attempt.engine_gpu_seconds * 1e9)
            width += of_engines
            started_ns = ended_ns - used_ns // width
        self.uses.append((ended_ns, sequence, started_ns, width, job.owner))

    def may_have(self, cache_key: bytes) -> bool:
        """Tell whether jobs with this key may be among those that are gathered."""
        return len(self._changed) > len(self._inserts) or cache_key in self._keys

    def new_jobs(self) -> list[NewJob]:
        """Return the jobs to insert, as they are now."""
        return [NewJob(sequence, *self._changed[sequence], submission) for sequence, submission in self._inserts.items()]

    def changed_rows(self) -> list[Row]:
        """Return the rows of the jobs to change, as `changed_row` gives them."""
        changed = ((sequence, *each) for sequence, each in self._changed.items() if sequence not in self._inserts)
        return [changed_row(*each) for each in changed]


def new_row(new: NewJob) -> Row:
    """Return the row of a new job: what may change later, then what stays."""
    job = new.job
    return (
        *changed_row(new.sequence, job, new.serialized),
        job.job_id,
        job.request.harness,
        model_of(job.request),
        gpus_needed(job.request),
        job.supersede_key or None,
        new.submission.request_id or None,
        new.submission.fingerprint,
        new.submission.cache_key or None,
        job.created_at.ToNanoseconds(),
        job.owner,
        needs_text(engine_needs(job.request, job.job_id)),
        job.suite_run_id or None,
        queue_of(job.request),
    )


def task_rows(new_jobs: list[NewJob]) -> Iterator[Row]:
    """Yield the tasks of new jobs, each with the sequence of its job."""
    return ((task, new.sequence) for new in new_jobs for task in set(new.job.request.tasks))


def label_rows(new_jobs: list[NewJob]) -> Iterator[Row]:
    """Yield the labels of new jobs, each with the sequence of its job and its value."""
    return ((label, new.sequence, value) for new in new_jobs for label, value in new.job.labels.items())


def changed_row(sequence: int, job: pb.JobInfo, serialized: bytes) -> Row:
    """Return what may change of the row of a job: the sequence, by which it is found, and its columns."""
    completed_ns = job.completed_at.ToNanoseconds() if job.HasField("completed_at") else None
    return (
        sequence,
        job.status,
        job.priority,
        job.retry_at.ToNanoseconds(),
        completed_ns,
        job.cached_from or None,
        serialized,
    )


def event_row(event: JournalEvent, number: int, sequence: int, created_ns: int, begin_bytes: int) -> Row:
    """Return the row of an event, with the number of its change. `begin_bytes` is the size of all events before it."""
    changed = event.event, event.previous, _labels_before(event)
    return event.revision, sequence, created_ns, *changed, event.owner, begin_bytes, number


def event_bytes(event: JournalEvent) -> int:
    """Return how much an event adds to the size of the journal."""
    return len(event.event) + len(_labels_before(event) or "")


def _labels_before(event: JournalEvent) -> str | None:
    return None if event.labels_before is None else json.dumps(event.labels_before)


def suite_run_row(submission: SuiteSubmission, sequence: int) -> Row:
    """Return the row of a new suite run, whose first job has this sequence."""
    run = submission.run
    request_id = submission.request_id or None
    return run.suite_run_id, run.owner, request_id, submission.fingerprint, run.SerializeToString(), sequence


def suite_run_of(
    serialized: bytes, jobs: Iterable[Row], revision: int, cached_status: Callable[[str], Status | None]
) -> SuiteRun:
    """Return a suite run as of a revision, with what its jobs have come to: `jobs` has their ids, statuses and ends, 0 without
    one. `cached_status` counts more."""
    run = SuiteRun.FromString(serialized)
    found = {job_id: (status, ended_ns) for job_id, status, ended_ns in jobs}
    for job in run.jobs:
        cached = cached_status(job.job_id)
        job.status = found.get(job.job_id, (job.status, 0))[0] if cached is None else cached
    run.status = suite_states.status_of(job.status for job in run.jobs)
    last_ended_ns = max((ended_ns for _, ended_ns in found.values()), default=0)
    if run.status in lifecycle.TERMINAL and last_ended_ns:
        run.completed_at.FromNanoseconds(last_ended_ns)
    run.revision = revision
    return run
