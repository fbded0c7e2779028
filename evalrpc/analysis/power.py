"""How small a difference a comparison can see, and how many samples a difference takes. Pure.

All of it is for two-sided tests in the normal approximation. For pairs of 0 and 1 it is Connor's (1987), in which the variance
under the difference is smaller than without one; on McNemar's exact test, which is stricter, the power is a little less.
"""

import math
from typing import Final, NamedTuple

from evalrpc.analysis.distributions import normal_quantile, t_quantile

DEFAULT_POWER: Final = 0.8
"""How probable it should be that a difference is seen."""


class Design(NamedTuple):
    """What a comparison is to be like."""

    alpha: float
    """The significance level."""
    power: float
    """The probability of seeing a difference that there is."""

    @property
    def quantiles(self) -> tuple[float, float]:
        """The quantiles of the normal distribution that belong to both."""
        return -normal_quantile(self.alpha / 2), normal_quantile(self.power)


def detectable_mean(standard_error: float, degrees_of_freedom: float, design: Design) -> float:
    """Return the smallest mean difference that a t-test with this standard error sees; with infinite degrees of freedom, a
    z-test."""
    reach = t_quantile(design.power, degrees_of_freedom) - t_quantile(design.alpha / 2, degrees_of_freedom)
    return reach * standard_error


def detectable_share(differing_ratio: float, pairs: float, design: Design) -> float:
    """Return the smallest difference of two shares that so many pairs of 0 and 1 show, if this ratio of them differs: the
    solution of `required_pairs`."""
    level, hit = design.quantiles
    root = math.sqrt(max(0.0, pairs + hit**2 - level**2))
    reach = (level * math.sqrt(pairs) + hit * root) / (pairs + hit**2)
    return min(1.0, math.sqrt(differing_ratio) * reach)


def required_pairs(differing_ratio: float, difference: float, design: Design) -> float:
    """Return how many pairs of 0 and 1 show a difference of two shares, of at most `differing_ratio`. Not rounded."""
    level, hit = design.quantiles
    under_difference = math.sqrt(max(0.0, differing_ratio - difference**2))
    return float(((level * math.sqrt(differing_ratio) + hit * under_difference) / difference) ** 2)


def required_samples(variance: float, difference: float, design: Design) -> float:
    """Return how many samples show a mean difference, if single differences have this variance. Not rounded."""
    return float(variance * (sum(design.quantiles) / difference) ** 2)


def required_repeats(
    answer_variance: float, document_variance: float, samples: float, difference: float, design: Design
) -> float | None:
    """Return how often each of the same samples must be answered by both models; None if no number of times suffices.

    `answer_variance` is that of the difference of two single answers to one sample, `document_variance` that between samples.
    Not rounded.
    """
    allowed = samples * (difference / sum(design.quantiles)) ** 2 - document_variance
    return answer_variance / allowed if allowed > 0 else None
