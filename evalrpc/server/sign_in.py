"""How a caller has signed in, and the end of its streams once that holds no longer."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.errors import EvalrpcError

_T = TypeVar("_T")


class SignInMethod(Enum):
    """What a caller has proved with who it is."""

    NONE = "none"
    """Nothing: the server asks nobody."""
    TOKEN = "token"  # noqa: S105 - the name of a method
    CERTIFICATE = "certificate"
    OIDC = "oidc"


class SignIn:
    """One proof of who calls. All calls that bring it share it. Used on the event loop only."""

    __slots__ = ("_failure", "_live", "_streams", "expires_at_ns", "method", "token_id")

    def __init__(
        self, method: SignInMethod, expires_at_ns: int | None = None, live: "set[SignIn] | None" = None, token_id: str = ""
    ) -> None:
        """`expires_at_ns` is in nanoseconds since 1970; None: it does not expire. While it has streams, it is in `live`.
        `token_id` names a token of the server's own."""
        self.method = method
        self.token_id = token_id
        self.expires_at_ns = expires_at_ns
        self._live = live if live is not None else set()
        self._streams: set[asyncio.Timeout] = set()
        self._failure: Callable[[], EvalrpcError] | None = None

    def has_expired(self, clock: Clock) -> bool:
        """Return whether it has expired by now."""
        return self.expires_at_ns is not None and clock.now().ToNanoseconds() >= self.expires_at_ns

    def holds(self, clock: Clock) -> bool:
        """Return whether it has neither expired nor been ended."""
        return self._failure is None and not self.has_expired(clock)

    def end(self, failure: Callable[[], EvalrpcError]) -> None:
        """End all its streams, each with an error of its own. Idempotent."""
        if self._failure is not None:
            return
        self._failure = failure
        for stream in self._streams:
            stream.reschedule(0.0)

    async def while_valid(self, stream: Awaitable[_T]) -> _T:
        """Await a stream. Raises the error that `end` is called with, if it is."""
        try:
            async with asyncio.timeout(None) as timeout:
                self._streams.add(timeout)
                self._live.add(self)
                if self._failure is not None:
                    timeout.reschedule(0.0)
                try:
                    return await stream
                finally:
                    self._leave(timeout)
        except TimeoutError:
            if self._failure is None:
                raise
            failure = self._failure()
        raise failure

    def _leave(self, timeout: asyncio.Timeout) -> None:
        self._streams.discard(timeout)
        if not self._streams:
            self._live.discard(self)


NOT_SIGNED_IN: Final = SignIn(SignInMethod.NONE)
"""Of callers whom nobody has asked."""
