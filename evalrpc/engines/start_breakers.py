"""Keeps jobs from waiting for the start of an engine that has just failed: after each failure, the next try is put off for
twice as long."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.engines.engine import LOST, Engine
from evalrpc.errors import RunFailedError
from evalrpc.v1.engines_pb2 import ENGINE_STATE_READY, ENGINE_STATE_STOPPING

_FIRST_PAUSE_SECONDS: Final = 30.0
_MAX_PAUSE_SECONDS: Final = 900.0


class Breaker(NamedTuple):
    """No start is worth a try for a while."""

    failures: int
    until: float
    """By the clock's monotonic time."""
    error: RunFailedError


class StartBreakers:
    """The breakers of all engines, by their identity and owner. Called with the lock of the pool held."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._breakers: dict[tuple[str, str], Breaker] = {}

    def open(self, identity: str, owner: str) -> Breaker | None:
        """Return why an engine is not to be started now; None if it may be."""
        breaker = self._breakers.get((identity, owner))
        return breaker if breaker is not None and self._clock.monotonic() < breaker.until else None

    def pause(self, engine: Engine, error: RunFailedError) -> None:
        """Have an engine not started again for the longest time."""
        self._breakers[engine.identity, engine.owner] = Breaker(1, self._clock.monotonic() + _MAX_PAUSE_SECONDS, error)

    def follow(self, engines: Iterable[Engine]) -> None:
        """Open the breaker of an engine that could not be started, and close that of one that answers."""
        now = self._clock.monotonic()
        self._breakers = {place: each for place, each in self._breakers.items() if now < each.until + _MAX_PAUSE_SECONDS}
        for engine in engines:
            place = (engine.identity, engine.owner)
            if engine.state == ENGINE_STATE_READY:
                self._breakers.pop(place, None)
            elif engine.state == ENGINE_STATE_STOPPING and engine.error is not None and not engine.is_judged:
                engine.is_judged = True
                if engine.error.job_error.reason != LOST or engine.beside is not None:
                    failures = self._breakers[place].failures + 1 if place in self._breakers else 1
                    pause = min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _MAX_PAUSE_SECONDS)
                    self._breakers[place] = Breaker(failures, now + pause, engine.error)
