"""A client that leaves while it is answered: gRPC fails to send, and nobody takes that for a bug."""

import asyncio
import logging
from collections.abc import Iterator

import grpc
import pytest
from caller_limits import caller_limits

from evalrpc.server.app import SERVICE
from evalrpc.server.call import Call
from evalrpc.server.handlers import handlers_of
from evalrpc.server.transports.grpc import _adapted, anonymous, ignore_departures
from evalrpc.v1.jobs_pb2 import JobEvent, WatchJobsRequest

GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


class Departed:
    """The context of a call whose client has left."""

    async def write(self, message: bytes) -> None:
        raise grpc.aio.InternalError('Failed "execute_batch"')

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


class Service:
    async def WatchJobs(self, request: WatchJobsRequest, call: Call) -> None:
        await call.send(JobEvent(revision=1).SerializeToString())


@pytest.fixture
def ignoring() -> Iterator[None]:
    before = list(GRPC_LOG.filters)
    ignore_departures()
    yield
    GRPC_LOG.filters = before


def test_a_message_to_a_client_that_left_ends_the_call_as_a_cancellation_does(caplog: pytest.LogCaptureFixture) -> None:
    call = _adapted(handlers_of(SERVICE, Service(), caller_limits())["WatchJobs"], anonymous, None, is_stream=True)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call(b"", Departed()))
    assert not caplog.records


@pytest.mark.usefixtures("ignoring")
@pytest.mark.parametrize(("error", "count"), [(grpc.aio.InternalError("Failed"), 0), (ZeroDivisionError("a bug"), 1)])
def test_grpc_logs_bugs_but_no_departures(error: Exception, count: int, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise error
    except type(error):
        GRPC_LOG.exception("raised by servicer method")
    assert len(caplog.records) == count
