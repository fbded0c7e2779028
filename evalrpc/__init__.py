"""A gRPC service that queues model evaluations, runs the real harness, and streams every change to watchers.

    from evalrpc import EvalClient

    with EvalClient("127.0.0.1:50051") as client:
        job = client.evaluate("dummy", ["demo_colour"], labels={"step": 500})
        print(client.wait_for_job(job.job_id).results)

The names below are imported when they are first used, so that importing this package alone costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from evalrpc import errors
    from evalrpc.client import AsyncEvalClient, EvalClient, to_pandas
    from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobFilter, JobStatus

__all__ = [
    "AsyncEvalClient",
    "EvalClient",
    "EvaluateRequest",
    "JobFilter",
    "JobStatus",
    "__version__",
    "errors",
    "to_pandas",
]

_MODULES: Final = {
    "AsyncEvalClient": "evalrpc.client",
    "EvalClient": "evalrpc.client",
    "EvaluateRequest": "evalrpc.v1.jobs_pb2",
    "JobFilter": "evalrpc.v1.jobs_pb2",
    "JobStatus": "evalrpc.v1.jobs_pb2",
    "to_pandas": "evalrpc.client",
}

try:
    __version__ = version("evalrpc")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("evalrpc.errors")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
