"""The stream of one suite run: the events of its jobs, each with what the run has come to by then, up to the last end."""

from collections.abc import Iterator, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.errors import JobNotFoundError
from evalrpc.jobs import lifecycle, suite_states
from evalrpc.jobs.lifecycle import Status
from evalrpc.store.base import Store
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.suites_pb2 import SuiteJob, SuiteRun, SuiteRunEvent
from evalrpc.watching.feed import Feed, Send
from evalrpc.watching.wakeups import Intervals


class _RunEndedError(Exception):
    """Ends the stream of the run's jobs, which by itself has no end."""


async def watch_suite_run(
    feed: Feed,
    run: SuiteRun,
    statuses: Mapping[str, Status],
    after_revision: int,
    heartbeats: Intervals | None,
    send: Send,
    owner: str | None = None,
) -> None:
    """Send the serialised SuiteRunEvents of a run up to its terminal one, as the schema specifies for WatchSuiteRun.

    `statuses` are those of its jobs at `after_revision`; without one they don't matter. `owner`: as in `Feed.watch_jobs`, which
    also says what this raises.
    """
    stream = _SuiteRunStream(run, statuses, after_revision, send)
    job_filter = pb.JobFilter(suite_run_ids=[run.suite_run_id])
    try:
        await feed.watch_jobs(job_filter, after_revision, heartbeats, stream.take, view=pb.JOB_VIEW_BASIC, owner=owner)
    except _RunEndedError:
        return


def statuses_at(store: Store, run: SuiteRun, revision: int) -> Mapping[str, Status]:
    """Return the statuses that the jobs of a run had at a revision. Blocks on the disk.

    What has happened since is undone: the first later event of a job says what it was before. Raises what `Store.events_after`
    does.
    """
    return dict(_statuses_at(store, run, revision))


def _statuses_at(store: Store, run: SuiteRun, revision: int) -> Iterator[tuple[str, Status]]:
    for job in run.jobs:
        try:
            later = store.events_after(revision, 1, job.job_id)
        except JobNotFoundError:
            yield job.job_id, pb.JOB_STATUS_UNSPECIFIED
        else:
            known = later[0].previous or pb.JOB_STATUS_QUEUED if later else job.status  # without previous, it was not there yet
            yield job.job_id, known


class _SuiteRunStream:
    """Makes the events of the run out of those of its jobs."""

    def __init__(self, run: SuiteRun, statuses: Mapping[str, Status], after_revision: int, send: Send) -> None:
        self._run = SuiteRun(suite_run_id=run.suite_run_id, owner=run.owner, created_at=run.created_at)
        self._jobs: dict[str, SuiteJob] = {}
        for job in run.jobs:
            status = statuses.get(job.job_id, pb.JOB_STATUS_UNSPECIFIED)
            self._jobs[job.job_id] = self._run.jobs.add(entry=job.entry, job_id=job.job_id, status=status)
        self._is_resumed = bool(after_revision)
        self._has_caught_up = False
        self._send = send

    async def take(self, message: bytes) -> None:
        """Take an event of a job, and send what it means. Raises _RunEndedError after the terminal event."""
        event = pb.JobEvent.FromString(message)
        if event.type == pb.JOB_EVENT_TYPE_BOOKMARK:
            await self._take_bookmark(event)
        elif event.job.job_id in self._jobs:  # DELETED comes for jobs of which nothing is known any more, too
            self._jobs[event.job.job_id].status = event.job.status
            if event.type != pb.JOB_EVENT_TYPE_SNAPSHOT:
                await self._send_run(event.type, event.revision, event.time, event.job)

    async def _take_bookmark(self, event: pb.JobEvent) -> None:
        """The first says that all up to now is known; the others are heartbeats."""
        is_first, self._has_caught_up = not self._has_caught_up, True
        if is_first and (not self._is_resumed or self._is_over()):
            await self._send_run(pb.JOB_EVENT_TYPE_SNAPSHOT, event.revision, event.time)
        else:
            bookmark = SuiteRunEvent(type=event.type, revision=event.revision, time=event.time)
            await self._send(bookmark.SerializeToString())

    async def _send_run(
        self, kind: pb.JobEventType.ValueType, revision: int, time: Timestamp, job: pb.JobInfo | None = None
    ) -> None:
        self._run.status = suite_states.status_of(each.status for each in self._run.jobs)
        self._run.revision = revision
        event = SuiteRunEvent(type=kind, revision=revision, time=time, run=self._run, job=job, terminal=self._is_over())
        await self._send(event.SerializeToString())
        if event.terminal:
            raise _RunEndedError

    def _is_over(self) -> bool:
        return suite_states.status_of(job.status for job in self._run.jobs) in lifecycle.TERMINAL
