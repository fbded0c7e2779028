"""The thresholds that apply to the metrics of a comparison, and the verdict on each. Pure.

The rule is in the schema, at `Verdict`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from evalrpc.analysis import significance
from evalrpc.analysis.answer_counts import bad_ratio
from evalrpc.jobs.metric_selectors import Parts, parts_of, parts_taking
from evalrpc.v1.comparison_pb2 import (
    CORRECTION_HOLM,
    TEST_METHOD_NONE,
    VERDICT_BETTER,
    VERDICT_INCONCLUSIVE,
    VERDICT_NOT_WORSE,
    VERDICT_SAME,
    VERDICT_VOID,
    VERDICT_WORSE,
    CompareJobsRequest,
    MetricComparison,
    Verdict,
)

DEFAULT_MAX_BAD_ANSWER_RATIO: Final = 0.02

_ROUNDING: Final = 8 * sys.float_info.epsilon
_COUNTS: Final = ("baseline_sample_count", "candidate_sample_count")
_OF_SAMPLES: Final = (*_COUNTS, "baseline_standard_error", "candidate_standard_error", "cluster_count")

ValueT = TypeVar("ValueT")


def judge(call: CompareJobsRequest, metrics: Sequence[MetricComparison], alpha: float) -> None:
    """Set the thresholds, adjusted p-values and verdicts of tested metrics."""
    if call.correction == CORRECTION_HOLM:
        _adjust([metric for metric in metrics if metric.HasField("p_value")])
    max_bad_ratio = call.max_bad_answer_ratio if call.HasField("max_bad_answer_ratio") else DEFAULT_MAX_BAD_ANSWER_RATIO
    thresholds = _Thresholds(call)
    for metric in metrics:
        thresholds.set_for(metric)
        metric.verdict = verdict(metric, alpha, max_bad_ratio)


def verdict(metric: MetricComparison, alpha: float, max_bad_ratio: float = DEFAULT_MAX_BAD_ANSWER_RATIO) -> "Verdict.ValueType":
    """Return the verdict on a metric whose difference was tested."""
    if max(bad_ratio(metric.baseline_answers), bad_ratio(metric.candidate_answers)) > max_bad_ratio:
        return VERDICT_VOID
    if not metric.HasField("difference"):
        return VERDICT_INCONCLUSIVE
    if _is_same(metric):
        return VERDICT_SAME
    if not metric.HasField("higher_is_better"):
        return VERDICT_INCONCLUSIVE
    if _is_different(metric, alpha):
        return VERDICT_BETTER if (metric.difference > 0) == metric.higher_is_better else VERDICT_WORSE
    return VERDICT_NOT_WORSE if _is_not_worse(metric) else VERDICT_INCONCLUSIVE


def has_few_samples(metric: MetricComparison) -> bool:
    """Return whether the harness says of either value that it is of too few samples for a test."""
    counts = (getattr(metric, name) for name in _COUNTS if metric.HasField(name))
    return min(counts, default=significance.MIN_SAMPLES) < significance.MIN_SAMPLES


def has_no_noise(metric: MetricComparison) -> bool:
    """Return whether nothing is said of samples, nor of a standard error: then the values may well have no noise."""
    return not any(metric.HasField(name) for name in _OF_SAMPLES)


def is_within_tolerance(metric: MetricComparison) -> bool:
    """Return whether the interval of a difference that was tested leaves no room for one that matters."""
    reach = _reach(metric)
    return -reach <= metric.interval_lower and metric.interval_upper <= reach


def rounding(*values: float) -> float:
    """Return how far apart numbers of this size may be that are equal but for the rounding of floating-point arithmetic."""
    return _ROUNDING * max(map(abs, values))


def is_equal_throughout(metric: MetricComparison) -> bool:
    """Return whether the two jobs have the same samples, and the same value of each."""
    return bool(metric.paired_sample_count) and not metric.differing_sample_count and not metric.unpaired_sample_count


class _Thresholds:
    """The thresholds of a call by selector, each with its position: the last one that sets a value wins."""

    def __init__(self, call: CompareJobsRequest) -> None:
        self._call = call
        self._tolerances: dict[Parts, tuple[int, float]] = {}
        self._directions: dict[Parts, tuple[int, bool]] = {}
        for place, threshold in enumerate(call.metric_thresholds):
            parts = parts_of(threshold.selector)
            if threshold.HasField("tolerance"):
                self._tolerances[parts] = place, threshold.tolerance
            if threshold.HasField("higher_is_better"):
                self._directions[parts] = place, threshold.higher_is_better

    def set_for(self, metric: MetricComparison) -> None:
        """Set the tolerance, and the direction if the harness has set none or a threshold overrides it."""
        tolerance, higher_is_better = _last(self._tolerances, metric), _last(self._directions, metric)
        metric.tolerance = self._call.tolerance if tolerance is None else tolerance
        if higher_is_better is not None:
            metric.higher_is_better = higher_is_better
        elif self._call.HasField("higher_is_better") and not metric.HasField("higher_is_better"):
            metric.higher_is_better = self._call.higher_is_better


def _last(values: Mapping[Parts, tuple[int, ValueT]], metric: MetricComparison) -> ValueT | None:
    """Return the value of the last threshold that applies to a metric."""
    found = [values[parts] for parts in parts_taking(metric) if parts in values] if values else ()
    return max(found, key=lambda placed: placed[0])[1] if found else None


def _adjust(tested: Sequence[MetricComparison]) -> None:
    for metric, p_value in zip(tested, significance.holm([metric.p_value for metric in tested]), strict=True):
        metric.adjusted_p_value = p_value


def _reach(metric: MetricComparison) -> float:
    """Return the largest difference that counts as none: 0.51 - 0.5 is a little more than a tolerance of 0.01."""
    return metric.tolerance + rounding(metric.baseline_value, metric.candidate_value)


def _is_same(metric: MetricComparison) -> bool:
    if metric.method == TEST_METHOD_NONE:
        return has_no_noise(metric) and abs(metric.difference) <= _reach(metric)
    return is_equal_throughout(metric) or is_within_tolerance(metric)


def _is_different(metric: MetricComparison, alpha: float) -> bool:
    if metric.method == TEST_METHOD_NONE:
        return False
    p_value = metric.adjusted_p_value if metric.HasField("adjusted_p_value") else metric.p_value
    return p_value < alpha and (metric.interval_lower > 0 or metric.interval_upper < 0)


def _is_not_worse(metric: MetricComparison) -> bool:
    """Return whether the interval leaves no room for a loss of the tolerance."""
    if metric.method == TEST_METHOD_NONE or not metric.tolerance:
        return False
    worst = metric.interval_lower if metric.higher_is_better else -metric.interval_upper
    return worst >= -_reach(metric)
