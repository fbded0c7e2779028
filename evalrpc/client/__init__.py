"""The Python client: `EvalClient` is blocking, `AsyncEvalClient` is for asyncio. Needs grpcio and protobuf, no server."""

from evalrpc.client.aio import AsyncEvalClient
from evalrpc.client.core import SubmitOptions
from evalrpc.client.download import ChecksumMismatchError
from evalrpc.client.sync import EvalClient

__all__ = ["AsyncEvalClient", "ChecksumMismatchError", "EvalClient", "SubmitOptions"]
