"""What `make test` runs of many tests."""

import pytest
from selection import spread


@pytest.mark.parametrize(
    ("count", "most", "kept"),
    [(0, 3, set()), (1, 3, {0}), (3, 3, {0, 1, 2}), (4, 3, {0, 1, 3}), (100, 3, {0, 49, 99}), (9, 8, {0, 1, 2, 3, 4, 5, 6, 8})],
)
def test_what_is_kept_is_spread_from_the_first_to_the_last(count: int, most: int, kept: set[int]) -> None:
    assert spread(count, most) == kept
