"""How large the comparisons are."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Scale:
    """Sizes of everything, and how often each pair is measured."""

    name: str
    rounds: int
    calls: int
    """Calls per round."""
    watchers: int
    connections: int
    """What the watchers are spread over."""
    changes: int
    """Changes that are watched one by one, per round."""
    dropped: int
    """Streams that are opened and dropped."""
    never_reading: int
    """Watchers that never read."""
    artifact_bytes: int
    queued: int
    listed: int
    """Jobs in the store that is listed."""
    stored: int
    """Jobs in the store that a server starts on."""
    kept: int
    """Jobs in a store that is very full, one in ten of them queued."""
    clients: int = 1
    """Processes that make the load."""


SMALL: Final = Scale("small", 3, 3000, 1000, 10, 100, 5000, 20, 256 << 20, 1000, 20_000, 10_000, 50_000)
FULL: Final = Scale("full", 7, 10_000, 10_000, 100, 500, 100_000, 100, 2 << 30, 10_000, 1_000_000, 100_000, 1_000_000)
SCALES: Final = {scale.name: scale for scale in (SMALL, FULL)}
