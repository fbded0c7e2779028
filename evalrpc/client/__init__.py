"""The Python client: `EvalClient` is blocking, `AsyncEvalClient` is for asyncio. Needs grpcio and protobuf, no server.

Both return the messages of the schema. Importing this package gives some of them a short `repr`, a table in notebooks, and
`to_pandas()`: see `evalrpc.client.views`. It has garbage collected when the process ends, while all threads are still there.
"""

import atexit
import gc

from evalrpc.client import views
from evalrpc.client.aio import AsyncEvalClient
from evalrpc.client.core import SubmitOptions, channel_options
from evalrpc.client.download import ChecksumMismatchError, DownloadError
from evalrpc.client.sync import EvalClient
from evalrpc.client.views import to_pandas

__all__ = [
    "AsyncEvalClient",
    "ChecksumMismatchError",
    "DownloadError",
    "EvalClient",
    "SubmitOptions",
    "channel_options",
    "to_pandas",
]

views.attach()
atexit.register(gc.collect)  # a gRPC call that is collected only later waits for the lock of a thread that has ended, for ever
