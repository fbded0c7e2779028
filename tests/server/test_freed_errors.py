"""An error that was sent is freed at once: with its frames it takes kilobytes, and the collector seldom runs."""

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import Any, Never

from caller_limits import caller_limits

from evalrpc.errors import NotFoundError
from evalrpc.server.app import SERVICE
from evalrpc.server.call import Call
from evalrpc.server.handlers import handlers_of
from evalrpc.server.transports.grpc import _adapted, anonymous
from evalrpc.v1.jobs_pb2 import GetJobRequest


class AbortedError(Exception):
    pass


class Context:
    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, *_: Any) -> Never:
        raise AbortedError


def test_no_error_waits_for_the_collector() -> None:
    gc.disable()
    try:
        asyncio.run(check())
    finally:
        gc.enable()


async def check() -> None:
    errors = []

    class Service:
        async def GetJob(self, request: GetJobRequest, call: Call) -> Never:  # noqa: N802 - as in the schema
            error = NotFoundError("there is no such job", metadata={})
            errors.append(weakref.ref(error))
            raise error

    call = _adapted(handlers_of(SERVICE, Service(), caller_limits())["GetJob"], anonymous, None, is_stream=False)
    with suppress(AbortedError):
        await call(b"", Context())
    assert [error() for error in errors] == [None]
