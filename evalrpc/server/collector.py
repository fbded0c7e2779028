"""Python's garbage collector, for a server with many thousand live objects."""

import gc
from typing import Final

_THRESHOLDS: Final = (5_000, 10, 100)
"""New objects per collection of the youngest generation, then how many collections of each generation there are to one of the
next. Python's default of 700 is reached by a few calls in flight. Each call leaves garbage: with 50,000 an idle server had 3
MiB more, since what stays lay among it, so that it was not given back. By default every hundredth collection may be a full one,
which a thousand watchers that wake at once would meet, and which takes as long as notifying them."""


def tune_collector() -> None:
    """Collect seldom, and never scan what is alive now. Called once, when all that lives as long as the server is there."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
