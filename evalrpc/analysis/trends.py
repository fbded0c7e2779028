"""The trend of a metric over the steps of a training run, and the alarm when it falls. Pure and deterministic.

Both take the noise from the run itself, from the scatter of its points. So it does not matter how much of their standard errors
the points share because they are about the same documents, and noise that no standard error knows of, such as that between one
checkpoint and the next, counts as well.
"""

import math
from bisect import insort
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

MIN_TREND_POINTS: Final = 5
"""With four points even a perfect order is not rare enough for an interval of 95 %."""
MIN_ALARM_POINTS: Final = 6

_AFTER_COUNTS: Final = tuple(2**power for power in range(1, 9))
"""How many of the latest points may be a fall. One alone may be an outlier, and says little of the run."""
_BEFORE_COUNTS: Final = tuple(2**power for power in range(2, 9))
_MAD_TO_DEVIATION: Final = 1.4826  # of normal noise


class Point(NamedTuple):
    """What one evaluation of a run has found."""

    step: float
    value: float
    sample_count: int
    """The documents behind the value; 0 if unknown."""


class Trend(NamedTuple):
    """A straight line through the points of a run."""

    slope: float
    """The change of the value with each step."""
    lower: float
    upper: float
    noise: float
    """The standard deviation of single points around the line."""


class Fall(NamedTuple):
    """The first alarm of a run."""

    place: int
    """The place, in the order of arrival, of the point that raised it."""
    before: float
    """The mean of the points before the fall."""
    after: float
    """The mean of the latest points."""
    after_count: int


class Watch(NamedTuple):
    """What all looks at a run say of a fall."""

    p_value: float
    """Always valid: if the run never gets worse, it is ever `alpha` or less with a probability of at most `alpha`."""
    fall: Fall | None


class Look(NamedTuple):
    """The clearest fall at the end of a run, or at the end of each of many simulated ones."""

    p_value: NDArray[np.float64]
    """Corrected for the number of windows that were tried."""
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    after_count: NDArray[np.int64]


def trend(points: Sequence[Point], alpha: float) -> Trend | None:
    """Return the slope of Theil (1950) and Sen (1968), the median of the slopes between all pairs of points, with Sen's
    interval, which comes from Kendall's test.

    A quarter of the points may be wild and hardly move it. Assumes that the noise of the points is independent and the same for
    all. None for fewer than MIN_TREND_POINTS points, if all have the same step, or for numbers too large for a slope.
    """
    steps = np.array([point.step for point in points])
    values = np.array([point.value for point in points])
    if len(points) < MIN_TREND_POINTS or steps.min() == steps.max():
        return None
    from scipy.stats import theilslopes  # which takes longer to import than all else

    with np.errstate(all="ignore"):
        slope, _, lower, upper = theilslopes(values, steps, alpha=1 - alpha)
        residuals = values - slope * steps
        noise = _MAD_TO_DEVIATION * np.median(np.abs(residuals - np.median(residuals)))
    found = Trend(float(slope), float(lower), float(upper), float(noise))
    return found if all(map(math.isfinite, found)) else None


def watch(points: Sequence[Point], alpha: float, tolerance: float) -> Watch | None:
    """Look after each point whether the run has fallen by more than the tolerance. The points are in the order of arrival, and
    greater values are better. None for fewer than MIN_ALARM_POINTS points.

    The look at n points may spend `alpha` 4 / (n (n - 1)). All looks together, without end, spend 0.8 `alpha`, and by
    Bonferroni no dependence between them makes a false alarm more probable than that. This is alpha spending (Lan and DeMets
    1983) without a last look, and the p-value is always valid in the sense of Johari, Koomen, Pekelis and Walsh (2022). The
    rest of `alpha` is in reserve, for noise that is only nearly normal.
    """
    p_value, fall = 1.0, None
    for place, seen in _looks(points):
        found = look(np.array([point.value for point in seen]), _least_noise(seen), tolerance)
        spent = min(1.0, float(found.p_value) / share_of_look(len(seen)))
        if spent <= alpha and fall is None:
            fall = Fall(place, float(found.before), float(found.after), int(found.after_count))
        p_value = min(p_value, spent)
    return Watch(p_value, fall) if len(points) >= MIN_ALARM_POINTS else None


def share_of_look(point_count: int) -> float:
    """Return the share of `alpha` that a look at so many points may spend."""
    return 4 / (point_count * (point_count - 1))


def _looks(points: Sequence[Point]) -> Iterator[tuple[int, list[Point]]]:
    """Yield the place of each point with which there are enough, and all points so far, sorted by step."""
    seen: list[tuple[float, int]] = []
    for place, point in enumerate(points):
        insort(seen, (point.step, place))
        if len(seen) >= MIN_ALARM_POINTS:
            yield place, [points[each] for _, each in seen]


def _least_noise(points: Sequence[Point]) -> float:
    """Return what one document changes, on the scale of the values."""
    counts = [point.sample_count for point in points if point.sample_count]
    return max(1.0, *(abs(point.value) for point in points)) / min(counts) if counts else 0.0


def look(values: NDArray[np.float64], least_noise: float, tolerance: float) -> Look:
    """Test whether the latest values, which are the last ones of the last axis, are lower by more than the tolerance than those
    before: one-sided t-tests of the latest 2, 4, 8, ... against the 4, 8, ... before them, corrected by Bonferroni.

    Only values nearby are compared, so a fall is seen even if the run has risen by more before. Assumes that the values of an
    unchanged model are independent and normal, with one variance. `least_noise` is the least standard deviation that is
    believed: the values are counts of documents, and a few may be the same by chance.
    """
    after_counts, before_counts = _windows(values.shape[-1])
    both = after_counts + before_counts
    with np.errstate(all="ignore"):  # values too large for a variance, and windows without any, have no finite statistic
        backwards = values[..., ::-1] - values[..., -1:]  # near zero, so that no digits are lost in squares
        sums, squares = _sums(backwards), _sums(backwards**2)
        after = sums[..., after_counts] / after_counts
        before = (sums[..., both] - sums[..., after_counts]) / before_counts
        within = np.maximum(0, squares[..., both] - after_counts * after**2 - before_counts * before**2)
        noise = np.maximum(np.sqrt(within / (both - 2)), least_noise)
        statistics = (after - before + tolerance) / (noise * np.sqrt(1 / after_counts + 1 / before_counts))
    p_values = np.where(np.isfinite(statistics), stdtr(both - 2, statistics), 1.0)
    best = p_values.argmin(axis=-1, keepdims=True)
    return Look(
        np.minimum(1.0, len(both) * np.take_along_axis(p_values, best, -1)[..., 0]),
        values[..., -1] + np.take_along_axis(before, best, -1)[..., 0],
        values[..., -1] + np.take_along_axis(after, best, -1)[..., 0],
        after_counts[best[..., 0]],
    )


@cache
def _windows(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many of the latest values are compared with how many before them, in each test."""
    pairs = product(_AFTER_COUNTS, _BEFORE_COUNTS)
    after, before = zip(
        *((after, before) for after, before in pairs if after <= before and after + before <= count), strict=True
    )
    return np.array(after), np.array(before)


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, 2, ... values of the last axis."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
