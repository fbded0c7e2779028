"""Callers are bounded: streams, calls per second, and answers that nobody reads, through any transport."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack, aclosing
from typing import Any

import pytest
from caller_limits import caller_limits
from google.rpc import error_details_pb2
from waiting import DEADLINE_SECONDS

from evalrpc.errors import EvalrpcError, RequestTooLargeError, TooManyCallsError, TooManyStreamsError, TooMuchUnreadError
from evalrpc.server.app import SERVICE
from evalrpc.server.call import ANONYMOUS, Call, Principal, Role
from evalrpc.server.error_status import status_of
from evalrpc.server.handlers import MAX_FIELDS, handlers_of
from evalrpc.server.limits import SMALL_BYTES, Limits
from evalrpc.server.unread import Hold, UnreadBytes
from evalrpc.testing.in_process import InProcessTransport
from evalrpc.v1.files_pb2 import ReadArtifactRequest
from evalrpc.v1.jobs_pb2 import CancelJobRequest, GetJobRequest, JobFilter, ListJobsRequest, WatchJobsRequest

SMALL, LARGE = b"s" * SMALL_BYTES, b"l" * (SMALL_BYTES + 1)


class Service:
    """Answers with bytes of a size, and counts how often it made them."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.made = 0

    async def GetJob(self, request: GetJobRequest, call: Call) -> bytes:  # noqa: N802
        self.made += 1
        return self.answer

    async def CancelJob(self, request: CancelJobRequest, call: Call) -> bytes:  # noqa: N802
        self.made += 1
        return self.answer

    async def ListJobs(self, request: ListJobsRequest, call: Call) -> bytes:  # noqa: N802
        self.made += 1
        return self.answer

    async def WatchJobs(self, request: WatchJobsRequest, call: Call) -> None:  # noqa: N802
        while True:
            self.made += 1
            await call.send(self.answer)

    async def ReadArtifact(self, request: ReadArtifactRequest, call: Call) -> None:  # noqa: N802
        while True:
            if room := call.reserve(len(self.answer)):
                await room
            self.made += 1
            await call.send(self.answer)


def served(service: Service, limits: Limits, owner: str = "alice") -> InProcessTransport:
    return InProcessTransport(handlers_of(SERVICE, service, limits), Principal(owner, Role.SUBMITTER))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await test()

    asyncio.run(within())


async def failure_of(answer: Awaitable[Any]) -> EvalrpcError:
    with pytest.raises(EvalrpcError) as caught:
        await answer
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(0)


