"""Which tests `make test` leaves out beside the slow ones: those that are marked `exhaustive` here.

A few of the parameter sets of a test show that what it promises holds on this machine; all of them, that it holds for every
member of a list, or for every combination. Likewise some tests of a file on a server show that its subject works here; all of
them, that it does in every corner. What is kept is spread evenly, from the first to the last, and is the same in every run.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

SETS_OF_A_TEST: Final = 3
"""How many parameter sets of one test are kept."""

TESTS_OF_A_FILE: Final[Mapping[str, int]] = {"acceptance": 3, "engines": 4, "executors": 4, "service": 4}
"""How many tests of one file are kept, by folder: those where nearly every test starts a server, programs or a browser."""


def mark_exhaustive(items: Iterable[pytest.Item]) -> None:
    """Mark what `make test` leaves out."""
    by_file: defaultdict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            by_file[item.path].append(item)
    for path, of_file in by_file.items():
        for item in _left_out(path, of_file):
            item.add_marker("exhaustive")


def spread(count: int, most: int) -> frozenset[int]:
    """Return the numbers of at most so many of `count`, from the first to the last."""
    return frozenset(range(count) if count <= most else (number * (count - 1) // (most - 1) for number in range(most)))


def _left_out(path: Path, items: Sequence[pytest.Item]) -> Iterable[pytest.Item]:
    tests: defaultdict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.parent, getattr(item, "originalname", item.name)].append(item)
    kept_tests = spread(len(tests), TESTS_OF_A_FILE.get(path.parent.name, len(tests)))
    for number, sets in enumerate(tests.values()):
        kept_sets = spread(len(sets), SETS_OF_A_TEST) if number in kept_tests else frozenset()
        yield from (item for set_number, item in enumerate(sets) if set_number not in kept_sets)
