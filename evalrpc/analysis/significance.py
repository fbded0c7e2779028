"""Significance tests for CompareJobs, on plain numbers.

Pure and deterministic. `alpha` is the accepted false positive rate; the intervals have the confidence level 1 - `alpha`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalrpc.analysis.distributions import (
    beta_above,
    beta_below,
    beta_quantile,
    beta_upper_quantile,
    normal_quantile,
    normal_tail,
    sign_test,
    t_quantile,
)
from evalrpc.analysis.evidence import Value
from evalrpc.analysis.power import DEFAULT_POWER, Design, detectable_mean, detectable_share

RESAMPLES: Final = 9_999
MAX_RESAMPLED: Final = 5_000
"""More differences than this are averaged in this many groups, and the groups resampled, to bound time and memory."""
MIN_SAMPLES: Final = 10
"""Fewer samples than this say too little about their spread for any test but McNemar's."""

ROUNDING: Final = 1e-12
"""A variance that is this much smaller than another one, or than the square of the mean, is zero."""

_SEED: Final = 20_250_101
_BATCH: Final = 64  # resamples in memory at once


class Difference(NamedTuple):
    """A difference, its confidence interval, and how probable one at least as large is if there is none."""

    value: float
    lower: float
    upper: float
    p_value: float
    standard_error: float
    detectable: float
    """The smallest difference that this test sees with a probability of 80 %."""


def mcnemar(losses: int, gains: int, pairs: int, alpha: float) -> Difference:
    """Test pairs of 0 and 1, of which `losses` went from 1 to 0 and `gains` from 0 to 1: McNemar's exact test.

    The interval is the adjusted Wald interval of Bonett and Price (2012). `pairs` must be at least 1. For the detectable
    difference, at least two pairs count as differing: it would be zero otherwise.
    """
    gained, lost = (gains + 1) / (pairs + 2), (losses + 1) / (pairs + 2)
    centre = gained - lost
    reach = -normal_quantile(alpha / 2) * math.sqrt((gained + lost - centre**2) / (pairs + 2))
    return Difference(
        (gains - losses) / pairs,
        max(-1.0, centre - reach),
        min(1.0, centre + reach),
        sign_test(gains, gains + losses),
        math.sqrt((gains + losses - (gains - losses) ** 2 / pairs) / pairs**2),
        detectable_share(max(gains + losses, 2) / pairs, pairs, Design(alpha, DEFAULT_POWER)),
    )


def without_spread(mean: float, count: int, alpha: float, scale: float) -> Difference:
    """Test differences that are all equal, of `count` pairs or clusters: by McNemar's test, since how they vary is not known.

    `scale` is how far apart the values are that were compared, and so what might have differed; 0 if not known.
    """
    found = mcnemar(count if mean < 0 else 0, count if mean > 0 else 0, count, alpha)
    size = abs(mean) or scale
    return found._replace(value=mean, lower=found.lower * size, upper=found.upper * size, detectable=found.detectable * size)


def paired_bootstrap(differences: NDArray[np.float64], alpha: float, scale: float = 0.0) -> Difference:
    """Test the mean of at least MIN_SAMPLES differences: the percentile bootstrap, and the p-value that its intervals imply.

    It is never below that of a sign test in which all pairs that differ agree: few of them can't say more. `scale` is as in
    `without_spread`.
    """
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if error**2 <= ROUNDING * mean**2:
        return without_spread(mean, len(differences), alpha, scale)
    means = mean + _widening(len(differences), alpha) * _resampled_means(_grouped(differences - mean))
    lower, upper = np.quantile(means, (alpha / 2, 1 - alpha / 2))
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    differing = int(np.count_nonzero(differences))
    p_value = max(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)), sign_test(differing, differing))
    detectable = detectable_mean(error, len(differences) - 1, Design(alpha, DEFAULT_POWER))
    return Difference(mean, float(lower), float(upper), p_value, error, detectable)


def unpaired_z(difference: float, stderr: float, alpha: float) -> Difference:
    """Test a difference with a standard error above zero, assuming a normal distribution: z-test."""
    reach = -normal_quantile(alpha / 2) * stderr
    detectable = detectable_mean(stderr, math.inf, Design(alpha, DEFAULT_POWER))
    p_value = 2 * normal_tail(abs(difference) / stderr)
    return Difference(difference, difference - reach, difference + reach, p_value, stderr, detectable)


def clopper_pearson(hits: float, count: float, threshold: float, alpha: float) -> Value:
    """Test a share of `hits` in `count` independent trials against a threshold: exactly (Clopper and Pearson 1934).

    The p-value is twice that of the nearer tail, so that it is below `alpha` just where the interval misses the threshold. What
    is no whole number stands for trials that are worth so many independent ones.
    """
    lower = beta_quantile(alpha / 2, hits, count - hits + 1) if hits > 0 else 0.0
    upper = beta_upper_quantile(alpha / 2, hits + 1, count - hits) if hits < count else 1.0
    if not 0 <= threshold <= 1:
        return Value(lower, upper, 0.0)
    at_least = beta_below(threshold, hits, count - hits + 1) if hits > 0 else 1.0
    at_most = beta_above(threshold, hits + 1, count - hits) if hits < count else 1.0
    return Value(lower, upper, min(1.0, 2 * min(at_least, at_most)))


def one_sample_z(value: float, stderr: float, threshold: float, alpha: float) -> Value:
    """Test a value with a standard error above zero against a threshold, assuming a normal distribution: z-test.

    In few microseconds, since a decision may be over very many values.
    """
    reach = _two_sided_quantile(alpha) * stderr
    return Value(value - reach, value + reach, math.erfc(abs(value - threshold) / stderr / math.sqrt(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's method, keeping their order: the chance of any false positive is then at most `alpha`."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


@lru_cache
def _two_sided_quantile(alpha: float) -> float:
    return -normal_quantile(alpha / 2)


def _grouped(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most MAX_RESAMPLED numbers with the same mean and the same standard error of the mean.

    The deviations have mean zero, so it does not matter that some groups have one more of them than others.
    """
    count = len(deviations)
    if count <= MAX_RESAMPLED:
        return deviations
    groups = np.random.default_rng(_SEED).permutation(count) % MAX_RESAMPLED
    sums = np.bincount(groups, weights=deviations)
    return np.asarray(sums * (MAX_RESAMPLED / count), np.float64)


def _resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of RESAMPLES samples of as many values, drawn with replacement."""
    dice = np.random.default_rng(_SEED)
    counts = [min(_BATCH, RESAMPLES - done) for done in range(0, RESAMPLES, _BATCH)]
    return np.concatenate([values[dice.integers(0, len(values), (count, len(values)))].mean(axis=-1) for count in counts])


def _widening(count: int, alpha: float) -> float:
    """Return the factor that widens the spread, by Bessel's correction and Student's t, which matter for few samples.

    See Hesterberg, What Teachers Should Know About the Bootstrap (2015), on expanded percentile intervals.
    """
    return math.sqrt(count / (count - 1)) * t_quantile(alpha / 2, count - 1) / normal_quantile(alpha / 2)
