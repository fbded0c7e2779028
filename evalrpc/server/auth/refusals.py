"""The log of refused sign-ins: a line for each source, and not one for each call, which anybody could fill the disk with."""

import logging
from typing import Final

from evalrpc.clock import Clock

PERIOD_SECONDS: Final = 60.0
MAX_SOURCES: Final = 100
"""How many sources get a line in one period."""

_log = logging.getLogger(__name__)


class RefusalLog:
    """Writes at most one line per source and period."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends_at = 0.0
        self._sources: set[str] = set()
        self._unlogged_count = 0

    def note(self, source: str, reason: str) -> None:
        """Log that a sign-in from this source was refused, unless it has its line already."""
        now = self._clock.monotonic()
        if now >= self._ends_at:
            self._begin(now)
        if source in self._sources or len(self._sources) >= MAX_SOURCES:
            self._unlogged_count += 1
            return
        self._sources.add(source)
        _log.warning("sign-in refused: %s", reason, extra={"source": source})

    def _begin(self, now: float) -> None:
        if self._unlogged_count:
            _log.warning("sign-in refused %d more times until now", self._unlogged_count)
        self._ends_at = now + PERIOD_SECONDS
        self._sources.clear()
        self._unlogged_count = 0
