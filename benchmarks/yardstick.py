"""The limit: the same kind of server with the same messages and nothing behind them.

The same grpc.aio, uvloop, channel options and garbage collection as `evalrpc.server`. Requests are decoded; answers are
constant bytes. Watchers get a first message, then wait on one asyncio.Event per job; CancelJob sets it. Bytes come from memory,
not from a file.
"""

import asyncio
import signal
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import uvloop

from benchmarks import messages
from evalrpc.server.collector import tune_collector
from evalrpc.server.transports.grpc_options import channel_options
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.files_pb2 import ReadArtifactRequest, ReadArtifactResponse
from evalrpc.v1.jobs_pb2 import CancelJobRequest, GetJobRequest, SubmitJobRequest, WatchJobRequest
from evalrpc.v1.queue_pb2 import GetQueueRequest, GetQueueResponse

MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
"""The server's default. Importing `evalrpc.config` for it would add a megabyte to the yardstick's memory."""

CHUNK_BYTES: Final = 1024 * 1024

_Context = grpc.aio.ServicerContext[Any, Any]


class Yardstick:
    """The handlers."""

    def __init__(self) -> None:
        self._job = messages.constant_job().SerializeToString()
        self._snapshot = messages.constant_event(pb.JOB_STATUS_QUEUED).SerializeToString()
        self._event = messages.constant_event(pb.JOB_STATUS_CANCELLED).SerializeToString()
        ids = [messages.new_job().job_id] * 1000
        self._queue = GetQueueResponse(queued_count=10_000, queued_job_ids=ids).SerializeToString()
        self._chunk = ReadArtifactResponse(data=bytes(CHUNK_BYTES), offset=1, size_bytes=1 << 31).SerializeToString()
        self._changes: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def answer_job(self, _request: Any, _context: _Context) -> bytes:
        """Answer GetJob and SubmitJob."""
        return self._job

    async def answer_queue(self, _request: Any, _context: _Context) -> bytes:
        """Answer GetQueue with a thousand ids."""
        return self._queue

    async def wake(self, request: CancelJobRequest, _context: _Context) -> bytes:
        """Answer CancelJob, and wake the job's watchers."""
        self._changes.pop(request.job_id, asyncio.Event()).set()
        return self._job

    async def watch(self, request: WatchJobRequest, context: _Context) -> None:
        """Answer WatchJob."""
        change = self._changes[request.job_id]
        await context.write(self._snapshot)
        await change.wait()
        await context.write(self._event)

    async def send_bytes(self, request: ReadArtifactRequest, context: _Context) -> None:
        """Answer ReadArtifact with the requested number of bytes."""
        for _ in range(request.limit // CHUNK_BYTES):
            await context.write(self._chunk)


def handlers(yardstick: Yardstick) -> grpc.GenericRpcHandler:
    """Return the handlers by call name."""

    def unary(request: type[Any], handler: Callable[..., Awaitable[bytes]]) -> Any:
        return grpc.unary_unary_rpc_method_handler(handler, request_deserializer=request.FromString)

    def stream(request: type[Any], handler: Callable[..., Awaitable[None]]) -> Any:
        return grpc.unary_stream_rpc_method_handler(handler, request_deserializer=request.FromString)

    methods = {
        "GetJob": unary(GetJobRequest, yardstick.answer_job),
        "SubmitJob": unary(SubmitJobRequest, yardstick.answer_job),
        "GetQueue": unary(GetQueueRequest, yardstick.answer_queue),
        "CancelJob": unary(CancelJobRequest, yardstick.wake),
        "WatchJob": stream(WatchJobRequest, yardstick.watch),
        "ReadArtifact": stream(ReadArtifactRequest, yardstick.send_bytes),
    }
    return grpc.method_handlers_generic_handler("evalrpc.v1.EvaluationService", methods)


async def serve() -> None:
    """Serve on a free loopback port until SIGTERM, and print the address to stdout."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = grpc.aio.server(options=channel_options(MAX_REQUEST_BYTES))
    server.add_generic_rpc_handlers((handlers(Yardstick()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"yardstick listening on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    tune_collector()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
