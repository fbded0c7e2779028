"""In which order queued jobs are expected to be served, by the shares of now. Pure.

Each job of an owner is taken to use as much as jobs do on average, so the k-th is expected when its owner's use has grown by
k times as much. Its position is the number of jobs that are expected before it: a division for each owner, however many jobs
wait. With jobs of one owner this is their order of service itself.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Final, NamedTuple

from evalrpc.jobs.share_policy import is_urgent, owner_name
from evalrpc.scheduling.placement import QueuedJob
from evalrpc.scheduling.shares import Standing

_ROUNDING: Final = 1e-6


class Line(NamedTuple):
    """The queued jobs of one owner."""

    owner: str
    jobs: Sequence[QueuedJob]
    """In the order of service."""
    urgent_count: int
    """How many of them, the first ones, are urgent."""
    standing: Standing
    weight: float


class Forecast:
    """The expected order of service, which holds as long as nothing changes. `typical_use`: what a job uses on average, in GPU
    seconds."""

    def __init__(self, lines: Sequence[Line], typical_use: float) -> None:
        self.lines = sorted(lines, key=lambda line: (line.standing, line.jobs[0]))
        """Those of the owners, in the order in which they are served."""
        self.urgent_count = sum(line.urgent_count for line in lines)
        """How many of the jobs are urgent."""
        self._typical_use = typical_use
        self._ranks = {line.owner: rank for rank, line in enumerate(self.lines)}
        self._bounds = [  # what a position is worked out from
            (line.standing.used_per_weight, line.weight / typical_use, line.urgent_count, len(line.jobs)) for line in self.lines
        ]

    def position(self, owner: str, index: int) -> int:
        """Return how many jobs are expected before the one with this index among those of its owner."""
        rank = self._ranks[owner]
        line = self.lines[rank]
        return self._position(line, rank, index, is_urgent=index < line.urgent_count)

    def position_of_new(self, line: Line, index: int, *, is_urgent: bool) -> int:
        """Return the position that a new job would have. `line`: where its owner stands now, which only counts if no job of the
        owner is queued yet; `index`: how many of the queued ones come before it."""
        rank = self._ranks.get(line.owner)
        if rank is not None:
            return self._position(self.lines[rank], rank, index, is_urgent=is_urgent)
        rank = sum(other.standing <= line.standing for other in self.lines)
        return self._position(line, rank, index, is_urgent=is_urgent)

    def _position(self, own: Line, rank: int, index: int, *, is_urgent: bool) -> int:
        tag, position = self._tag(own, index), 0 if is_urgent else self.urgent_count
        for other_rank, (used, per_use, urgent_count, count) in enumerate(self._bounds):
            low, high = (0, urgent_count) if is_urgent else (urgent_count, count)
            exact = (tag - used) * per_use
            if exact <= low - 1:
                continue
            if exact >= high:
                position += high - low
            elif abs(exact - round(exact)) > _ROUNDING:
                position += math.ceil(exact) - low
            else:
                position += self._count_before(self.lines[other_rank], tag, low, high, or_at=other_rank < rank) - low
        return position

    def first(self, limit: int) -> list[QueuedJob]:
        """Return the first jobs in the expected order."""
        urgent = heapq.merge(*(self._tagged(rank, 0, line.urgent_count) for rank, line in enumerate(self.lines)))
        ordinary = heapq.merge(*(self._tagged(rank, line.urgent_count, len(line.jobs)) for rank, line in enumerate(self.lines)))
        return [self.lines[rank].jobs[index] for _, rank, index in islice(chain(urgent, ordinary), limit)]

    def who_comes_before(self, owner: str, priority: int, *, names_others: bool) -> str:
        """Say whose jobs come before a job of an owner; nothing, if nobody's do. `names_others`: whether by their names."""
        if is_urgent(owner, priority):
            return ""
        rank = self._ranks[owner]
        own, before = self.lines[rank], self.lines[:rank]
        urgent_count = self.urgent_count - own.urgent_count
        if urgent_count:
            return "1 urgent job comes first" if urgent_count == 1 else f"{urgent_count} urgent jobs come first"
        if not before or before[-1].standing == own.standing:
            return ""
        least, used = before[0].standing.used_per_weight / 3600, own.standing.used_per_weight / 3600
        who, name = _named(before, names_others), owner_name(owner)
        return f"{who} first: {least:.3g} GPU hours of recent use per weight, and {name} has {used:.3g}"

    def _tagged(self, rank: int, low: int, high: int) -> Iterator[tuple[float, int, int]]:
        line = self.lines[rank]
        return ((self._tag(line, index), rank, index) for index in range(low, high))

    def _tag(self, line: Line, index: int) -> float:
        """Return the use per weight at which a job is expected to be the next of its owner."""
        return line.standing.used_per_weight + index * self._typical_use / line.weight

    def _count_before(self, line: Line, tag: float, low: int, high: int, *, or_at: bool) -> int:
        """Return how many jobs of an owner have a smaller tag, or the same if `or_at`; from `low` to `high`. Exact also where
        tags are equal."""
        guess = math.ceil((tag - line.standing.used_per_weight) * line.weight / self._typical_use)
        count = min(max(guess, low), high)
        while count > low and not self._is_before(self._tag(line, count - 1), tag, or_at=or_at):
            count -= 1  # the guess is as good as a division is
        while count < high and self._is_before(self._tag(line, count), tag, or_at=or_at):
            count += 1
        return count

    @staticmethod
    def _is_before(one: float, other: float, *, or_at: bool) -> bool:
        return one <= other if or_at else one < other


def _named(lines: Sequence[Line], names_others: bool) -> str:
    """Say that the owners of these lines come."""
    if not names_others:
        return "1 other comes" if len(lines) == 1 else f"{len(lines)} others come"
    first, more = owner_name(lines[0].owner), len(lines) - 1
    if not more:
        return f"{first} comes"
    return f"{first} and 1 other come" if more == 1 else f"{first} and {more} others come"
