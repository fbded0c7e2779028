"""The sizes of the comparisons."""

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
    """Connections that the watchers are spread over."""
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
    samples: int
    """Samples in an output folder that is read."""
    kept: int
    """Jobs in a store that is very full, one in ten of them queued."""
    clients: int = 1
    """Load processes."""


SMALL: Final = Scale(
    "small",
    rounds=3,
    calls=3000,
    watchers=1000,
    connections=10,
    changes=100,
    dropped=5000,
    never_reading=20,
    artifact_bytes=256 << 20,
    queued=10_000,
    listed=20_000,
    stored=10_000,
    samples=100_000,
    kept=50_000,
)
FULL: Final = Scale(
    "full",
    rounds=7,
    calls=10_000,
    watchers=10_000,
    connections=100,
    changes=500,
    dropped=100_000,
    never_reading=100,
    artifact_bytes=2 << 30,
    queued=10_000,
    listed=1_000_000,
    stored=100_000,
    samples=1_000_000,
    kept=1_000_000,
)
SCALES: Final = {scale.name: scale for scale in (SMALL, FULL)}
