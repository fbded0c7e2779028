"""What a transport measures calls with. Without metrics there is no meter, and no call pays for one."""

from typing import Protocol


class Meter(Protocol):
    """Counts and times the calls of one method that come through one transport. Used on the event loop only."""

    def begin(self) -> float:
        """Return when a call begins, for `end`."""

    def end(self, begun: float, code: str) -> None:
        """Count a call that has ended with a status code of gRPC, such as `OK`."""


class Meters(Protocol):
    """Makes meters, before the first call."""

    def meter_of(self, transport: str, method: str) -> Meter:
        """Return the meter of a method, such as `evalrpc.v1.EvaluationService/GetJob`, over a transport, such as `grpc`."""
