"""Reading a stream to its end across broken connections, as sans-I/O state machines.

The transport opens the call that `request()` describes, passes every message to `accept()` and yields what that returns. When
the call ends, `ended()` or `failed()` says how long to wait before the next one. This repeats until `is_finished()`.

Which failures are resumed is decided in `failures`: whatever breaks a stream without being an answer of the server.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from evalrpc.client.failures import from_broken_call, from_rpc_error, is_broken_off
from evalrpc.client.reconnect import ReconnectPolicy
from evalrpc.client.values import build
from evalrpc.errors import FileUnavailableError, UnavailableError
from evalrpc.v1.files_pb2 import ReadArtifactRequest, ReadArtifactResponse, ReadLogRequest, ReadLogResponse
from evalrpc.v1.jobs_pb2 import (
    JobEvent,
    JobEventType,
    JobFilter,
    JobStatus,
    JobView,
    ListJobsRequest,
    ListJobsResponse,
    WatchJobRequest,
    WatchJobsRequest,
)
from evalrpc.v1.samples_pb2 import ReadSampleMediaRequest, ReadSampleMediaResponse
from evalrpc.v1.suites_pb2 import SuiteRunEvent, WatchSuiteRunRequest

RequestT = TypeVar("RequestT")
MessageT = TypeVar("MessageT")
ItemT = TypeVar("ItemT")
WatchRequestT = TypeVar("WatchRequestT", WatchJobRequest, WatchSuiteRunRequest)
EventT = TypeVar("EventT", JobEvent, SuiteRunEvent)
BytesRequestT = TypeVar("BytesRequestT", ReadLogRequest, ReadArtifactRequest)
BytesMessageT = TypeVar("BytesMessageT", ReadLogResponse, ReadArtifactResponse)

LISTED_AT_ONCE: Final = 256
"""The jobs of a page of a listing, which also has at most 3 MiB."""

MAX_TRIES_OF_AN_UNREADABLE_FILE: Final = 5
"""In a row, without a byte of it, a second or more apart as the server asks."""

_STATES = (
    JobEventType.JOB_EVENT_TYPE_SNAPSHOT,
    JobEventType.JOB_EVENT_TYPE_STATUS,
    JobEventType.JOB_EVENT_TYPE_UPDATED,
    JobEventType.JOB_EVENT_TYPE_DELETED,
)
"""Whoever has seen their revision has seen these events."""

_TERMINAL: Final = (JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_FAILED, JobStatus.JOB_STATUS_CANCELLED)


class Reader(ABC, Generic[RequestT, MessageT, ItemT]):
    """One stream, read to its end over as many calls as it takes."""

    def __init__(self, policy: ReconnectPolicy | None = None) -> None:
        self._finished = False
        self._policy = policy or ReconnectPolicy()

    def is_finished(self) -> bool:
        """Return whether everything was read."""
        return self._finished

    @abstractmethod
    def request(self) -> RequestT:
        """Build the request that resumes where the last call broke off."""

    @abstractmethod
    def _take(self, message: MessageT) -> Iterable[ItemT]:
        """Take a message and return what is new in it."""

    def accept(self, message: MessageT) -> Iterable[ItemT]:
        """Take a message and return what the caller has not seen yet."""
        self._policy.succeeded()
        return self._take(message)

    def timeout_seconds(self) -> float | None:
        """Return how long the next call may take. Raises TimeoutError when the time is up."""
        return self._policy.remaining_seconds()

    def ended(self) -> float:
        """Handle the end of a call with OK. Return the seconds to wait before the next one, if any."""
        return self._policy.delay_seconds(UnavailableError("the stream ended before its last event"))

    def failed(self, error: grpc.RpcError) -> float:
        """Return the seconds to wait before the next call. Raises what a retry would not fix, and TimeoutError."""
        if not is_broken_off(error):
            raise from_rpc_error(error) from error
        failure = from_broken_call(error)
        failure.__cause__ = error
        return self._policy.delay_seconds(failure)


class _EventsOfOne(Reader[WatchRequestT, EventT, EventT]):
    """The events of one thing: each once, in order, up to the terminal one.

    Heartbeats are for the caller only with an interval of the caller's own: those of the server only keep the stream open.
    """

    def __init__(
        self,
        request: WatchRequestT,
        after_revision: int,
        heartbeat_interval_seconds: float | None,
        policy: ReconnectPolicy | None,
    ) -> None:
        super().__init__(policy)
        self._request: WatchRequestT = request
        if (interval := _duration(heartbeat_interval_seconds)) is not None:
            self._request.heartbeat_interval.CopyFrom(interval)
        self._wants_heartbeats = heartbeat_interval_seconds is not None
        self._after_revision = after_revision

    def request(self) -> WatchRequestT:
        """Request everything after the last revision seen."""
        self._request.after_revision = self._after_revision
        return self._request

    def _take(self, event: EventT) -> Iterable[EventT]:
        if not event.terminal and _is_repeat(event, self._after_revision):
            return ()
        self._after_revision = max(self._after_revision, event.revision)
        self._finished = event.terminal
        return () if _is_bookmark(event) and not self._wants_heartbeats else (event,)


class JobWatch(_EventsOfOne[WatchJobRequest, JobEvent]):
    """WatchJob: each event of the job."""

    def __init__(
        self,
        job_id: str,
        after_revision: int = 0,
        heartbeat_interval_seconds: float | None = None,
        policy: ReconnectPolicy | None = None,
    ) -> None:
        super().__init__(build(WatchJobRequest, job_id=job_id), after_revision, heartbeat_interval_seconds, policy)


class SuiteRunWatch(_EventsOfOne[WatchSuiteRunRequest, SuiteRunEvent]):
    """WatchSuiteRun: each event of the suite run."""

    def __init__(
        self,
        suite_run_id: str,
        after_revision: int = 0,
        heartbeat_interval_seconds: float | None = None,
        policy: ReconnectPolicy | None = None,
    ) -> None:
        request = build(WatchSuiteRunRequest, suite_run_id=suite_run_id)
        super().__init__(request, after_revision, heartbeat_interval_seconds, policy)


class AllJobsWatch(Reader[WatchJobsRequest, JobEvent, JobEvent]):
    """ListJobs, then WatchJobs: each event once, in order, without end.

    The initial snapshots come from a listing, page by page as the caller takes them. So they need no memory, and a page that
    breaks off is read again. What happens meanwhile comes after them. The first BOOKMARK is always for the caller, who has
    caught up then; the later ones are heartbeats, as in JobWatch.

    At revision 0 there is nothing to watch on from, and hardly any job: the snapshots are those of WatchJobs then. They are
    buffered until the BOOKMARK that ends them: if the call broke off among them, the next one might lack a job that ended in
    between, and its end would be lost.
    """

    def __init__(
        self,
        job_filter: JobFilter | None = None,
        after_revision: int = 0,
        heartbeat_interval_seconds: float | None = None,
        policy: ReconnectPolicy | None = None,
        *,
        view: JobView.ValueType = JobView.JOB_VIEW_UNSPECIFIED,
        skip_snapshots: bool = False,
    ) -> None:
        super().__init__(policy)
        self._request = build(
            WatchJobsRequest,
            filter=job_filter,
            heartbeat_interval=_duration(heartbeat_interval_seconds),
            view=view,
            skip_snapshots=skip_snapshots,
        )
        self._wants_heartbeats = heartbeat_interval_seconds is not None
        self._after_revision = after_revision
        self._snapshots: list[JobEvent] | None = None
        self._caught_up = False
        self._listed: dict[str, int] = {}  # jobs that were listed as they stood after the revision to watch on from

    def listing(self) -> ListJobsRequest | None:
        """Build the request for the jobs as they stand, which are listed before the first call; None if nobody wants them."""
        if self._after_revision or self._request.skip_snapshots:
            return None
        return ListJobsRequest(filter=self._request.filter, view=self._request.view, page_size=LISTED_AT_ONCE)

    def take_page(self, page: ListJobsResponse) -> Iterator[JobEvent]:
        """Yield the snapshots of a page of the listing, and after those of the last one the BOOKMARK."""
        self._policy.succeeded()
        if not page.revision:
            return
        for job in page.jobs:
            if job.revision > page.revision:
                self._listed[job.job_id] = job.revision
            yield _event_now(JobEventType.JOB_EVENT_TYPE_SNAPSHOT, job=job, terminal=job.status in _TERMINAL)
        if not page.next_page_token:
            self._after_revision, self._caught_up = page.revision, True
            yield _event_now(JobEventType.JOB_EVENT_TYPE_BOOKMARK, revision=page.revision)

    def request(self) -> WatchJobsRequest:
        """Request everything after the last revision seen."""
        self._snapshots = None if self._after_revision else []
        self._request.after_revision = self._after_revision
        return self._request

    def _take(self, event: JobEvent) -> Iterable[JobEvent]:
        if self._snapshots is not None:
            return self._take_snapshot(self._snapshots, event)
        if _is_repeat(event, self._after_revision):
            return ()
        self._after_revision = max(self._after_revision, event.revision)
        if not _is_bookmark(event):
            was_listed = _is_repeat(event, self._listed.get(event.job.job_id, 0))
            return () if was_listed else (event,)
        is_heartbeat, self._caught_up = self._caught_up, True
        return () if is_heartbeat and not self._wants_heartbeats else (event,)

    def _take_snapshot(self, snapshots: list[JobEvent], event: JobEvent) -> Iterable[JobEvent]:
        snapshots.append(event)
        if not _is_bookmark(event):
            return ()
        self._snapshots, self._caught_up = None, True
        self._after_revision = event.revision
        self._request.skip_snapshots = False  # at revision 0 there is nothing to resume after: all jobs are new then
        return snapshots


class _Bytes(Reader[BytesRequestT, BytesMessageT, bytes]):
    """A stream of bytes: each byte once, in order."""

    def __init__(self, request: BytesRequestT) -> None:
        super().__init__()
        self._request: BytesRequestT = request
        self.offset = request.offset
        """The offset of the next byte."""

    def request(self) -> BytesRequestT:
        """Request the remaining bytes."""
        self._request.offset = self.offset
        return self._request

    def ended(self) -> float:
        """Record that everything was read."""
        self._finished = True
        return 0.0

    def _take(self, message: BytesMessageT) -> Iterable[bytes]:
        fresh = message.data[max(0, self.offset - message.offset) :]
        self.offset = max(self.offset, message.offset + len(message.data))
        return (fresh,) if fresh else ()


class LogBytes(_Bytes[ReadLogRequest, ReadLogResponse]):
    """ReadLog: the log of one attempt, or of its preparation or its engine, from an offset."""

    def __init__(
        self,
        job_id: str,
        attempt: int,
        *,
        follow: bool = False,
        offset: int = 0,
        preparation: bool = False,
        engine: bool = False,
        heartbeat_interval_seconds: float | None = None,
    ) -> None:
        request = build(
            ReadLogRequest,
            job_id=job_id,
            attempt=attempt,
            follow=follow,
            offset=offset,
            preparation=preparation,
            engine=engine,
            heartbeat_interval=_duration(heartbeat_interval_seconds),
        )
        super().__init__(request)


class ArtifactBytes(_Bytes[ReadArtifactRequest, ReadArtifactResponse]):
    """ReadArtifact: one file of an attempt from an offset; attempt 0 is the latest."""

    def __init__(self, job_id: str, name: str, offset: int = 0, attempt: int = 0) -> None:
        super().__init__(build(ReadArtifactRequest, job_id=job_id, name=name, offset=offset, attempt=attempt))
        self._unreadable_times = 0

    def failed(self, error: grpc.RpcError) -> float:
        """As for any stream, except that a file which the server itself can't read is given up after some tries."""
        failure = from_rpc_error(error)
        self._unreadable_times = self._unreadable_times + 1 if isinstance(failure, FileUnavailableError) else 0
        if self._unreadable_times >= MAX_TRIES_OF_AN_UNREADABLE_FILE:
            raise failure from error
        return super().failed(error)

    def _take(self, message: ReadArtifactResponse) -> Iterable[bytes]:
        self._unreadable_times = 0
        return super()._take(message)


