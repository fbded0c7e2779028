"""Wait for a condition, with a deadline, or for what a thread does."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

DEADLINE_SECONDS = 120.0
"""No test waits longer for anything. Far above normal: a busy machine must not fail a test."""


def eventually(condition: Callable[[], _T], what: str = "") -> _T:
    """Return the first true value of the condition; fail when time is up."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause_seconds = 0.005
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {DEADLINE_SECONDS:g} s in vain {what}")
        time.sleep(pause_seconds)
        pause_seconds = min(1.3 * pause_seconds, 0.05)  # a condition may be a call, and take from what it waits for
    return value


def in_background(call: Callable[[], _T]) -> Callable[[], _T]:
    """Call on a thread of its own, and return what waits for the result."""
    results: list[_T] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()

    def wait() -> _T:
        thread.join()
        return results[0]

    return wait
