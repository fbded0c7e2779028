"""The metrics of a server, put together: what is counted, what is read, and the page."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import ProcessCollector, disable_created_metrics

from evalrpc.clock import Clock
from evalrpc.config import Settings
from evalrpc.config.addresses import PortAddress, parse_listen_address
from evalrpc.engines.gateway.contract import Counters
from evalrpc.server.telemetry.call_meters import CallMeters
from evalrpc.server.telemetry.instruments import Instruments
from evalrpc.server.telemetry.job_metrics import JobMetrics
from evalrpc.server.telemetry.page import MetricsPage
from evalrpc.server.telemetry.snapshot import Observed, Snapshot

_LAG_SECONDS: Final = 0.5

_RESULTS: Final = ("answered", "replayed", "truncated", "empty", "failed", "retried", "unavailable", "unrecorded")
_DIRECTIONS: Final = (("prompt", "prompt_tokens"), ("completion", "completion_tokens"))


class Metrics:
    """All that a server with `metrics_listen` measures."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._address = parse_listen_address(settings.metrics_listen)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, of a time that nobody asks for
        self._instruments = Instruments()
        ProcessCollector(registry=self._instruments.registry)
        self.jobs: Final = JobMetrics(self._instruments, settings.harnesses, clock.now)
        """What happens to jobs. To follow the store."""
        self.calls: Final = CallMeters(self._instruments.call_duration, clock.monotonic)
        """Makes what transports measure calls with."""
        self._page: MetricsPage | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where the page is, as HOST:PORT."""
        return str(self._page.address if self._page is not None else self._address)

    def observe(self, observed: Observed) -> None:
        """Have these parts of the server on the page."""
        self._instruments.registry.register(Snapshot(observed, self.jobs))

    def bind(self) -> None:
        """Take the port. Raises ConfigurationError."""
        assert isinstance(self._address, PortAddress)  # noqa: S101 - the setting takes no other
        self._page = MetricsPage(self._address, self._instruments.registry)

    def start(self) -> None:
        """Begin to serve the page, and to look at the event loop that this is called on."""
        assert self._page is not None  # noqa: S101 - `bind` has been called
        self._page.start()
        self._watching = asyncio.create_task(_watch_loop(self._instruments.loop_lag.observe))

    async def stop(self) -> None:
        """Serve the page no more."""
        if self._watching is not None:
            self._watching.cancel()
        if self._page is not None:
            await asyncio.to_thread(self._page.close)

    def observe_commit(self, seconds: float, write_count: int, *, is_committed: bool) -> None:
        """Count a commit of the store. From its writer thread."""
        if is_committed:
            self._instruments.commit_duration.observe(seconds)
            self._instruments.committed_writes.inc(write_count)
        else:
            self._instruments.failed_commits.inc()

    def observe_answers(self, engine: str, before: Counters, after: Counters) -> None:
        """Count what became of questions to a configured engine, since a gateway that counts on has said so before."""
        for result in _RESULTS:
            self._add(self._instruments.gateway_requests, engine, result, result, before, after)
        for direction, field in _DIRECTIONS:
            self._add(self._instruments.gateway_tokens, engine, direction, field, before, after)

    def _add(self, counter: Any, engine: str, label: str, field: str, before: Counters, after: Counters) -> None:
        earlier, later = getattr(before, field), getattr(after, field)
        counter.labels(engine, label).inc(max(0, later - earlier))


async def _watch_loop(observe: Callable[[float], None]) -> None:
    """Measure twice a second how late the event loop is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_SECONDS
        await asyncio.sleep(_LAG_SECONDS)
        observe(max(0.0, loop.time() - due))
