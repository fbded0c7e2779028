"""The test of paired differences whose samples come in clusters, such as questions about one passage. Pure.

The standard error of the mean is CR2 of Bell and McCaffrey (2002), and the degrees of freedom are those of Imbens and Kolesár
(2016), which for clusters of one size is their number minus 1. With clusters of very different sizes, the usual CR1 with that
number calls two equal models different far too often: see `compare-methods` of the benchmarks.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalrpc.analysis.distributions import t_quantile, t_tail
from evalrpc.analysis.power import DEFAULT_POWER, Design, detectable_mean
from evalrpc.analysis.significance import ROUNDING, Difference, without_spread

MIN_CLUSTERS: Final = 5
"""Fewer say too little about how clusters differ."""


class ClusteredDifference(NamedTuple):
    """What was found, and how much the clusters matter."""

    difference: Difference
    cluster_count: int
    design_effect: float | None
    """How many times as large the variance is as without clusters; None if there is none at all."""


def clustered_t(
    differences: NDArray[np.float64], clusters: NDArray[np.int64], alpha: float, scale: float = 0.0
) -> ClusteredDifference:
    """Test the mean of differences in at least two clusters, which are numbered from 0 on. `scale` is as in `without_spread`.

    Where all differences are equal, which says nothing about how clusters differ, it is McNemar's test of the clusters.
    """
    count, mean = len(differences), float(differences.mean())
    sizes = np.bincount(clusters)
    sums = np.asarray(np.bincount(clusters, weights=differences - mean), np.float64)
    unclustered = float(differences.var(ddof=1)) / count
    if unclustered <= ROUNDING * mean**2:
        return ClusteredDifference(without_spread(mean, len(sizes), alpha, scale), len(sizes), None)
    variance = cr2_variance(sizes, sums)
    if variance <= ROUNDING * unclustered:  # clusters that are equal by chance
        variance = unclustered
    freedom = degrees_of_freedom(sizes, intra_cluster_correlation(sizes, variance / unclustered))
    error = math.sqrt(variance)
    reach = -t_quantile(alpha / 2, freedom) * error
    difference = Difference(
        mean,
        mean - reach,
        mean + reach,
        2 * t_tail(abs(mean) / error, freedom),
        error,
        detectable_mean(error, freedom, Design(alpha, DEFAULT_POWER)),
    )
    return ClusteredDifference(difference, len(sizes), variance / unclustered)


def cr2_variance(sizes: NDArray[np.int64], sums: NDArray[np.float64]) -> float:
    """Return the variance of the mean, from the sizes of clusters and the sums of their deviations from it."""
    count = sizes.sum()
    return float(np.sum(sums**2 / (1 - sizes / count))) / float(count) ** 2


def intra_cluster_correlation(sizes: NDArray[np.int64], design_effect: float) -> float:
    """Return the correlation within clusters that explains a design effect: 0 for one below 1."""
    count, squares = float(sizes.sum()), float(np.sum(sizes.astype(float) ** 2))
    return min(1.0, max(0.0, (design_effect - 1) * count / (squares - count))) if squares > count else 0.0


def degrees_of_freedom(sizes: NDArray[np.int64], correlation: float) -> float:
    """Return the degrees of freedom of the CR2 variance of a mean, by Satterthwaite's approximation, if the values of a cluster
    correlate so.

    With the variances of independent and of fully dependent values, it is the squared trace over the squared norm of the matrix
    G' Ω G of Imbens and Kolesár, equation 9, written out for a mean: so it takes the sizes of the clusters, not the matrix.
    """
    n = sizes.astype(float)
    count = n.sum()
    p = n / np.sqrt(1 - n / count)
    q = float(np.sum(n**2)) / count**2
    squares, fourths, mixed = float(np.sum(p**2)), float(np.sum(p**4)), float(np.sum(p**2 * n))
    diagonal = p**2 * (1 - 2 * n / count + q)  # of fully dependent values
    traces = np.array([np.sum(p**2 / n - p**2 / count), np.sum(diagonal)])
    independent = np.sum(p**4 / n**2) - 2 * np.sum(p**4 / n) / count + squares**2 / count**2
    both = np.sum(p**2 / n * diagonal) - (fourths - 2 * squares * mixed / count + q * squares**2) / count
    low_rank = 2 * (squares * float(np.sum(p**2 * n**2)) + mixed**2) / count**2 - 4 * q * mixed * squares / count
    dependent = fourths + 2 * np.sum(p**2 * (diagonal - p**2)) + low_rank + q**2 * squares**2
    weights = np.array([1 - correlation, correlation])
    norm = weights @ np.array([[independent, both], [both, dependent]]) @ weights
    return float((weights @ traces) ** 2 / norm)
