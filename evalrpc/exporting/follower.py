"""Follows the jobs of a server, and hands each one that has ended to a target.

The target makes what it was given durable in `flush`; then the revision is stored. So a job is exported again if the exporter
dies in between, and none is left out. Targets know a job by its id, and so can take it twice.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

from evalrpc.client import EvalClient
from evalrpc.errors import RevisionCompactedError
from evalrpc.exporting.state import ExportState, read_state, write_state
from evalrpc.v1.jobs_pb2 import JobEvent, JobEventType, JobFilter, JobInfo, JobStatus

_HEARTBEAT_SECONDS: Final = 10.0
_TERMINAL: Final = (JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_FAILED, JobStatus.JOB_STATUS_CANCELLED)


class Target(Protocol):
    """Where jobs are exported to."""

    def resume(self, state: ExportState | None) -> None:
        """Begin where an export has stopped: what was made durable after this state is given again. None: there is none yet.
        Raises ConfigurationError, OSError."""

    def put(self, job: JobInfo, revision: int) -> bool:
        """Take a job that has ended, or has changed since, at this revision. Return whether to flush now."""

    def flush(self) -> None:
        """Have all that was put where it will stay. Raises what keeps the exporter from going on."""

    @property
    def part_count(self) -> int:
        """How many files are whole, for a target that writes files; else 0."""


class Follower:
    """One export. `note` is told, now and then, what happens."""

    def __init__(
        self,
        client: EvalClient,
        target: Target,
        job_filter: JobFilter,
        state_path: Path,
        selection: str,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._target = target
        self._filter = _of_ended(job_filter)
        self._state_path = state_path
        self._state = ExportState(selection)
        self._note = note
        self._unflushed_count = 0
        self.exported_count = 0
        """How many jobs were exported since it began."""

    def run(self, *, once: bool) -> None:
        """Export until interrupted; with `once`, until all that has ended by now is exported.

        Raises EvalrpcError, OSError, and what the target raises.
        """
        stored = read_state(self._state_path, self._state.selection)
        self._target.resume(stored)
        self._state = stored or self._state
        if stored is None:
            write_state(self._state_path, self._state)
        try:
            self._follow(self._state.revision, once=once)
        except RevisionCompactedError:
            self._note("the server has forgotten some events since then, so all jobs are listed again")
            self._follow(0, once=once)

    def _follow(self, after_revision: int, *, once: bool) -> None:
        events = self._client.watch_all(self._filter, after_revision, heartbeat_interval_seconds=_HEARTBEAT_SECONDS)
        is_listing = not after_revision
        with closing(events):
            for event in events:
                is_bookmark = event.type == JobEventType.JOB_EVENT_TYPE_BOOKMARK
                is_due = not is_bookmark and self._take(event)
                is_listing = is_listing and not is_bookmark
                if is_due or is_bookmark:
                    self._commit(self._state.revision if is_listing else event.revision)
                if is_bookmark and once:
                    return

    def _take(self, event: JobEvent) -> bool:
        """Hand a job on, unless it was exported as it is. Return whether to flush."""
        is_new = event.type != JobEventType.JOB_EVENT_TYPE_SNAPSHOT or event.job.revision > self._state.revision
        if event.type == JobEventType.JOB_EVENT_TYPE_DELETED or event.job.status not in _TERMINAL or not is_new:
            return False
        self._unflushed_count += 1
        return self._target.put(event.job, event.revision or event.job.revision)

    def _commit(self, revision: int) -> None:
        """Have what was put durable, then the revision."""
        if self._unflushed_count:
            self._target.flush()
        state = ExportState(self._state.selection, max(revision, self._state.revision), self._target.part_count)
        if state != self._state:
            write_state(self._state_path, state)
            self._state = state
        if self._unflushed_count:
            self.exported_count += self._unflushed_count
            self._note(f"exported {self.exported_count} jobs, up to revision {self._state.revision}")
        self._unflushed_count = 0


def _of_ended(job_filter: JobFilter) -> JobFilter:
    """Return the filter for jobs that have ended."""
    narrowed = JobFilter()
    narrowed.CopyFrom(job_filter)
    narrowed.statuses[:] = [status for status in _TERMINAL if status in job_filter.statuses or not job_filter.statuses]
    return narrowed
