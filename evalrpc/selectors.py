"""Which metrics a MetricSelector takes."""

from evalrpc.v1.comparison_pb2 import MetricComparison
from evalrpc.v1.job_pb2 import Metric, MetricSelector


def takes(selector: MetricSelector, metric: Metric | MetricComparison) -> bool:
    """Tell whether a selector takes a metric. What is empty in it takes any."""
    return (
        selector.task in ("", metric.task) and selector.metric in ("", metric.metric) and selector.filter in ("", metric.filter)
    )