class SampleMediaChunks(Reader[ReadSampleMediaRequest, ReadSampleMediaResponse, ReadSampleMediaResponse]):
    """ReadSampleMedia: each byte of each medium once, in order. A medium that has another size when the stream goes on ends
    with a problem."""

    def __init__(self, request: ReadSampleMediaRequest) -> None:
        super().__init__()
        self._request = request
        self._end = request.start_index + request.max_media if request.max_media else None
        self._index = request.start_index
        self._offset = 0
        self._size_bytes = 0

    def request(self) -> ReadSampleMediaRequest:
        """Request the media that are left."""
        self._request.start_index = self._index
        if self._end is not None:
            self._request.max_media = self._end - self._index
        return self._request

    def ended(self) -> float:
        """Record that everything was read."""
        self._finished = True
        return 0.0

    def _take(self, message: ReadSampleMediaResponse) -> Iterable[ReadSampleMediaResponse]:
        if message.index < self._index:
            return ()
        if self._offset and not message.problem and message.size_bytes != self._size_bytes:
            problem = "it has changed while it was read"
            message = ReadSampleMediaResponse(index=message.index, offset=self._offset, problem=problem)
        end = message.offset + len(message.data)
        if self._offset and end <= self._offset and not message.problem:
            return ()
        if message.offset < self._offset:
            message.data = message.data[self._offset - message.offset :]
            message.offset = self._offset
        is_last = bool(message.problem) or end >= message.size_bytes
        self._index, self._offset = (message.index + 1, 0) if is_last else (message.index, end)
        self._size_bytes = message.size_bytes
        self._finished = is_last and self._index == self._end
        return (message,)


def _duration(interval_seconds: float | None) -> Duration | None:
    if interval_seconds is None:
        return None
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=interval_seconds))
    return duration


def _is_bookmark(event: JobEvent | SuiteRunEvent) -> bool:
    return event.type == JobEventType.JOB_EVENT_TYPE_BOOKMARK


def _event_now(kind: JobEventType.ValueType, **fields: Any) -> JobEvent:
    event = JobEvent(type=kind, **fields)
    event.time.GetCurrentTime()
    return event


def _is_repeat(event: JobEvent | SuiteRunEvent, after_revision: int) -> bool:
    return event.type in _STATES and event.revision <= after_revision
