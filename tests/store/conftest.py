"""The fixtures of the store tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_jobs import OPENERS, Opener

from evalrpc.jobs.share_policy import Entitlements
from evalrpc.store.base import Store


@pytest.fixture(params=sorted(OPENERS))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Open the store of this test, as often as it likes; whatever is open in the end is closed."""
    opened: list[Store] = []

    def opener(max_queued: int = 1000, entitlements: Entitlements | None = None) -> Store:
        store = OPENERS[request.param](tmp_path / "data", max_queued, entitlements=entitlements)
        opened.append(store)
        return store

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Opener) -> Store:
    return open_store()
