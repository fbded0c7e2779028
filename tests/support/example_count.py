"""How many examples of a property are checked."""

from hypothesis import settings

_ALL = 100  # the default of Hypothesis


def example_count(count: int) -> int:
    """Return `count` where all tests run, and in `make test` as small a part of it as of Hypothesis' default."""
    return max(1, count * settings.default.max_examples // _ALL)
