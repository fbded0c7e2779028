"""What every way into the server promises: gRPC, Connect over HTTP in both its forms, and calls within the process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import grpc
import pytest
from caller_limits import caller_limits
from connect_client import connect_transport
from waiting import DEADLINE_SECONDS

from evalrpc.client.failures import from_rpc_error
from evalrpc.config import Settings
from evalrpc.config.addresses import PortAddress
from evalrpc.config.listeners import Listener
from evalrpc.errors import EvalrpcError, InternalError, InvalidRequestError, JobNotFoundError, UnimplementedError
from evalrpc.server.app import SERVICE
from evalrpc.server.call import ANONYMOUS, Call
from evalrpc.server.handlers import Handler, handlers_of
from evalrpc.server.transports.connect.endpoints import ConnectCodec, endpoints_of
from evalrpc.server.transports.grpc import anonymous, generic_handler
from evalrpc.server.transports.http.application import MAX_BODIES_BYTES, HttpApplication
from evalrpc.server.transports.http.codec import JsonCodec
from evalrpc.server.transports.http.gate import Gate
from evalrpc.server.transports.http.listener import HttpListener
from evalrpc.server.transports.http.methods import methods_of
from evalrpc.server.unread import UnreadBytes
from evalrpc.testing.in_process import InProcessTransport
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import CancelJobRequest, DeleteJobRequest, GetJobRequest, WatchJobRequest, WatchJobsRequest
from evalrpc.v1.queue_pb2 import GetQueueRequest, GetQueueResponse

REQUEST = GetJobRequest(job_id="j").SerializeToString()


class Transport(Protocol):
    async def unary(self, method: str, request: bytes) -> bytes: ...

    def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]: ...


class GrpcTransport:
    """A client over a real channel, which speaks bytes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def unary(self, method: str, request: bytes) -> bytes:
        try:
            return bytes(await self._channel.unary_unary(f"/{SERVICE.full_name}/{method}")(request))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        call = self._channel.unary_stream(f"/{SERVICE.full_name}/{method}")(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()


@asynccontextmanager
async def over_grpc(handlers: Mapping[str, Handler]) -> AsyncIterator[Transport]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((generic_handler(SERVICE, handlers, anonymous),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GrpcTransport(channel)
    await server.stop(None)


@asynccontextmanager
async def over_connect(form: str, handlers: Mapping[str, Handler]) -> AsyncIterator[Transport]:
    settings = Settings()
    with ThreadPoolExecutor(1) as pool:
        methods = methods_of(SERVICE, handlers, lambda _: ANONYMOUS)
        endpoints = endpoints_of(SERVICE.full_name, methods, ConnectCodec(JsonCodec(pool), settings.max_request_bytes))
        bodies = UnreadBytes(MAX_BODIES_BYTES, lambda peers: None)
        here = Listener(PortAddress("127.0.0.1", 0), None, requires_sign_in=False)
        application = HttpApplication(Gate(here, settings), settings.max_request_bytes, endpoints, bodies=bodies)
        listener = HttpListener(here, None, settings, application, pool)
        listener.bind()
        await listener.start()
        async with connect_transport(listener.address, form) as transport:
            yield transport
        await listener.stop(0.0)


@asynccontextmanager
async def in_process(handlers: Mapping[str, Handler]) -> AsyncIterator[Transport]:
    yield InProcessTransport(handlers)


class Service:
    """Answers with what it is given, and remembers its last call."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.is_ended = asyncio.Event()

    async def GetJob(self, request: GetJobRequest, call: Call) -> pb.JobInfo:
        self.call = call
        return pb.JobInfo(job_id=request.job_id)

    async def GetQueue(self, request: GetQueueRequest, call: Call) -> bytes:
        return GetQueueResponse(queued_count=7).SerializeToString()

    async def CancelJob(self, request: CancelJobRequest, call: Call) -> pb.JobInfo:
        raise JobNotFoundError("there is no job j", metadata={"resource_name": "j"}, retry_delay_seconds=2.0)

    async def DeleteJob(self, request: DeleteJobRequest, call: Call) -> None:
        raise ZeroDivisionError("a secret")

    async def WatchJob(self, request: WatchJobRequest, call: Call) -> None:
        for revision in range(1, 4):
            await call.send(pb.JobEvent(revision=revision).SerializeToString())
        if request.after_revision:
            raise JobNotFoundError("it was deleted")

    async def WatchJobs(self, request: WatchJobsRequest, call: Call) -> None:
        try:
            while True:
                await call.send(pb.JobEvent(revision=1).SerializeToString())
        finally:
            self.is_ended.set()


Opener = Callable[[Mapping[str, Handler]], AbstractAsyncContextManager[Transport]]
Use = Callable[[Transport, Service], Awaitable[None]]


OPENERS = {
    "grpc": over_grpc,
    "connect-json": partial(over_connect, "json"),
    "connect-proto": partial(over_connect, "proto"),
    "in-process": in_process,
}


@pytest.fixture(params=OPENERS)
def use(request: pytest.FixtureRequest) -> Callable[[Use], None]:
    """Run a coroutine with a transport and the service behind it."""
    opener: Opener = OPENERS[request.param]

    async def within(coroutine: Use) -> None:
        service = Service()
        async with asyncio.timeout(DEADLINE_SECONDS), opener(handlers_of(SERVICE, service, caller_limits())) as transport:
            await coroutine(transport, service)

    return lambda coroutine: asyncio.run(within(coroutine))


async def failure_of(answer: Awaitable[Any]) -> EvalrpcError:
    with pytest.raises(EvalrpcError) as caught:
        await answer
    return caught.value


async def receive(messages: AsyncIterator[bytes], revisions: list[int]) -> list[int]:
    async for message in messages:
        revisions += [pb.JobEvent.FromString(message).revision]
    return revisions


def test_a_unary_call_is_answered_with_its_message_or_its_bytes(use: Callable[[Use], None]) -> None:
    async def call(transport: Transport, service: Service) -> None:
        assert pb.JobInfo.FromString(await transport.unary("GetJob", REQUEST)).job_id == "j"
        assert GetQueueResponse.FromString(await transport.unary("GetQueue", b"")).queued_count == 7
        assert service.call is not None
        assert service.call.principal == ANONYMOUS

    use(call)


def test_an_error_arrives_as_the_same_class_with_all_that_it_says(use: Callable[[Use], None]) -> None:
    async def call(transport: Transport, _: Service) -> None:
        error = await failure_of(transport.unary("CancelJob", b""))
        assert type(error) is JobNotFoundError
        assert (error.message, error.retry_delay_seconds) == ("there is no job j", 2.0)
        assert error.metadata["resource_name"] == "j"

    use(call)


def test_a_bug_is_internal_and_tells_nothing(use: Callable[[Use], None], caplog: pytest.LogCaptureFixture) -> None:
    async def call(transport: Transport, _: Service) -> None:
        error = await failure_of(transport.unary("DeleteJob", b""))
        assert type(error) is InternalError
        assert "secret" not in error.message

    use(call)
    assert "a bug in DeleteJob" in caplog.text
    assert "a secret" in caplog.text


def test_what_can_not_be_decoded_and_what_is_not_there_is_refused(use: Callable[[Use], None]) -> None:
    async def call(transport: Transport, _: Service) -> None:
        assert type(await failure_of(transport.unary("GetJob", b"\xff"))) is InvalidRequestError
        assert type(await failure_of(receive(transport.stream("WatchJob", b"\xff"), []))) is InvalidRequestError
        assert type(await failure_of(transport.unary("ListSamples", b""))) is UnimplementedError

    use(call)


def test_a_stream_arrives_in_order_and_ends(use: Callable[[Use], None]) -> None:
    async def call(transport: Transport, _: Service) -> None:
        assert await receive(transport.stream("WatchJob", b""), []) == [1, 2, 3]

    use(call)


def test_an_error_comes_after_what_was_sent_before_it(use: Callable[[Use], None]) -> None:
    async def call(transport: Transport, _: Service) -> None:
        revisions: list[int] = []
        messages = transport.stream("WatchJob", WatchJobRequest(after_revision=1).SerializeToString())
        assert type(await failure_of(receive(messages, revisions))) is JobNotFoundError
        assert revisions == [1, 2, 3]

    use(call)


def test_a_reader_that_leaves_ends_the_handler(use: Callable[[Use], None]) -> None:
    async def call(transport: Transport, service: Service) -> None:
        async with aclosing(transport.stream("WatchJobs", b"")) as messages:  # type: ignore[type-var]
            assert await anext(messages)
        await service.is_ended.wait()

    use(call)
