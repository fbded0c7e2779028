"""Lets callers in as a server does, for tests of who is let in."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from callers import Caller
from waiting import eventually

from evalrpc.server.auth.authenticator import Authenticator
from evalrpc.server.call import Principal


class Door:
    """Lets callers in as a server does at an address where they must sign in."""

    def __init__(self, authenticator: Authenticator, *, requires_sign_in: bool = True) -> None:
        self.authenticator = authenticator
        self.authenticate = authenticator.for_listener(requires_sign_in=requires_sign_in)
        self._refresh = authenticator._tokens.refresh
        self._refreshes = 0
        authenticator._tokens.refresh = self._counted_refresh  # type: ignore[method-assign]

    async def enter(self, token: str | None = None, **presented: Any) -> Principal:
        """Return who calls with a token."""
        found = self.authenticate(Caller(token, **presented))
        return found if isinstance(found, Principal) else await found

    async def ticks(self) -> None:
        """Wait until the authenticator has looked at everything once more."""
        seen = self._refreshes
        await asyncio.to_thread(eventually, lambda: self._refreshes >= seen + 2)

    async def _counted_refresh(self) -> None:
        await self._refresh()
        self._refreshes += 1


Use = Callable[[Door], Awaitable[None]]
Within = Callable[..., None]