def details_of(error: EvalrpcError) -> dict[str, Any]:
    """Return the details that a client gets, by kind."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.QuotaFailure, error_details_pb2.RetryInfo)
    found = {}
    for detail in status_of(error).details:
        for kind in kinds:
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    return found


async def no_send(message: bytes) -> None:
    pass


# Streams


@pytest.mark.parametrize(
    ("settings", "owner", "setting", "subject"),
    [
        ({"max_streams_per_owner": 2}, "alice", "max_streams_per_owner", "owner:alice"),
        ({"max_streams_per_owner": 2}, "", "max_streams_per_owner", "owner:"),
        ({"max_streams": 2}, "bob", "max_streams", "server"),
    ],
)
def test_one_stream_too_many_is_refused_until_another_one_ends(
    settings: dict[str, int], owner: str, setting: str, subject: str
) -> None:
    async def test() -> None:
        limits = caller_limits(**settings)
        first = served(Service(b"x"), limits, owner if setting.endswith("owner") else "alice")
        last = served(Service(b"x"), limits, owner)
        streams = [first.stream("WatchJobs", b"") for _ in range(2)]
        for stream in streams:
            await anext(stream)
        error = await failure_of(anext(last.stream("WatchJobs", b"")))
        assert type(error) is TooManyStreamsError
        details = details_of(error)
        assert details["ErrorInfo"].reason == "TOO_MANY_STREAMS"
        assert dict(details["ErrorInfo"].metadata) == {
            "setting": setting,
            "limit": "2",
            **({"owner": owner} if setting.endswith("owner") else {}),
        }
        assert [violation.subject for violation in details["QuotaFailure"].violations] == [subject]
        assert details["RetryInfo"].retry_delay.seconds == 1
        await streams[0].aclose()  # type: ignore[attr-defined]
        assert limits.stream_count == 1
        async with aclosing(last.stream("WatchJobs", b"")) as again:  # type: ignore[type-var]
            assert await anext(again)
        await streams[1].aclose()  # type: ignore[attr-defined]
        assert limits.stream_count == 0
        assert not limits._streams_of

    run(test)


def test_the_streams_of_one_owner_leave_room_for_another() -> None:
    async def test() -> None:
        limits = caller_limits(max_streams_per_owner=1)
        for owner in ("alice", "bob"):
            stream = served(Service(b"x"), limits, owner).stream("WatchJobs", b"")
            assert await anext(stream)
            assert await served(Service(b"y"), limits, owner).unary("GetJob", b"") == b"y", "no stream"

    run(test)


def test_there_is_room_for_10000_watchers_of_nobody_who_has_signed_in() -> None:
    limits = caller_limits()
    with ExitStack() as stack:
        for _ in range(10_000):
            stack.enter_context(limits.open_stream(Call(ANONYMOUS, no_send)))
        assert limits.stream_count == 10_000


# Calls per second


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_owner_gets_so_many_calls_per_second_and_is_told_when_the_next_one_is_accepted() -> None:
    async def test() -> None:
        seconds = Seconds()
        limits = caller_limits(seconds, max_calls_per_second=4)
        alice, bob = (served(Service(), limits, owner) for owner in ("alice", "bob"))
        for _ in range(4):
            await alice.unary("GetJob", b"")
        error = await failure_of(alice.unary("GetJob", b""))
        assert type(error) is TooManyCallsError
        details = details_of(error)
        assert dict(details["ErrorInfo"].metadata) == {"setting": "max_calls_per_second", "limit": "4", "owner": "alice"}
        assert [violation.subject for violation in details["QuotaFailure"].violations] == ["owner:alice"]
        assert details["RetryInfo"].retry_delay.nanos == 250_000_000
        assert type(await failure_of(anext(alice.stream("WatchJobs", b"")))) is TooManyCallsError, "a stream is a call, too"
        await bob.unary("GetJob", b"")
        seconds.now += 0.25
        await alice.unary("GetJob", b"")
        assert type(await failure_of(alice.unary("GetJob", b""))) is TooManyCallsError
        seconds.now += 3600
        for _ in range(4):
            await alice.unary("GetJob", b"")
        assert type(await failure_of(alice.unary("GetJob", b""))) is TooManyCallsError, "what was not used is not saved up"

    run(test)


def test_owners_who_have_stopped_calling_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.server.limits._MAX_BUCKETS", 3)
    seconds = Seconds()
    limits = caller_limits(seconds, max_calls_per_second=1)
    for owner in "abc":
        limits.admit(owner, 0)
    seconds.now += 10
    limits.admit("d", 0)
    assert set(limits._rates._buckets) == {"d"}
    with pytest.raises(TooManyCallsError):
        limits.admit("d", 0)


def test_calls_have_no_limit_by_default() -> None:
    limits = caller_limits(Seconds())
    for _ in range(100_000):
        limits.admit("alice", 0)


# Requests


def test_a_request_of_one_byte_too_many_is_refused_with_the_limit() -> None:
    async def test() -> None:
        transport = served(Service(), caller_limits(max_request_bytes=100))
        assert await transport.unary("GetJob", GetJobRequest(job_id="j" * 98).SerializeToString()) == b""
        error = await failure_of(transport.unary("GetJob", GetJobRequest(job_id="j" * 99).SerializeToString()))
        assert type(error) is RequestTooLargeError
        details = details_of(error)
        assert dict(details["ErrorInfo"].metadata) == {"setting": "max_request_bytes", "limit": "100"}
        assert "RetryInfo" not in details

    run(test)


@pytest.mark.parametrize("method", ["ListJobs", "WatchJobs"])
def test_a_request_with_very_many_fields_is_refused_undecoded_and_small_ones_go_on_meanwhile(method: str) -> None:
    many = ListJobsRequest(filter=JobFilter(tasks=[""] * MAX_FIELDS)).SerializeToString()

    async def test() -> None:
        transport = served(Service(b"x"), caller_limits())
        stream = transport.stream(method, many)
        large = asyncio.ensure_future(transport.unary(method, many) if method == "ListJobs" else anext(stream))
        await asyncio.sleep(0)
        assert await transport.unary("GetJob", b"") == b"x"
        assert not large.done()
        error = await failure_of(large)
        assert type(error) is RequestTooLargeError
        assert error.metadata == {"limit": str(MAX_FIELDS)}
        await stream.aclose()

    run(test)


def test_large_requests_with_few_fields_are_taken() -> None:
    request = ListJobsRequest(filter=JobFilter(tasks=["t" * 1000] * 100)).SerializeToString()

    async def test() -> None:
        transport = served(Service(b"x"), caller_limits())
        assert await asyncio.gather(*(transport.unary("ListJobs", request) for _ in range(5))) == [b"x"] * 5

    run(test)


# Answers that nobody reads


def test_small_messages_need_no_room() -> None:
    async def test() -> None:
        limits = caller_limits(max_unread_bytes=1)
        hold = await limits.unread.reserve(1, str)
        transport = served(Service(SMALL), limits)
        assert await transport.unary("GetJob", b"") == SMALL
        assert await transport.unary("CancelJob", b"") == SMALL
        async with aclosing(transport.stream("WatchJobs", b"")) as stream:  # type: ignore[type-var]
            assert [await anext(stream) for _ in range(3)] == [SMALL] * 3
        limits.unread.give_back(hold)

    run(test)


@pytest.mark.parametrize(("method", "made"), [("GetJob", 2), ("CancelJob", 1), ("ListJobs", 1)])
def test_a_large_answer_waits_for_room_and_only_what_reads_is_made_again(method: str, made: int) -> None:
    async def test() -> None:
        limits, service = caller_limits(max_unread_bytes=len(LARGE)), Service(LARGE)
        hold = await limits.unread.reserve(1, str)
        answer = asyncio.ensure_future(served(service, limits).unary(method, b""))
        await until(lambda: any(limits.unread._lines))
        assert not answer.done()
        limits.unread.give_back(hold)
        assert await answer == LARGE
        assert service.made == made
        await until(lambda: limits.unread.held_bytes == 0)

    run(test)


def test_a_page_that_fails_gives_its_room_back() -> None:
    class Failing(Service):
        async def ListJobs(self, request: ListJobsRequest, call: Call) -> bytes:  # noqa: N802
            raise EvalrpcError("it failed")

    async def test() -> None:
        limits = caller_limits()
        await failure_of(served(Failing(), limits).unary("ListJobs", b""))
        assert limits.unread.held_bytes == 0

    run(test)


@pytest.mark.parametrize("method", ["WatchJobs", "ReadArtifact"])
def test_streams_whose_clients_do_not_read_take_no_more_than_the_room_and_give_it_back_when_they_leave(method: str) -> None:
    async def test() -> None:
        limits, service = caller_limits(max_unread_bytes=3 * len(LARGE)), Service(LARGE)
        transport = served(service, limits)
        streams = [transport.stream(method, b"") for _ in range(8)]
        reading = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await until(lambda: service.made >= 3 and any(limits.unread._lines))
        await until(lambda: sum(each.done() for each in reading) >= 3)
        assert limits.unread.held_bytes <= 3 * len(LARGE)
        for each in reading:
            each.cancel()
        for stream in streams:
            await until(lambda each=stream: not each.ag_running)  # type: ignore[misc]
            await stream.aclose()  # type: ignore[attr-defined]
        assert (limits.unread.held_bytes, limits.stream_count, limits.unread._kept_bytes) == (0, 0, 0)

    run(test)


def test_a_stream_is_refused_if_more_messages_wait_than_may_be_unread() -> None:
    async def test() -> None:
        unread = UnreadBytes(10, lambda peers: None)
        holds = [await unread.take(6, str)]
        waiting = [asyncio.ensure_future(unread.take(size, str)) for size in (6, 4)]
        await asyncio.sleep(0)
        error = await failure_of(unread.take(1, str))
        assert type(error) is TooMuchUnreadError
        assert details_of(error)["RetryInfo"].retry_delay.seconds == 1
        unread.give_back(holds[0])
        holds = [await each for each in waiting]
        assert unread.held_bytes == 10
        for hold in holds:
            unread.give_back(hold)
        assert unread.held_bytes == 0

    run(test)


def test_what_is_larger_than_all_the_room_gets_all_of_it() -> None:
    async def test() -> None:
        unread = UnreadBytes(10, lambda peers: None)
        hold = await unread.take(11, str)
        assert unread.held_bytes == 10
        unread.give_back(hold)
        assert unread.held_bytes == 0

    run(test)


def test_single_answers_come_before_streams_and_each_in_turn() -> None:
    async def test() -> None:
        unread, order = UnreadBytes(1, lambda peers: None), []

        async def take(name: str, taking: Awaitable[Hold]) -> None:
            hold = await taking
            order.append(name)
            unread.give_back(hold)

        hold = await unread.reserve(1, str)
        lines = {"stream": True, "another stream": True, "answer": False, "another answer": False}
        taking = [take(name, unread.reserve(1, str, for_stream=is_stream)) for name, is_stream in lines.items()]
        tasks = [asyncio.ensure_future(each) for each in taking]
        await asyncio.sleep(0)
        unread.give_back(hold)
        await asyncio.gather(*tasks)
        assert order == ["answer", "another answer", "stream", "another stream"]

    run(test)


@pytest.mark.parametrize("just_let_in", [False, True])
def test_whoever_leaves_the_line_leaves_no_trace(just_let_in: bool) -> None:
    async def test() -> None:
        unread = UnreadBytes(1, lambda peers: None)
        hold = await unread.take(1, str)
        leaving, staying = (asyncio.ensure_future(unread.reserve(1, str)) for _ in range(2))
        await asyncio.sleep(0)
        if just_let_in:
            unread.give_back(hold)
        leaving.cancel()
        await asyncio.wait([leaving])
        if not just_let_in:
            unread.give_back(hold)
        unread.give_back(await staying)
        assert (unread.held_bytes, unread._holds, any(unread._lines)) == (0, {}, False)

    run(test)


def test_a_client_that_reads_nothing_is_disconnected_once_another_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalrpc.server.unread._MIN_PAUSE_SECONDS", 0.0)

    async def test() -> None:
        disconnected: list[Collection[str]] = []
        unread = UnreadBytes(2, disconnected.append, stall_seconds=0.0)
        holds = [await unread.take(1, lambda name=name: name) for name in ("a", "b")]  # type: ignore[misc]
        await asyncio.sleep(0.0)
        assert not disconnected, "nobody waits"
        waiting = asyncio.ensure_future(unread.reserve(1, str))
        await asyncio.sleep(0.01)
        assert not disconnected, "the server has not made their messages yet"
        for hold in holds:
            unread.begin(hold)
        await until(lambda: bool(disconnected))
        assert {peer for peers in disconnected for peer in peers} >= {"a"}
        unread.give_back(holds[0])
        await waiting

    run(test)
