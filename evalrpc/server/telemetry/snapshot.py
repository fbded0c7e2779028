"""What is read when somebody asks for the metrics: how things stand now.

Of several servers on a store, each says what its own machine has. What all share is said by the scheduler alone, so that sums
over all servers are right.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import evalrpc
from evalrpc.engines.pool import EnginePool
from evalrpc.executors.base import Device, Node
from evalrpc.jobs.lifecycle import TRANSITIONS
from evalrpc.scheduling.duty import Duty
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.server.health import Health
from evalrpc.server.limits import Limits
from evalrpc.server.telemetry.instruments import PREFIX
from evalrpc.server.telemetry.job_metrics import JobMetrics, status_label
from evalrpc.store.base import Store
from evalrpc.v1.engines_pb2 import EngineState
from evalrpc.watching.feed import Feed

_GPU_STATES: Final = ("free", "job", "engine", "quarantined", "cordoned")
_STATUSES: Final = sorted({status for _, status in TRANSITIONS})


@dataclass(frozen=True)
class Observed:
    """The parts of a server that are looked at. Each may be read from any thread."""

    store: Store
    queue_state: QueueState
    engines: EnginePool
    engine_names: tuple[str, ...]
    feed: Feed
    limits: Limits
    health: Health
    duty: Duty


class Snapshot(Collector):
    """Yields the gauges."""

    def __init__(self, observed: Observed, jobs: JobMetrics) -> None:
        self._observed = observed
        self._jobs = jobs

    def describe(self) -> Iterable[Metric]:
        """Name nothing, so that nothing is read when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield how things stand."""
        observed = self._observed
        yield _gauges("build_info", "The version that runs here.", ["version"], [((evalrpc.__version__,), 1)])
        yield _gauge("serving", "Whether the server takes new jobs and can write.", observed.health.is_serving)
        if observed.duty.places_jobs:
            yield from self._queue()
        yield _gauge("job_slots", "The most jobs that may run at once.", self._slots())
        yield _gauges("gpus", "The GPUs, each in one state.", ["state"], self._gpus())
        yield _gauges("engines", "The engines that have not ended, by configured name.", ["engine", "state"], self._engines())
        watchers = [(("job",), observed.feed.job_watcher_count), (("jobs",), observed.feed.jobs_watcher_count)]
        yield _gauges("watchers", "Open streams of WatchJob, and of WatchJobs.", ["stream"], watchers)
        yield _gauge("open_streams", "Open streams of any kind.", observed.limits.stream_count)
        yield _gauge(
            "unread_bytes", "The memory for large answers that clients have not read yet.", observed.limits.unread.held_bytes
        )
        yield _gauge("head_revision", "The newest revision.", observed.store.head_revision)

    def _queue(self) -> Iterator[Metric]:
        observed = self._observed
        counts = observed.store.status_counts()
        statuses = [((status_label(status),), counts.get(status, 0)) for status in _STATUSES]
        yield _gauges("jobs", "The jobs that there are.", ["status"], statuses)
        yield _gauge(
            "job_oldest_queued_age_seconds", "How long the job has waited that waits longest.", self._jobs.oldest_age_seconds()
        )
        yield _gauge("queue_paused", "Whether an operator keeps queued jobs from starting.", observed.queue_state.is_paused)

    def _slots(self) -> int:
        """Return how many jobs may run at once on this machine."""
        of_machine = [node.max_runs for node in self._nodes() if not node.executor and node.max_runs is not None]
        return sum(of_machine) if of_machine else self._observed.queue_state.slots.total

    def _nodes(self) -> list[Node]:
        """Return what this server says of: its own machine, and as the scheduler the clusters."""
        return [node for node in self._observed.queue_state.nodes() if self._observed.duty.starts_on(node.name)]

    def _gpus(self) -> list[tuple[tuple[str], int]]:
        observed = self._observed
        held = {gpu for job in observed.queue_state.own_running_jobs() for gpu in job.gpus}
        of_engines = {gpu for each in observed.engines.holdings() for gpu in each.devices}
        devices = [device for node in self._nodes() for device in node.devices]
        counts = Counter(_gpu_state(device, held, of_engines) for device in devices)
        return [((state,), counts[state]) for state in _GPU_STATES]

    def _engines(self) -> list[tuple[tuple[str, str], int]]:
        names = self._observed.engine_names
        states = [name.removeprefix("ENGINE_STATE_").lower() for name in EngineState.keys()[1:]]
        counts = Counter(
            (engine.served_model.engine, EngineState.Name(engine.state).removeprefix("ENGINE_STATE_").lower())
            for engine in self._observed.engines.listed()
        )
        return [((name, state), counts[name, state]) for name in names for state in states if state != "ended"]


def _gpu_state(device: Device, held: set[str], of_engines: set[str]) -> str:
    """Return the state of a GPU: what holds it comes first, then why it is not free."""
    if device.id in held:
        return "job"
    if device.id in of_engines:
        return "engine"
    if device.quarantine_reason:
        return "quarantined"
    return "cordoned" if device.is_cordoned else "free"


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", description, value=float(value))


def _gauges(name: str, description: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", description, labels=labels)
    for of_labels, value in values:
        family.add_metric(of_labels, value)
    return family
