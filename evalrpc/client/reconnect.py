"""How long to wait between tries, and when to give up."""

import random
import time
from collections.abc import Callable
from typing import Final

from evalrpc.errors import EvalrpcError

BACKOFF_BASE_SECONDS: Final = 0.1
BACKOFF_LIMIT_SECONDS: Final = 5.0

OnDisconnect = Callable[[EvalrpcError, float], None]
"""Called on every disconnect with its cause and the seconds until the next try."""


class ReconnectPolicy:
    """Exponential backoff with full jitter for the failures of one stream or call.

    The delay is random up to a bound that doubles from 0.1 s to 5 s, on top of what the server asks for. Success resets
    the bound.
    """

    def __init__(
        self,
        reconnect_timeout_seconds: float | None = None,
        timeout_seconds: float | None = None,
        on_disconnect: OnDisconnect | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Give up after failing for `reconnect_timeout_seconds`, or `timeout_seconds` from now; None means never."""
        self._reconnect_timeout_seconds = reconnect_timeout_seconds
        self._deadline = None if timeout_seconds is None else clock() + timeout_seconds
        self._on_disconnect = on_disconnect
        self._clock = clock
        self._jitter = jitter
        self._failing_since: float | None = None
        self._bound_seconds = BACKOFF_BASE_SECONDS

    def remaining_seconds(self) -> float | None:
        """Return how long the next call may take; None means no limit. Raises TimeoutError when the time is up."""
        if self._deadline is None:
            return None
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise TimeoutError("the time to wait is over")
        return remaining

    def succeeded(self) -> None:
        """Record that a message arrived."""
        self._failing_since = None
        self._bound_seconds = BACKOFF_BASE_SECONDS

    def delay_seconds(self, error: EvalrpcError) -> float:
        """Return how long to wait after this failure. Raises it after failing too long, TimeoutError when the time is up."""
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if self._reconnect_timeout_seconds is not None and now - self._failing_since >= self._reconnect_timeout_seconds:
            raise error
        delay = (error.retry_delay_seconds or 0.0) + self._bound_seconds * self._jitter()
        self._bound_seconds = min(2 * self._bound_seconds, BACKOFF_LIMIT_SECONDS)
        remaining = self.remaining_seconds()
        delay = delay if remaining is None else min(delay, remaining)
        if self._on_disconnect:
            self._on_disconnect(error, delay)
        return delay
