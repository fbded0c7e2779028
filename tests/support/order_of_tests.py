"""In which order tests run in several processes.

Each process gets an equal part of the list, runs it from start to end, and then takes half of what another has left
(`--dist worksteal`). So each part begins with slow tests, those of one file together: what they share is set up once, and none
is left for the end, when the other processes have nothing to do.
"""

from itertools import groupby
from pathlib import Path

import pytest

SECONDS = {
    "test_real_warm_runs": 500,
    "test_examples": 450,
    "test_real_fsdp2": 250,
    "test_demo_training": 150,
    "test_behind_nginx": 150,
    "test_hostile": 130,
    "test_real_inspect": 130,
    "test_protobuf_versions": 130,
    "test_real_lmms_eval": 120,
    "test_real_engines": 120,
    "test_real_lm_eval": 100,
    "test_oldest_harnesses": 100,
    "test_hosts": 100,
    "test_kills": 80,
}
"""About how long the slow tests of the slowest files take on two cores. Those of any other take `OTHER_SECONDS`."""
OTHER_SECONDS = 30


def dealt(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """Return the tests in the order in which so many processes are to run them."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    if processes == 1 or not slow:
        return items
    rest = [item for item in items if not item.get_closest_marker("slow")]
    ordered: list[pytest.Item] = []
    for number, share in enumerate(_shares(slow, processes)):
        length = (len(items) - len(ordered)) // (processes - number)
        count = max(0, length - len(share))
        ordered += share + rest[:count]
        rest = rest[count:]
    return ordered


def _shares(slow: list[pytest.Item], processes: int) -> list[list[pytest.Item]]:
    """Deal files so that all processes need about as long, the slowest files first."""
    files = [(path, list(tests)) for path, tests in groupby(slow, lambda item: item.path)]
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    seconds = [0] * processes
    for path, tests in sorted(files, key=lambda file: -_seconds(file[0])):
        least = seconds.index(min(seconds))
        shares[least] += tests
        seconds[least] += _seconds(path)
    return shares


def _seconds(path: Path) -> int:
    return SECONDS.get(path.stem, OTHER_SECONDS)
