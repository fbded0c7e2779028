"""Waiting for a condition, with an end."""

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

DEADLINE_SECONDS = 30.0
"""No test waits longer for anything. Far above what is normal, so that a busy machine fails no test."""


def eventually(condition: Callable[[], _T], what: str = "", seconds: float = DEADLINE_SECONDS) -> _T:
    """Return the first true value of the condition; fail when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {seconds:g} s in vain {what}")
        time.sleep(0.01)
    return value
