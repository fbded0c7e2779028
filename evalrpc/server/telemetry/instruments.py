"""Every metric that is counted as things happen: its name, its unit, its labels. What is only read when somebody asks is in
`snapshot.py`.

No label has a value that clients choose: no job, model, task or owner. Harnesses and engines are those of the settings.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

PREFIX: Final = "evalrpc"

_WAIT_SECONDS: Final = (1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
_RUN_SECONDS: Final = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800)
_COMMIT_SECONDS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 4.096)
_LAG_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_CALL_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Those of OpenTelemetry's conventions for `rpc.server.call.duration`."""


class Instruments:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self.jobs_submitted = self._counter("jobs_submitted", "Jobs that were accepted.", "harness")
        self.jobs_finished = self._counter(
            "jobs_finished", "Jobs that have ended, with the reason of their error.", "harness", "status", "reason"
        )
        self.queue_wait = self._histogram(
            "job_queue_wait_seconds",
            "How long jobs waited before an attempt began, since they were submitted or the attempt before had ended.",
            _WAIT_SECONDS,
            "harness",
        )
        self.attempt_duration = self._histogram(
            "attempt_duration_seconds", "How long attempts took.", _RUN_SECONDS, "harness", "outcome"
        )
        self.gateway_requests = self._counter(
            "gateway_requests", "What became of questions that harnesses asked served models.", "engine", "result"
        )
        self.gateway_tokens = self._counter("gateway_tokens", "Tokens of the answers to them.", "engine", "direction")
        self.commit_duration = self._histogram(
            "store_commit_duration_seconds", "How long commits of the store took, to the disk.", _COMMIT_SECONDS
        )
        self.failed_commits = self._counter("store_commit_failures", "Commits that the store could not make.")
        self.committed_writes = self._counter("store_writes", "Writes in the commits of the store.")
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds",
            "How much later than asked for the event loop went on, looked at twice a second.",
            _LAG_SECONDS,
        )
        self.call_duration = Histogram(
            "rpc_server_call_duration_seconds",
            "How long calls took; of a stream, how long it was open.",
            ("rpc_system_name", "rpc_method", "rpc_response_status_code"),
            registry=self.registry,
            buckets=_CALL_SECONDS,
        )

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, description, labels, namespace=PREFIX, registry=self.registry, buckets=buckets)
