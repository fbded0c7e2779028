"""Repeating a unary call while the server is unavailable for a moment, such as during a restart, or asks to wait, without I/O.

gRPC would do this by itself, but not once a proxy has answered: it takes the headers of nginx's 502 for the server's.
"""

from typing import Final

import grpc

from evalrpc.client.failures import from_broken_call, from_rpc_error, is_broken_off
from evalrpc.client.reconnect import ReconnectPolicy

RETRIED_METHODS: Final = (
    "SubmitJob",
    "GetJob",
    "ListJobs",
    "CancelJob",
    "UpdateJob",
    "GetQueue",
    "PauseQueue",
    "ResumeQueue",
    "CordonGpu",
    "UncordonGpu",
    "ListEngines",
    "StopEngine",
    "ListArtifacts",
    "ListMetrics",
    "ListSamples",
    "GetHistory",
    "CompareJobs",
    "PlanComparison",
    "ListFlips",
    "ListSuites",
    "ListSuiteRuns",
    "SubmitSuite",
    "GetSuiteRun",
    "CancelSuiteRun",
    "ListTasks",
    "ListModels",
    "ListHarnesses",
    "GetCaller",
    "GetServerInfo",
)
"""The calls that may be retried blindly; SubmitJob and SubmitSuite because ours always carry a `request_id`."""

RETRY_SECONDS: Final = 2.0
"""How long a call is repeated."""


class Retries:
    """The tries of one call. The schema names each request after its method."""

    def __init__(self, request: object, policy: ReconnectPolicy) -> None:
        self._is_repeatable = type(request).__name__.removesuffix("Request") in RETRIED_METHODS
        self._policy = policy

    def timeout_seconds(self) -> float | None:
        """Return how long the next try may take. Raises TimeoutError when the time is up."""
        return self._policy.remaining_seconds()

    def failed(self, error: grpc.RpcError) -> float:
        """Return the seconds to wait before the next try. Raises what a retry would not fix, and what may not be repeated."""
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or not is_broken_off(error):
            raise from_rpc_error(error) from error
        failure = from_broken_call(error)
        if not self._is_repeatable:
            raise failure from error
        failure.__cause__ = error
        return self._policy.delay_seconds(failure)
