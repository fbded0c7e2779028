"""A gRPC service that queues model evaluations, runs the real harness, and streams every change to watchers.

    from evalrpc import EvalClient

    with EvalClient("127.0.0.1:50051") as client:
        job = client.evaluate("dummy", ["demo_colour"], labels={"step": 500})
        print(client.wait_for_job(job.job_id).results)

The names below are imported when they are first used, so that importing this package alone costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from evalrpc import errors
    from evalrpc.client import AsyncEvalClient, EvalClient, to_pandas
    from evalrpc.v1.comparison_pb2 import FlipDirection
    from evalrpc.v1.history_pb2 import TrendOptions
    from evalrpc.v1.jobs_pb2 import EvaluateRequest, GpuMode, JobFilter, JobStatus, JobView
    from evalrpc.v1.samples_pb2 import SampleFilter
    from evalrpc.v1.suites_pb2 import SuiteOutcome

    __version__: str

__all__ = [
    "AsyncEvalClient",
    "EvalClient",
    "EvaluateRequest",
    "FlipDirection",
    "GpuMode",
    "JobFilter",
    "JobStatus",
    "JobView",
    "SampleFilter",
    "SuiteOutcome",
    "TrendOptions",
    "__version__",
    "errors",
    "to_pandas",
]

_MODULES: Final = {
    "AsyncEvalClient": "evalrpc.client",
    "EvalClient": "evalrpc.client",
    "EvaluateRequest": "evalrpc.v1.jobs_pb2",
    "FlipDirection": "evalrpc.v1.comparison_pb2",
    "GpuMode": "evalrpc.v1.jobs_pb2",
    "JobFilter": "evalrpc.v1.jobs_pb2",
    "JobStatus": "evalrpc.v1.jobs_pb2",
    "JobView": "evalrpc.v1.jobs_pb2",
    "SampleFilter": "evalrpc.v1.samples_pb2",
    "SuiteOutcome": "evalrpc.v1.suites_pb2",
    "TrendOptions": "evalrpc.v1.history_pb2",
    "to_pandas": "evalrpc.client",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("evalrpc.errors")
    if name == "__version__":
        return globals().setdefault(name, _version())
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # which takes longer to load than all else here

    try:
        return version("evalrpc")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
