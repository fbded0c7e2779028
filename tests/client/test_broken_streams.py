"""Streams that a proxy or the network breaks: both clients resume them, whatever gRPC makes of the break."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing, closing
from typing import Any

import grpc
import http2_stub as http2
import pytest
from fake_server import JOB_ID, job_at
from http2_stub import Act, Exchange, Http2Stub
from waiting import DEADLINE_SECONDS

from evalrpc import errors
from evalrpc.client import AsyncEvalClient, EvalClient
from evalrpc.v1.files_pb2 import ReadLogRequest, ReadLogResponse
from evalrpc.v1.jobs_pb2 import JobEvent, JobEventType, JobStatus, ListJobsResponse, WatchJobRequest, WatchJobsRequest
from evalrpc.v1.samples_pb2 import ReadSampleMediaRequest, ReadSampleMediaResponse
from evalrpc.v1.suites_pb2 import SuiteRun, SuiteRunEvent, WatchSuiteRunRequest

SNAPSHOT, STATUS = JobEventType.JOB_EVENT_TYPE_SNAPSHOT, JobEventType.JOB_EVENT_TYPE_STATUS
BOOKMARK = JobEventType.JOB_EVENT_TYPE_BOOKMARK


def reset(code: int) -> Act:
    return lambda exchange: exchange.reset(code)


def go_away(code: int) -> Act:
    return lambda exchange: exchange.go_away(code)


def html(status: int) -> Act:
    return lambda exchange: exchange.html(status)


def status(code: grpc.StatusCode) -> Act:
    return lambda exchange: exchange.end(code.value[0], "no healthy upstream")


def truncated(exchange: Exchange) -> None:
    exchange.headers({":status": "200", "content-type": "application/grpc"})
    exchange.data(b"\0\0\0\0\x10half a", last=True)


BREAKS: dict[str, Act] = {
    **{
        f"RST_STREAM {name}": reset(getattr(http2, name))
        for name in (
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "HTTP_1_1_REQUIRED",
        )
    },
    **{f"GOAWAY {name}": go_away(getattr(http2, name)) for name in ("NO_ERROR", "INTERNAL_ERROR", "ENHANCE_YOUR_CALM")},
    **{f"HTML {code}": html(code) for code in (429, 500, 502, 503, 504)},
    **{
        f"status {code.name}": status(code)
        for code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
    },
    "a dropped socket": Exchange.drop,
    "a message cut in two": truncated,
    "an end without trailers": lambda exchange: exchange.data(b"", last=True),
}
"""What breaks a stream without being an answer of the server."""

BEFORE_ANY_MESSAGE = {name: act for name, act in BREAKS.items() if name != "an end without trailers"}
AFTER_A_MESSAGE = {name: act for name, act in BREAKS.items() if not name.startswith("HTML") and name != "a message cut in two"}

FINAL: dict[str, tuple[Act, type[Exception]]] = {
    "HTML 401": (html(401), errors.EvalrpcError),
    "HTML 403": (html(403), errors.EvalrpcError),
    "HTML 404": (html(404), errors.UnimplementedError),
    "status NOT_FOUND": (status(grpc.StatusCode.NOT_FOUND), errors.NotFoundError),
    "RST_STREAM INADEQUATE_SECURITY": (reset(http2.INADEQUATE_SECURITY), errors.EvalrpcError),
}


def event(kind: int, revision: int, *, terminal: bool = False) -> JobEvent:
    job = job_at(JobStatus.JOB_STATUS_COMPLETED if terminal else JobStatus.JOB_STATUS_RUNNING, revision)
    return JobEvent(type=kind, revision=revision, job=None if kind == BOOKMARK else job, terminal=terminal)


def sent_then(*messages: Any, then: Act, after: threading.Event | None = None) -> Act:
    """Send messages, then do something else, after the client has read them: gRPC drops what it has not read when it breaks."""

    def act(exchange: Exchange) -> None:
        for message in messages:
            exchange.message(message)
        assert after is None or after.wait(DEADLINE_SECONDS)
        then(exchange)

    return act


Collect = Callable[..., list[Any]]
OnItem = Callable[[], object]


def collect_blocking(address: str, on_item: OnItem, method: str, *arguments: Any, **options: Any) -> list[Any]:
    seen = []
    with EvalClient(address) as client, closing(getattr(client, method)(*arguments, **options)) as items:
        for item in items:
            seen.append(item)
            on_item()
            if is_terminal(item):
                break
    return seen


def collect_async(address: str, on_item: OnItem, method: str, *arguments: Any, **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        seen = []
        async with AsyncEvalClient(address) as client, aclosing(getattr(client, method)(*arguments, **options)) as items:
            async for item in items:
                seen.append(item)
                on_item()
                if is_terminal(item):
                    break
        return seen

    return asyncio.run(main())


def is_terminal(item: Any) -> bool:
    return isinstance(item, JobEvent | SuiteRunEvent) and item.terminal


@pytest.fixture
def read() -> threading.Event:
    """Set when the client has read something."""
    return threading.Event()


@pytest.fixture(params=[collect_blocking, collect_async], ids=["sync", "asyncio"])
def collect(request: pytest.FixtureRequest, read: threading.Event) -> Collect:
    """Read a stream to its terminal event, or to its end, with either client."""
    return lambda address, *arguments, **options: request.param(address, read.set, *arguments, **options)


@pytest.fixture
def heard() -> list[errors.EvalrpcError]:
    return []


@pytest.mark.parametrize("name", BEFORE_ANY_MESSAGE)
def test_a_watch_that_breaks_at_once_begins_again(name: str, collect: Collect, heard: list[errors.EvalrpcError]) -> None:
    end = sent_then(event(SNAPSHOT, 3, terminal=True), then=Exchange.end)
    with Http2Stub([BREAKS[name], end]) as stub:
        seen = collect(stub.address, "watch", JOB_ID, on_disconnect=lambda error, _: heard.append(error))
    assert seen == [event(SNAPSHOT, 3, terminal=True)]
    assert [type(error) for error in heard] == [errors.UnavailableError]


@pytest.mark.parametrize("name", AFTER_A_MESSAGE)
def test_a_watch_that_breaks_in_the_middle_goes_on_after_the_last_revision(
    name: str, collect: Collect, read: threading.Event, heard: list[errors.EvalrpcError]
) -> None:
    first = sent_then(event(SNAPSHOT, 3), then=BREAKS[name], after=read)
    rest = sent_then(event(STATUS, 8, terminal=True), then=Exchange.end)
    with Http2Stub([first, rest]) as stub:
        seen = collect(stub.address, "watch", JOB_ID, on_disconnect=lambda error, _: heard.append(error))
        requests = [WatchJobRequest.FromString(request) for request in stub.requests]
    assert seen == [event(SNAPSHOT, 3), event(STATUS, 8, terminal=True)]
    assert [request.after_revision for request in requests] == [0, 3]
    assert len(heard) == 1
    assert isinstance(heard[0], errors.UnavailableError)


@pytest.mark.parametrize("name", ["RST_STREAM INTERNAL_ERROR", "GOAWAY INTERNAL_ERROR", "a dropped socket"])
def test_a_watch_of_all_jobs_that_breaks_goes_on_too(name: str, collect: Collect) -> None:
    job = job_at(JobStatus.JOB_STATUS_RUNNING, 3)
    listed = sent_then(ListJobsResponse(jobs=[job], revision=3), then=Exchange.end)
    heartbeat, repeat = event(BOOKMARK, 3), event(STATUS, 3)
    rest = sent_then(heartbeat, repeat, event(STATUS, 5, terminal=True), then=Exchange.end)
    with Http2Stub([BREAKS[name], listed, BREAKS[name], rest]) as stub:
        seen = collect(stub.address, "watch_all")
        requests = [WatchJobsRequest.FromString(request) for request in stub.requests[2:]]
    assert [each.type for each in seen] == [SNAPSHOT, BOOKMARK, STATUS]
    assert (seen[0].job, seen[1].revision, seen[2]) == (job, 3, event(STATUS, 5, terminal=True))
    assert [request.after_revision for request in requests] == [3, 3]


def run_event(kind: int, revision: int, *, terminal: bool = False) -> SuiteRunEvent:
    return SuiteRunEvent(type=kind, revision=revision, run=SuiteRun(suite_run_id=JOB_ID), terminal=terminal)


@pytest.mark.parametrize("name", ["RST_STREAM INTERNAL_ERROR", "GOAWAY INTERNAL_ERROR", "a dropped socket"])
def test_a_watch_of_a_suite_run_that_breaks_goes_on_after_the_last_revision(
    name: str, collect: Collect, read: threading.Event
) -> None:
    first = sent_then(run_event(SNAPSHOT, 3), then=BREAKS[name], after=read)
    heartbeat, repeat = SuiteRunEvent(type=BOOKMARK, revision=3), run_event(STATUS, 3)
    rest = sent_then(heartbeat, repeat, run_event(STATUS, 8, terminal=True), then=Exchange.end)
    with Http2Stub([first, rest]) as stub:
        seen = collect(stub.address, "watch_suite_run", JOB_ID)
        requests = [WatchSuiteRunRequest.FromString(request) for request in stub.requests]
    assert seen == [run_event(SNAPSHOT, 3), run_event(STATUS, 8, terminal=True)]
    assert [(request.suite_run_id, request.after_revision) for request in requests] == [(JOB_ID, 0), (JOB_ID, 3)]


@pytest.mark.parametrize("name", ["RST_STREAM INTERNAL_ERROR", "RST_STREAM CANCEL", "GOAWAY NO_ERROR", "a dropped socket"])
def test_a_log_that_breaks_goes_on_with_the_next_byte(name: str, collect: Collect, read: threading.Event) -> None:
    job = job_at(JobStatus.JOB_STATUS_RUNNING, 1, attempt=1)
    heartbeat = ReadLogResponse(offset=0, attempt=1)
    first = sent_then(heartbeat, ReadLogResponse(data=b"abc", offset=0, attempt=1), then=BREAKS[name], after=read)
    rest = sent_then(ReadLogResponse(data=b"def", offset=3, attempt=1), then=Exchange.end)
    with Http2Stub([sent_then(job, then=Exchange.end), first, rest]) as stub:
        seen = collect(stub.address, "logs", JOB_ID, follow=True)
        requests = [ReadLogRequest.FromString(request) for request in stub.requests[1:]]
    assert seen == [b"abc", b"def"]
    assert [(request.offset, request.attempt) for request in requests] == [(0, 1), (3, 1)]


@pytest.mark.parametrize("name", ["RST_STREAM INTERNAL_ERROR", "GOAWAY NO_ERROR", "a dropped socket"])
def test_media_that_break_go_on_with_the_medium_and_its_next_byte(name: str, collect: Collect, read: threading.Event) -> None:
    def piece(index: int, data: bytes, offset: int = 0, size_bytes: int = 6) -> ReadSampleMediaResponse:
        return ReadSampleMediaResponse(index=index, data=data, offset=offset, size_bytes=size_bytes)

    first = sent_then(piece(0, b"a", size_bytes=1), piece(1, b"abc"), then=BREAKS[name], after=read)
    rest = sent_then(piece(1, b"abcd"), piece(1, b"ef", 4), piece(2, b"b", size_bytes=1), then=Exchange.end)
    with Http2Stub([first, rest]) as stub:
        seen = collect(stub.address, "read_sample_media", JOB_ID, 7)
        requests = [ReadSampleMediaRequest.FromString(request) for request in stub.requests]
    assert b"".join(each.data for each in seen) == b"aabcdefb", "of whichever messages came before the break"
    assert [(request.sample_id, request.max_media) for request in requests] == [("7", 0)] * 2


@pytest.mark.parametrize("name", FINAL)
def test_what_is_about_the_request_ends_the_stream_for_good(name: str, collect: Collect) -> None:
    act, cls = FINAL[name]
    with Http2Stub([act]) as stub:
        with pytest.raises(cls) as caught:
            collect(stub.address, "watch", JOB_ID)
        assert len(stub.requests) == 1
    assert not isinstance(caught.value, errors.UnavailableError)


@pytest.mark.parametrize("name", BEFORE_ANY_MESSAGE)
def test_a_stream_that_keeps_breaking_is_unavailable_when_the_time_to_reconnect_is_over(name: str, collect: Collect) -> None:
    with Http2Stub([BREAKS[name]]) as stub, pytest.raises(errors.UnavailableError):
        collect(stub.address, "watch", JOB_ID, reconnect_timeout_seconds=0)


# Unary calls.


@pytest.mark.parametrize("name", sorted({*BEFORE_ANY_MESSAGE} - {"status DEADLINE_EXCEEDED"}))
def test_a_call_that_is_broken_off_is_repeated(name: str) -> None:
    job = job_at(JobStatus.JOB_STATUS_RUNNING, 1)
    with Http2Stub([BREAKS[name], sent_then(job, then=Exchange.end)]) as stub, EvalClient(stub.address) as client:
        assert client.get_job(JOB_ID) == job
