"""What was found of flips, as the server keeps it for their next pages. Without NumPy, which only finding them takes."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evalrpc.v1.comparison_pb2 import FLIP_DIRECTION_BETTER, FLIP_DIRECTION_WORSE, FlipDirection, ListFlipsResponse


class FlipPlace(NamedTuple):
    """A flip, and where its rows begin."""

    baseline_position: int
    candidate_position: int
    baseline_value: float
    candidate_value: float


@dataclass(frozen=True)
class Flips:
    """All flips of a metric, those for the worse first: 32 bytes for each."""

    summary: ListFlipsResponse
    """The counts alone."""
    paths: tuple[str, str]
    """The samples files of baseline and candidate."""
    listed_worse_count: int
    columns: tuple["array[int]", "array[int]", "array[float]", "array[float]"]
    """Those of FlipPlace."""

    def __len__(self) -> int:
        return len(self.columns[0])

    def range_of(self, direction: "FlipDirection.ValueType") -> range:
        """Return the indices of the flips in a direction, or of all."""
        begin = self.listed_worse_count if direction == FLIP_DIRECTION_BETTER else 0
        return range(begin, self.listed_worse_count if direction == FLIP_DIRECTION_WORSE else len(self))

    def part(self, indices: range) -> "FlipsPart":
        """Return some flips that follow one another."""
        rows = zip(*(column[indices.start : indices.stop] for column in self.columns), strict=True)
        return FlipsPart(self.summary, self.paths, [FlipPlace(*row) for row in rows], self.listed_worse_count - indices.start)


class FlipsPart(NamedTuple):
    """Some of the flips of a metric."""

    summary: ListFlipsResponse
    paths: tuple[str, str]
    places: Sequence[FlipPlace]
    worse_count: int
    """How many of these, from the first on, are for the worse; not positive if none is."""
