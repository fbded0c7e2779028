"""`GET /v1/events`: WatchJobs, or WatchJob, as server-sent events, which browsers resume by themselves and curl prints."""

from collections.abc import Sequence
from typing import Final

from evalrpc.errors import EvalrpcError, LimitExceededError, OutOfRangeError, UnavailableError
from evalrpc.server.transports.http.codec import EventJson
from evalrpc.server.transports.http.errors import error_body, refuse_method
from evalrpc.server.transports.http.methods import HttpMethod
from evalrpc.server.transports.http.request import INERT, HttpRequest
from evalrpc.server.transports.plain.parameters import fill
from evalrpc.v1.jobs_pb2 import JOB_EVENT_TYPE_SNAPSHOT, JobEvent, WatchJobRequest, WatchJobsRequest

PATH: Final = "/v1/events"

_JOB_ID: Final = "job_id"
_TYPE: Final = b"text/event-stream"
_HEADERS: Final = ((b"content-type", _TYPE), *INERT)
_DEFAULT_RETRY_SECONDS: Final = 1.0


class EventsEndpoint:
    """Answers there."""

    def __init__(self, watch_job: HttpMethod, watch_jobs: HttpMethod, events: EventJson) -> None:
        self._watch_job = watch_job
        self._watch_jobs = watch_jobs
        self._events = events

    async def answer(self, request: HttpRequest) -> None:
        """Send events. Raises EvalrpcError before the first."""
        if request.method != "GET":
            await refuse_method(request, "GET")
            return
        parameters = request.parameters
        message = WatchJobRequest() if _JOB_ID in dict(parameters) else WatchJobsRequest()
        fill(parameters, message, *([message.filter] if isinstance(message, WatchJobsRequest) else []))
        last = request.headers.get("last-event-id", "")
        if last.isascii() and last.isdigit():
            fill([("after_revision", last)], message)
        try:
            await self._watch_or_begin_anew(request, message)
        except EvalrpcError as error:
            if not request.is_answered and not _is_for_a_browser_that_waits(request, error):
                raise
            if not request.is_answered:
                await request.start(200, _HEADERS)
            await request.write(_failure(error))
        if request.is_answered:
            await request.finish()
        else:
            await request.respond(204, INERT)  # which keeps a browser from coming back

    async def _watch_or_begin_anew(self, request: HttpRequest, message: WatchJobRequest | WatchJobsRequest) -> None:
        """Watch; from a snapshot where the journal does not reach back to the last event: a browser that gets an error never
        comes back."""
        try:
            await self._watch(request, message)
        except OutOfRangeError:
            if request.is_answered or not message.after_revision:
                raise
            message.after_revision = 0
            if isinstance(message, WatchJobsRequest):
                message.skip_snapshots = False  # which alone say what the client has missed
            await self._watch(request, message)

    async def _watch(self, request: HttpRequest, message: WatchJobRequest | WatchJobsRequest) -> None:
        method = self._watch_job if isinstance(message, WatchJobRequest) else self._watch_jobs
        serialized, output = message.SerializeToString(), method.descriptor.output_type

        async def send(event: bytes) -> None:
            if not request.is_answered:
                if isinstance(message, WatchJobRequest) and _is_known(event, message.after_revision):
                    return
                await request.start(200, _HEADERS)
            await request.write(_event(event, await self._events.encode_in_turn(event, output)))

        async def read() -> bytes:
            return serialized

        await method.call(request, read, send)


def _is_known(serialized: bytes, after_revision: int) -> bool:
    """Return whether whoever has seen all up to a revision has seen what an event says: the job as it had ended by then."""
    event = JobEvent.FromString(serialized)
    return event.type == JOB_EVENT_TYPE_SNAPSHOT and event.terminal and event.job.revision <= after_revision


def _event(event: bytes, text: bytes) -> bytes:
    """Return an event. Its id is a revision from which to go on; a snapshot before the first bookmark has none."""
    revision = JobEvent.FromString(event).revision
    return (b"id: %d\n" % revision if revision else b"") + b"data: " + text + b"\n\n"


def _failure(error: EvalrpcError) -> bytes:
    delay = error.retry_delay_seconds or _DEFAULT_RETRY_SECONDS
    return b"event: failure\nretry: %d\ndata: " % (delay * 1000) + error_body(error) + b"\n\n"


def _is_for_a_browser_that_waits(request: HttpRequest, error: EvalrpcError) -> bool:
    """Return whether to tell this error in an event: by an HTTP status, a browser would give up for good."""
    accepts: Sequence[str] = request.headers.get("accept", "").split(",")
    is_passing = isinstance(error, UnavailableError | LimitExceededError)
    return is_passing and any(each.strip() == _TYPE.decode() for each in accepts)
