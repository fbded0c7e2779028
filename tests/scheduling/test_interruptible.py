"""Readings that can be broken off."""

import gc
import weakref

import pytest

from evalrpc.scheduling.interruptible import InterruptibleReader


class Results:
    """Something large that is read."""

    def read(self) -> None:
        """Find nothing wrong."""

    def fail(self) -> None:
        """Find what is wrong."""
        raise ValueError("wrong")


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_read_is_freed_without_a_collection_of_garbage(fails: bool) -> None:
    gc.disable()
    try:
        assert _read(fails)() is None
    finally:
        gc.enable()


def _read(fails: bool) -> "weakref.ref[Results]":
    reader, results = InterruptibleReader(), Results()
    try:
        reader.read(results.fail if fails else results.read, lambda: None)
    except ValueError:
        assert fails
    return weakref.ref(results)
