"""Delivery of committed events to live watchers.

A watcher is a cursor, not a queue: it remembers the last revision that it sent, and continues with what its topic holds. So an
event is serialised and kept once, however many watch it, and a slow watcher costs no more than its cursor. Progress is one slot
per job, which keeps only the latest. A watcher of all jobs that falls behind the recent events catches up from the journal.

Of a deleted job only DELETED events are left, in the journal and in memory: to whom its events matter is not known any more,
but whose job it was. So every watcher of all jobs of that owner that resumes gets them.

A watcher may be shown the jobs of one owner only. Then it gets no event of any other job, and no text names one.

Threads: the store's writer and the scheduler's workers call `publish` and `publish_progress`; all else runs on the event loop.
A watcher joins its topic first and reads the journal second, so what is committed in between is seen twice and deduplicated by
revision; in the other order it could be missed.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, NamedTuple, TypeVar

from evalrpc.clock import Clock
from evalrpc.errors import ServerStoppingError
from evalrpc.jobs import lifecycle
from evalrpc.jobs.filters import JobMatcher
from evalrpc.jobs.views import reduce_to_view
from evalrpc.protobuf import wire_format
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Change, Store, StoredJob, job_not_found
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter
from evalrpc.watching.events import CommittedEvent, Progress
from evalrpc.watching.wakeups import Heartbeat, Intervals, Waiters

_PAGE: Final = 256
_PAGE_BYTES: Final = 64 * 1024
"""What a watcher that does not read has in memory of jobs and events that are still to be sent, and one more of them."""
_RECENT_EVENTS: Final = 1024
_RECENT_BYTES: Final = 16 * 1024 * 1024
"""Of the events as they were committed. Their other forms are smaller."""
_RETRY_DELAY_SECONDS: Final = 1.0

Send = Callable[[bytes], Awaitable[object]]
"""Sends a serialised message to one watcher, and returns when the transport has taken it."""
Reserve = Callable[[int], Awaitable[object] | None]
"""Takes room for the next message, of up to so many bytes. Returns what waits for it, or None if there was some at once."""

_T = TypeVar("_T")


def no_reserve(_: int) -> None:
    """There is room for anything."""


@dataclass(slots=True)
class _Topic:
    """What happened to one job since its first watcher joined: a few events, and the latest progress."""

    events: list[CommittedEvent] = field(default_factory=list)
    progress: Progress | None = None
    waiters: Waiters = field(default_factory=Waiters)
    watcher_count: int = 0
    is_deleted: bool = False
    """Whether the job is gone. Its end may be so, too, where another server deleted it before this one heard of the end."""


class _Snapshot(NamedTuple):
    """A job as it stands, for a watcher of all jobs."""

    sequence: int
    job_id: str
    revision: int
    event: bytes


class Feed:
    """Notifies watchers. Created on the event loop that serves them; blocking reads go to `readers`.

    Revisions may have gaps, and an event may be in the journal before it is published here.
    """

    def __init__(self, store: Store, queue_state: QueueState, clock: Clock, readers: Executor) -> None:
        self._store = store
        self._queue_state = queue_state
        self._clock = clock
        self._readers = readers
        self._loop = asyncio.get_running_loop()
        self._topics: dict[str, _Topic] = {}
        self._head = store.head_revision
        self._recent: deque[CommittedEvent] = deque()  # all events after the revision `_recent_after`
        self._recent_after = self._head
        self._recent_bytes = 0
        self._progress: OrderedDict[str, Progress] = OrderedDict()  # ordered by the time of the last progress
        self._progress_count = 0
        self._all_waiters = Waiters()
        self._stopping = False
        self.job_watcher_count = 0
        """How many streams wait for changes of one job."""
        self.jobs_watcher_count = 0
        """How many streams wait for changes of all jobs, of which each shows some."""

    # Publishing, from other threads.

    def publish(self, changes: Sequence[Change]) -> None:
        """Accept a commit. A listener of the store."""
        self._loop.call_soon_threadsafe(self._deliver, changes)

    def publish_progress(self, job: pb.JobInfo) -> None:
        """Accept a running job with its latest progress, which must not be modified afterwards."""
        self._loop.call_soon_threadsafe(self._deliver_progress, job)

    def stop(self) -> None:
        """End every stream with ServerStoppingError. Called on the event loop."""
        self._stopping = True
        self._all_waiters.wake()
        for topic in self._topics.values():
            topic.waiters.wake()

    # Watching.

    async def watch_job(
        self, job_id: str, after_revision: int, heartbeats: Intervals | None, send: Send, *, names_others: bool = True
    ) -> None:
        """Send the serialised JobEvents of one job up to its terminal one, as the schema specifies for WatchJob.

        `names_others`: whether they may name jobs of other owners.

        Raises JobNotFoundError, RevisionCompactedError, RevisionInFutureError, ServerStoppingError.
        """
        with self._watching(job_id) as topic:
            head = self._head  # taken before the job is read, so the job includes all changes up to it
            stored = await self.stored_job(job_id)
            progress, cursor = topic.progress, after_revision
            if after_revision:
                async for event in self._journal(after_revision, job_id):
                    if event.terminal and not event.status_changed:
                        break  # it has seen the end, and only what was changed since is new: it gets that as a snapshot
                    await send(event.full)
                    cursor = event.revision
                    if event.terminal:
                        return
            is_terminal = stored.status in lifecycle.TERMINAL
            # Its end has been seen by the watcher if the journal had no more, unless the job was read ahead of the journal.
            ended_before = is_terminal and stored.revision <= max(cursor, head)
            if not after_revision or ended_before:
                cursor = max(head, stored.revision)
                await send(self._snapshot(job_id, stored.status, stored.serialized, cursor, names_others=names_others))
                if is_terminal:
                    return
            del stored  # a watcher may wait for days: it keeps its cursor but no copy of the job
            with Heartbeat(heartbeats) as heartbeat:
                await self._live_of_job(job_id, topic, cursor, progress, heartbeat, send)

    async def watch_jobs(
        self,
        job_filter: JobFilter,
        after_revision: int,
        heartbeats: Intervals | None,
        send: Send,
        *,
        view: pb.JobView.ValueType = pb.JOB_VIEW_FULL,
        skip_snapshots: bool = False,
        owner: str | None = None,
    ) -> None:
        """Send the serialised JobEvents of all jobs that match the filter, without end, as the schema specifies for WatchJobs.
        With `owner`, the watcher is shown the jobs of that owner only.

        Raises RevisionCompactedError, RevisionInFutureError, ServerStoppingError.
        """
        matcher = JobMatcher(job_filter, owner)
        progress_number = self._progress_count  # of before the snapshots, which may lack what comes meanwhile
        cursor = after_revision or self._head
        ahead: dict[str, int] = {}  # snapshots that are newer than the cursor
        if after_revision:
            head = self._head
            async for event in self._events_after(cursor, owner):
                cursor = event.revision
                if message := event.for_watcher(matcher, view):
                    await send(message)
            cursor = max(cursor, head)
        elif not skip_snapshots:
            before: int | None = None
            while page := deque(await self._snapshot_page(job_filter, before, view, owner)):
                before = page[-1].sequence
                ahead |= {each.job_id: each.revision for each in page if each.revision > cursor}
                while page:
                    await send(page.popleft().event)  # no variable has it: this may be all that a slow watcher keeps in memory
        await send(self._bookmark(cursor))
        with Heartbeat(heartbeats) as heartbeat, self._watching_all():
            await self._live_of_all(matcher, view, cursor, progress_number, ahead, heartbeat, send, owner)

    async def wait_for_change(self, job_id: str, timeout_seconds: float) -> None:
        """Wait until something happens to a job, or the timeout expires. Raises ServerStoppingError."""
        with self._watching(job_id) as topic:
            await topic.waiters.wait(timeout_seconds)
        self._require_running()

    async def stored_job(self, job_id: str) -> StoredJob:
        """Return a job in its stored form. Raises JobNotFoundError."""
        cached = self._store.cached_job(job_id)
        return cached if cached is not None else await self._blocking(lambda: self._store.job(job_id))

    async def read_job(self, job_id: str) -> pb.JobInfo:
        """Return a job as it stands in the store. Raises JobNotFoundError."""
        return (await self.stored_job(job_id)).parse()

    async def _live_of_job(
        self, job_id: str, topic: _Topic, cursor: int, progress: Progress | None, heartbeat: Heartbeat, send: Send
    ) -> None:
        """Send what comes after `cursor` and `progress`, up to the terminal event. Raises JobNotFoundError if that is gone."""
        position = 0
        while True:
            while position < len(topic.events):
                event = topic.events[position]
                position += 1
                if event.revision > cursor:
                    await send(event.full)
                    heartbeat.sent()
                    cursor = event.revision
                    if event.terminal:
                        return
            if topic.is_deleted:
                raise job_not_found(job_id)
            if topic.progress is not progress:
                progress = topic.progress
                if progress is not None:
                    await send(progress.full)
                    heartbeat.sent()
            elif heartbeat.is_due():
                await send(self._bookmark(max(cursor, self._head)))
                heartbeat.sent()
            else:
                self._require_running()
                await heartbeat.wait(topic.waiters)

    async def _live_of_all(
        self,
        matcher: JobMatcher,
        view: pb.JobView.ValueType,
        cursor: int,
        progress_number: int,
        ahead: dict[str, int],
        heartbeat: Heartbeat,
        send: Send,
        owner: str | None,
    ) -> None:
        """Send what comes after `cursor` and after the progress of this number, without end."""
        while True:
            head = self._head
            async for event in self._events_after(cursor, owner):
                cursor = event.revision
                is_new = event.revision > ahead.get(event.job.job_id, 0)
                if is_new and (message := event.for_watcher(matcher, view)):
                    await send(message)
                    heartbeat.sent()
            cursor = max(cursor, head)
            newest = self._progress_count
            for progress in self._progress_after(progress_number):
                if progress.revision > cursor:
                    break  # it belongs after events that are still to be sent
                progress_number = progress.number
                is_new = progress.revision >= ahead.get(progress.job.job_id, 0)
                if is_new and matcher.matches(progress.job):
                    await send(progress.seen_as(view))
                    heartbeat.sent()
            else:
                progress_number = newest
            if self._head > cursor or self._progress_count > progress_number:
                continue
            if heartbeat.is_due():
                await send(self._bookmark(cursor))
                heartbeat.sent()
            else:
                self._require_running()
                await heartbeat.wait(self._all_waiters)

    @contextmanager
    def _watching(self, job_id: str) -> Iterator[_Topic]:
        topic = self._topics.setdefault(job_id, _Topic())
        topic.watcher_count += 1
        self.job_watcher_count += 1
        try:
            yield topic
        finally:
            self.job_watcher_count -= 1
            topic.watcher_count -= 1
            if not topic.watcher_count:
                del self._topics[job_id]

    @contextmanager
    def _watching_all(self) -> Iterator[None]:
        self.jobs_watcher_count += 1
        try:
            yield
        finally:
            self.jobs_watcher_count -= 1

    # Delivery, on the event loop.

    def _deliver(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.event is not None:
                self._deliver_event(CommittedEvent.from_change(change.event, change), change.job)
            elif change.job.status == pb.JOB_STATUS_RUNNING:
                self._deliver_progress(self._queue_state.described(change.job))
        self._blank_recent({change.job.job_id for change in changes if change.deleted})
        self._all_waiters.wake()

    def _deliver_event(self, event: CommittedEvent, job: pb.JobInfo) -> None:
        self._head = event.revision
        self._remember(event)
        progress = self._progress.pop(event.job.job_id, None)
        topic = self._topics.get(event.job.job_id)
        if topic is not None and event.deleted:
            topic.is_deleted = True
            topic.waiters.wake()
        if topic is not None and not event.deleted:  # those who watch the job itself have had its end
            topic.events.append(event)
            topic.progress = None
            topic.waiters.wake()
        if progress is not None and not event.status_changed:
            self._deliver_progress(self._queue_state.described(job))  # the attempt goes on, which the event does not say

    def _blank_recent(self, job_ids: Set[str]) -> None:
        """Keep nothing of deleted jobs in memory, just as the journal does not."""
        if job_ids:
            self._recent = deque(event.blanked() if event.job.job_id in job_ids else event for event in self._recent)
            self._recent_bytes = sum(len(event.full) for event in self._recent)

    def _remember(self, event: CommittedEvent) -> None:
        """Keep the event in memory for watchers of all jobs, bounded in number and size."""
        self._recent.append(event)
        self._recent_bytes += len(event.full)
        while len(self._recent) > _RECENT_EVENTS or self._recent_bytes > _RECENT_BYTES:
            forgotten = self._recent.popleft()
            self._recent_after = forgotten.revision
            self._recent_bytes -= len(forgotten.full)

    def _deliver_progress(self, job: pb.JobInfo) -> None:
        self._progress_count += 1
        progress = Progress(self._progress_count, self._head, self._progress_event(job), job)
        self._progress[job.job_id] = progress
        self._progress.move_to_end(job.job_id)
        self._all_waiters.wake()
        topic = self._topics.get(job.job_id)
        if topic is not None:
            topic.progress = progress
            topic.waiters.wake()

    # Reading.

    async def _events_after(self, cursor: int, owner: str | None) -> AsyncGenerator[CommittedEvent, None]:
        """Yield the events after `cursor` up to the head, from memory if it reaches back that far; with `owner`, the journal's
        are those of that owner's jobs."""
        if cursor > self._head:
            await self._journal_page(cursor)  # raises, unless it is only ahead of what has been published here
        while cursor < self._head:
            if cursor >= self._recent_after:
                newer = list(takewhile(lambda event: event.revision > cursor, reversed(self._recent)))[::-1]  # noqa: B023
                events = list(_first_of(newer))
                del newer  # a slow watcher keeps only those few alive
            else:
                events = await self._journal_page(cursor, owner=owner)
            for event in events:
                yield event
                cursor = event.revision
            if not events:
                return

    async def _journal(self, cursor: int, job_id: str) -> AsyncGenerator[CommittedEvent, None]:
        """Yield the journal's events of one job after `cursor`."""
        while events := await self._journal_page(cursor, job_id):
            for event in events:
                yield event
                cursor = event.revision

    async def _journal_page(self, cursor: int, job_id: str | None = None, owner: str | None = None) -> list[CommittedEvent]:
        page = await self._blocking(lambda: self._store.events_after(cursor, _PAGE, job_id, _PAGE_BYTES, owner=owner))
        return list(map(CommittedEvent.from_journal, page))

    async def _snapshot_page(
        self, job_filter: JobFilter, before: int | None, view: pb.JobView.ValueType, owner: str | None
    ) -> list[_Snapshot]:
        """Return snapshots of the next jobs that currently match the filter, newest first. They are made by the reader: as many
        watchers as come at once would else hold up the event loop for as long as all their jobs take."""

        def read() -> list[_Snapshot]:
            page = self._store.list_jobs(job_filter, before, _PAGE, _PAGE_BYTES, owner=owner)
            return [self._listed_snapshot(sequence, job, view, names_others=owner is None) for sequence, job in page]

        return await self._blocking(read)

    def _listed_snapshot(self, sequence: int, job: pb.JobInfo, view: pb.JobView.ValueType, *, names_others: bool) -> _Snapshot:
        reduce_to_view(job, view)
        event = self._snapshot(job.job_id, job.status, job.SerializeToString(), 0, names_others=names_others)
        return _Snapshot(sequence, job.job_id, job.revision, event)

    async def _blocking(self, read: Callable[[], _T]) -> _T:
        return await self._loop.run_in_executor(self._readers, read)

    def _progress_after(self, number: int) -> list[Progress]:
        """Return the latest progress of every job that has had any since `number`, oldest first."""
        newer = takewhile(lambda progress: progress.number > number, reversed(self._progress.values()))
        return list(newer)[::-1]

    # Building events.

    def _snapshot(
        self, job_id: str, status: pb.JobStatus.ValueType, serialized: bytes, revision: int, *, names_others: bool
    ) -> bytes:
        described = self._queue_state.describe(job_id, status, serialized, names_others=names_others)
        event = pb.JobEvent(
            type=pb.JOB_EVENT_TYPE_SNAPSHOT, revision=revision, time=self._clock.now(), terminal=status in lifecycle.TERMINAL
        )
        return event.SerializeToString() + wire_format.message_field(pb.JobEvent.JOB_FIELD_NUMBER, described)

    def _progress_event(self, job: pb.JobInfo) -> bytes:
        return pb.JobEvent(
            type=pb.JOB_EVENT_TYPE_PROGRESS,
            revision=self._head,
            time=self._clock.now(),
            job=job,
            terminal=job.status in lifecycle.TERMINAL,
        ).SerializeToString()

    def _bookmark(self, revision: int) -> bytes:
        event = pb.JobEvent(type=pb.JOB_EVENT_TYPE_BOOKMARK, revision=revision, time=self._clock.now())
        return event.SerializeToString()

    def _require_running(self) -> None:
        if self._stopping:
            raise ServerStoppingError(
                "the server is stopping: watch again from the last revision", retry_delay_seconds=_RETRY_DELAY_SECONDS
            )


def _first_of(events: Iterable[CommittedEvent]) -> Iterator[CommittedEvent]:
    """Yield the first events, up to the one with which they fill a page."""
    size_bytes = 0
    for event in events:
        yield event
        size_bytes += len(event.full)
        if size_bytes >= _PAGE_BYTES:
            return
