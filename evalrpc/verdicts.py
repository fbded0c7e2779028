"""Which metrics a comparison is about, by which thresholds, and what is to be thought of each. Pure.

The rule stands in the schema, at `Verdict`.
"""

from collections.abc import Sequence

from evalrpc import significance
from evalrpc.selectors import takes
from evalrpc.v1 import comparison_pb2 as pb


def is_asked_for(call: pb.CompareJobsRequest, metric: pb.MetricComparison) -> bool:
    """Tell whether the call is about a metric: one that it names, or any where it names none."""
    return not call.metrics or any(takes(selector, metric) for selector in call.metrics)


def judge(call: pb.CompareJobsRequest, metrics: Sequence[pb.MetricComparison], alpha: float) -> None:
    """Set the thresholds that hold for metrics that were tested, their adjusted p-values, and the verdicts."""
    if call.correction == pb.CORRECTION_HOLM:
        _adjust([metric for metric in metrics if metric.HasField("p_value")])
    for metric in metrics:
        _set_thresholds(call, metric)
        metric.verdict = verdict(metric, alpha)


def verdict(metric: pb.MetricComparison, alpha: float) -> "pb.Verdict.ValueType":
    """Return what is to be thought of a metric whose difference was tested."""
    if not metric.HasField("difference"):
        return pb.VERDICT_INCONCLUSIVE
    if _is_same(metric):
        return pb.VERDICT_SAME
    if not (metric.HasField("higher_is_better") and _is_different(metric, alpha)):
        return pb.VERDICT_INCONCLUSIVE
    return pb.VERDICT_BETTER if (metric.difference > 0) == metric.higher_is_better else pb.VERDICT_WORSE


def _set_thresholds(call: pb.CompareJobsRequest, metric: pb.MetricComparison) -> None:
    """Set the tolerance, and the direction where the harness has set none or the call overrules it."""
    metric.tolerance = call.tolerance
    if call.HasField("higher_is_better") and not metric.HasField("higher_is_better"):
        metric.higher_is_better = call.higher_is_better
    for threshold in call.metric_thresholds:
        if not takes(threshold.selector, metric):
            continue
        if threshold.HasField("tolerance"):
            metric.tolerance = threshold.tolerance
        if threshold.HasField("higher_is_better"):
            metric.higher_is_better = threshold.higher_is_better


def _adjust(tested: Sequence[pb.MetricComparison]) -> None:
    for metric, p_value in zip(tested, significance.holm([metric.p_value for metric in tested]), strict=True):
        metric.adjusted_p_value = p_value


def _is_same(metric: pb.MetricComparison) -> bool:
    if metric.method == pb.TEST_METHOD_NONE:
        return abs(metric.difference) <= metric.tolerance
    if metric.paired_sample_count and not metric.differing_sample_count and not metric.unpaired_sample_count:
        return True
    return -metric.tolerance <= metric.interval_lower and metric.interval_upper <= metric.tolerance


def _is_different(metric: pb.MetricComparison, alpha: float) -> bool:
    if metric.method == pb.TEST_METHOD_NONE:
        return False
    p_value = metric.adjusted_p_value if metric.HasField("adjusted_p_value") else metric.p_value
    return p_value < alpha and (metric.interval_lower > 0 or metric.interval_upper < 0)
