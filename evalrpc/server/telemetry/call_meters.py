"""Times calls, with one bound counter per method, transport and status code."""

from collections.abc import Callable

from prometheus_client import Histogram

from evalrpc.server.metering import Meter


class CallMeters:
    """Makes the meters of a server. `monotonic` tells the seconds since some moment."""

    def __init__(self, durations: Histogram, monotonic: Callable[[], float]) -> None:
        self._durations = durations
        self._monotonic = monotonic

    def meter_of(self, transport: str, method: str) -> Meter:
        """Return the meter of a method over a transport."""
        return _CallMeter(self._durations, self._monotonic, transport, method)


class _CallMeter:
    """Looks a code up in a dict; binding labels costs as much as all else."""

    def __init__(self, durations: Histogram, monotonic: Callable[[], float], transport: str, method: str) -> None:
        self._durations = durations
        self._labels = transport, method
        self._observe_of: dict[str, Callable[[float], None]] = {}
        self.begin = monotonic

    def end(self, begun: float, code: str) -> None:
        observe = self._observe_of.get(code)
        if observe is None:
            observe = self._observe_of[code] = self._durations.labels(*self._labels, code).observe
        observe(self.begin() - begun)
