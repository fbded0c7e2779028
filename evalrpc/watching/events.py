"""Events in memory, each kept once for all watchers, in the forms in which they get it.

A form that not everyone needs is made for the first watcher that gets it, and kept for the others. Used on the event loop only.
"""

from functools import cached_property
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.jobs import lifecycle
from evalrpc.jobs.events import deleted_event
from evalrpc.jobs.filters import JobMatcher
from evalrpc.jobs.served_models import model_of
from evalrpc.jobs.views import reduce_to_view
from evalrpc.store.base import Change, JournalEvent
from evalrpc.v1 import jobs_pb2 as pb

_SMALL_BYTES: Final = 1024
"""Up to this size of an event its job is kept as it is: what filters look at would take about as much."""


class SharedEvent:
    """A serialised JobEvent. `job` is what filters look at, and must not be modified."""

    def __init__(self, revision: int, full: bytes, job: pb.JobInfo) -> None:
        self.revision = revision
        self.full = full
        self.job = job

    def seen_as(self, view: pb.JobView.ValueType) -> bytes:
        """Return the event with as much of the job as the view has."""
        return self._basic if view == pb.JOB_VIEW_BASIC else self.full

    @cached_property
    def _basic(self) -> bytes:
        event = pb.JobEvent.FromString(self.full)
        reduce_to_view(event.job, pb.JOB_VIEW_BASIC)
        return event.SerializeToString()


class Progress(SharedEvent):
    """The latest progress of one job. `revision` is the head when it was published."""

    def __init__(self, number: int, revision: int, full: bytes, job: pb.JobInfo) -> None:
        super().__init__(revision, full, job)
        self.number = number


class CommittedEvent(SharedEvent):
    """An event with a revision of its own. If it is DELETED, `job` is the job before, with its id and its owner alone where
    nothing else is left of it."""

    def __init__(self, committed: JournalEvent, job: pb.JobInfo, *, deleted: bool) -> None:
        super().__init__(committed.revision, committed.event, job)
        self.deleted = deleted
        self._previous = committed.previous
        self._labels_before = committed.labels_before

    @classmethod
    def from_change(cls, committed: JournalEvent, change: Change) -> "CommittedEvent":
        """Return the event of a change that was just committed. Of a large job it keeps only what filters look at: as a message
        the job takes ten times as much as the serialised event."""
        is_small = len(committed.event) <= _SMALL_BYTES and not change.deleted
        return cls(committed, change.job if is_small else _filterable(change.job), deleted=change.deleted)

    @classmethod
    def from_journal(cls, committed: JournalEvent) -> "CommittedEvent":
        """Return an event of the journal. Raises StoreUnavailableError."""
        event = committed.parse()
        event.job.owner = committed.owner
        return cls(committed, event.job, deleted=event.type == pb.JOB_EVENT_TYPE_DELETED)

    @property
    def terminal(self) -> bool:
        """Whether the job is terminal."""
        return self.job.status in lifecycle.TERMINAL

    @property
    def status_changed(self) -> bool:
        """Whether the job has another status than before."""
        return self.job.status != self._previous

    def for_watcher(self, matcher: JobMatcher, view: pb.JobView.ValueType) -> bytes | None:
        """Return what a watcher of all jobs gets; None if nothing."""
        is_taken = matcher.matches(self.job)
        if self.deleted:
            is_blank = not self.job.status
            return self.full if is_taken or (is_blank and matcher.takes_owner(self.job.owner)) else None
        if is_taken:
            return self.seen_as(view)
        return self._gone if self._was_taken(matcher) else None

    def blanked(self) -> "CommittedEvent":
        """Return what is left of it once its job is deleted: as much as in the journal. The deletion itself stays as it is."""
        if self.deleted:
            return self
        event = deleted_event(self.job.job_id, self.revision, self._time)
        job = pb.JobInfo(job_id=self.job.job_id, owner=self.job.owner)
        return CommittedEvent(JournalEvent(self.revision, event), job, deleted=True)

    def _was_taken(self, matcher: JobMatcher) -> bool:
        """Return whether the filter took the job before the event, as far as is known."""
        labels = self.job.labels if self._labels_before is None else self._labels_before
        return bool(self._previous and matcher.matched_before(self.job, self._previous, labels))

    @cached_property
    def _gone(self) -> bytes:
        """The event for a watcher whose filter does not take the job any more."""
        return deleted_event(self.job.job_id, self.revision, self._time, left_filter=True)

    @property
    def _time(self) -> Timestamp:
        return pb.JobEvent.FromString(self.full).time


def _filterable(job: pb.JobInfo) -> pb.JobInfo:
    """Return what filters look at of a job."""
    request = pb.EvaluateRequest(harness=job.request.harness, model=model_of(job.request), tasks=job.request.tasks)
    return pb.JobInfo(
        job_id=job.job_id,
        status=job.status,
        created_at=job.created_at,
        request=request,
        labels=job.labels,
        owner=job.owner,
        suite_run_id=job.suite_run_id,
    )
