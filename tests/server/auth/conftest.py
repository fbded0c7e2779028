"""An authenticator on a data folder, with a clock that the test sets and an identity provider on this machine."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from callers import Caller
from clocks import ManualClock
from identity_provider import IdentityProvider
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.config import Settings
from evalrpc.server.auth import authenticator
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


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticator, "INTERVAL_SECONDS", 0.01)


@pytest.fixture
def within(tmp_path: Path, clock: ManualClock) -> Within:
    """Run a coroutine with an authenticator that has these settings."""

    async def run(use: Use, requires_sign_in: bool, settings: Settings) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            authenticator = Authenticator(settings, clock)
            await authenticator.start()
            try:
                await use(Door(authenticator, requires_sign_in=requires_sign_in))
            finally:
                authenticator.stop()

    def start(use: Use, *, requires_sign_in: bool = True, **settings: Any) -> None:
        asyncio.run(run(use, requires_sign_in, Settings(data_dir=tmp_path, **settings)))

    return start


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as provider:
        yield provider
