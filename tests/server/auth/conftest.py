"""An authenticator on a data folder, with a clock that the test sets and an identity provider on this machine."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from door import Door, Use, Within
from identity_provider import IdentityProvider
from waiting import DEADLINE_SECONDS

from evalrpc.config import Settings
from evalrpc.server.auth import authenticator
from evalrpc.server.auth.authenticator import Authenticator


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
