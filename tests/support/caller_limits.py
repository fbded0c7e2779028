"""Limits on callers, for handlers that a test serves itself."""

import time
from collections.abc import Callable
from typing import Any

from evalrpc.config import Settings
from evalrpc.server.limits import Limits


def caller_limits(monotonic: Callable[[], float] = time.monotonic, **settings: Any) -> Limits:
    """Return the limits of a server with these settings, which disconnects nobody."""
    return Limits(Settings(**settings), monotonic, lambda peers: None)
