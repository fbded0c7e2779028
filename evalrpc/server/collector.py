"""Python's garbage collector, for a server with many thousand live objects."""

import gc
from typing import Final

_THRESHOLD: Final = 50_000
"""New objects per collection of the youngest generation. Python's default of 700 is reached by a few calls in flight. With
5,000, a thousand watchers that wake at once meet a full collection, which takes as long as notifying them."""


def tune_collector() -> None:
    """Collect seldom, and never scan what is alive now. Called once, when all that lives as long as the server is there."""
    gc.freeze()
    gc.set_threshold(_THRESHOLD)
