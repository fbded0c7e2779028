"""Short notations: `k=v,k2=v2` for arguments, as lmms-eval reads it; `task/metric` for the keys of metrics."""

from typing import Protocol

from evalrpc.jobs.argument_text import parse_arguments, parse_value

__all__ = ["MetricKey", "metric_text", "parse_arguments", "parse_value"]


class MetricKey(Protocol):
    """What tells one metric of a model from another."""

    @property
    def task(self) -> str:
        """Its task."""

    @property
    def metric(self) -> str:
        """Its name."""

    @property
    def filter(self) -> str:
        """How the answers were filtered; empty if the harness has no filters."""


def metric_text(metric: MetricKey) -> str:
    """Write the key of a metric as `evalrpc.jobs.metric_selectors.parse_metric` reads it."""
    return f"{metric.task}/{metric.metric}" + (f",{metric.filter}" if metric.filter else "")
