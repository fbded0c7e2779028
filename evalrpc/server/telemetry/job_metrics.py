"""Counts what happens to jobs, as the store commits it. Of several servers on a store, each counts what it has committed."""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs import lifecycle, transitions
from evalrpc.protobuf.times import seconds_of
from evalrpc.server.telemetry.instruments import Instruments
from evalrpc.store.base import Change, QueuedRow
from evalrpc.v1 import jobs_pb2 as pb

OTHER: Final = "other"
"""Stands for a harness that is not configured any more, and for a reason of a plugin's own."""

REASONS: Final = frozenset(
    {
        *("", "HARNESS_FAILED", "RESULTS_MISSING", "RESULTS_INVALID", "TASKS_MISSING", "ALL_REQUESTS_FAILED"),
        *("TOO_MANY_BAD_ANSWERS", "PROCESS_SIGNALLED", "OUT_OF_MEMORY", "PROCESS_UNKILLABLE", "START_FAILED"),
        *("HARNESS_UNAVAILABLE", "TIMED_OUT", "LOG_TOO_LARGE", "OUTPUT_TOO_LARGE", "RUN_LOST", "PREPARATION_FAILED"),
        *("ENGINE_START_FAILED", "ENGINE_INCOMPATIBLE", "ENGINE_LOST", "CANCELLED", "SUPERSEDED", "SERVER_ERROR"),
        "PREEMPTED",
    }
)
"""Those that the schema names."""


class JobMetrics:
    """A listener of the store: `apply` runs on its writer thread, the rest on any."""

    def __init__(self, instruments: Instruments, harnesses: Collection[str], now: Callable[[], Timestamp]) -> None:
        self._instruments = instruments
        self._harnesses = frozenset(harnesses)
        self._now = now
        self._lock = threading.Lock()
        self._queued_since: dict[int, float] = {}  # by place in the order of arrival; those first that wait longest

    def load(self, queued: Iterable[QueuedRow]) -> None:
        """Take the jobs that were QUEUED when the store was opened, in order of arrival."""
        self._queued_since = {row.sequence: row.created_ns / 1e9 for row in queued}

    def apply(self, changes: Sequence[Change]) -> None:
        """Follow a commit."""
        with self._lock:
            for change in changes:
                if change.deleted:
                    self._queued_since.pop(change.sequence, None)
                elif change.status_changed:
                    self._follow(change)

    def oldest_age_seconds(self) -> float:
        """Return how long the job that has been QUEUED for longest has waited; 0 without any."""
        with self._lock:
            since = next(iter(self._queued_since.values()), None)
        return 0.0 if since is None else max(0.0, seconds_of(self._now()) - since)

    def _follow(self, change: Change) -> None:
        job, since = change.job, None
        if job.status == pb.JOB_STATUS_QUEUED:
            self._queued_since.setdefault(change.sequence, seconds_of(_queued_at(job)))
        else:
            since = self._queued_since.pop(change.sequence, None)
        if change.is_own:
            self._count(change, since)

    def _count(self, change: Change, since: float | None) -> None:
        """Count a change. `since`: the time of day since when the job was QUEUED, if it was."""
        job = change.job
        harness = job.request.harness if job.request.harness in self._harnesses else OTHER
        if change.previous == pb.JOB_STATUS_UNSPECIFIED:
            self._instruments.jobs_submitted.labels(harness).inc()
        if change.previous == pb.JOB_STATUS_RUNNING:
            self._count_attempt(job, harness)
        if job.status == pb.JOB_STATUS_RUNNING and since is not None:
            self._instruments.queue_wait.labels(harness).observe(max(0.0, seconds_of(job.started_at) - since))
        if job.status in lifecycle.TERMINAL:
            reason = job.error.reason if job.error.reason in REASONS else OTHER
            self._instruments.jobs_finished.labels(harness, status_label(job.status), reason).inc()

    def _count_attempt(self, job: pb.JobInfo, harness: str) -> None:
        attempt = job.attempts[-1]
        seconds = max(0.0, seconds_of(attempt.completed_at) - seconds_of(attempt.started_at))
        self._instruments.attempt_duration.labels(harness, _outcome(job)).observe(seconds)


def status_label(status: lifecycle.Status) -> str:
    """Return a status as a label: `queued`."""
    return lifecycle.status_name(status).lower()


def _outcome(job: pb.JobInfo) -> str:
    """Return how the last attempt of a job ended: `completed`, `failed`, also where another attempt follows, `cancelled` or
    `preempted`."""
    if job.status != pb.JOB_STATUS_QUEUED:
        return status_label(job.status)
    return "preempted" if job.attempts[-1].error.reason == transitions.PREEMPTED_REASON else "failed"


def _queued_at(job: pb.JobInfo) -> Timestamp:
    """Return since when a QUEUED job has waited."""
    return job.attempts[-1].completed_at if job.attempts else job.created_at
