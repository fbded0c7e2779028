"""Where the noise of a difference comes from, if samples were repeated: from the answers, or from the documents. Pure.

The variance of the difference of two samples' means is that of the documents, which repeats don't change, and that of single
answers over the number of repeats: the law of total variance, as in Miller (2024), section 3.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalrpc.analysis.sample_values import Pairs, SampleValues


class Noise(NamedTuple):
    """The two parts of a standard error, whose squares add up to its square."""

    baseline_repeats: float
    """Values per sample."""
    candidate_repeats: float
    answer_error: float | None
    """None if not both jobs have repeats."""
    document_error: float


def noise_of(pairs: Pairs, baseline: SampleValues, candidate: SampleValues, standard_error: float) -> Noise:
    """Split the standard error of the mean difference of pairs."""
    our_count = _repeats_of(baseline, pairs.baseline_places)
    their_count = _repeats_of(candidate, pairs.candidate_places)
    variance = answer_variance(pairs, baseline, candidate)
    if variance is None:
        return Noise(our_count, their_count, None, standard_error)
    from_answers = min(standard_error**2, variance / pairs.count)
    return Noise(our_count, their_count, math.sqrt(from_answers), math.sqrt(standard_error**2 - from_answers))


def _repeats_of(samples: SampleValues, places: NDArray[np.int64] | slice) -> float:
    return float(np.mean(samples.repeats.counts[places])) if samples.repeats else 1.0


def answer_variance(pairs: Pairs, baseline: SampleValues, candidate: SampleValues) -> float | None:
    """Return what the answers contribute to the variance of the difference of a sample's means, on average over the samples
    that both jobs have repeated; None if there are none."""
    variances = _of_means(baseline)[pairs.baseline_places] + _of_means(candidate)[pairs.candidate_places]
    known = variances[~np.isnan(variances)]
    return float(known.mean()) if len(known) else None


def _of_means(samples: SampleValues) -> NDArray[np.float64]:
    """Return the variance of each sample's mean; NaN where it has one value."""
    repeats = samples.repeats
    return np.full(len(samples.ids), math.nan) if repeats is None else repeats.variances / repeats.counts
