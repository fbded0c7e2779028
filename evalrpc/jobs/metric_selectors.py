"""Which metrics selectors take. What is empty in a selector takes any, so a metric is looked for under at most ten selectors,
however many there are."""

from collections.abc import Iterable
from itertools import product

from evalrpc.v1.comparison_pb2 import MetricComparison
from evalrpc.v1.results_pb2 import Metric, MetricSelector

Parts = tuple[str, str, str]
"""Task, metric and filter of a selector."""


def parts_of(selector: MetricSelector) -> Parts:
    """Return what makes a selector: two with the same parts take the same metrics."""
    return selector.task, selector.metric, selector.filter


def parts_taking(metric: Metric | MetricComparison) -> set[Parts]:
    """Return the parts of all selectors that take a metric, and of what `parse_metric` makes of its text, where it takes the
    `pass` of a metric `pass/1` for a part of the task's name."""
    task, _, name = f"{metric.task}/{metric.metric}".rpartition("/")
    filters = ("", metric.filter)
    return {*product(("", metric.task), ("", metric.metric), filters), *product((task,), (name,), filters)}


class Selection:
    """What any of some selectors takes; all metrics where there is no selector."""

    def __init__(self, selectors: Iterable[MetricSelector]) -> None:
        self._parts = set(map(parts_of, selectors))

    def takes(self, metric: Metric | MetricComparison) -> bool:
        """Return whether some selector takes a metric."""
        return not self._parts or not self._parts.isdisjoint(parts_taking(metric))


def parse_metric(text: str) -> MetricSelector:
    """Parse TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix."""
    name, _, answer_filter = text.partition(",")
    task, _, metric = name.rpartition("/")
    return MetricSelector(task=task, metric=metric, filter=answer_filter)


def selector_text(selector: MetricSelector | MetricComparison) -> str:
    """Write a selector, or the one that takes only this metric, as `parse_metric` reads it."""
    task = f"{selector.task}/" if selector.task else ""
    return f"{task}{selector.metric}" + (f",{selector.filter}" if selector.filter else "")


def selector_words(selector: MetricSelector) -> str:
    """Say what a selector takes, in a sentence."""
    if selector.metric:
        return f"a metric {selector_text(selector)}"
    answer_filter = f" with the filter {selector.filter}" if selector.filter else ""
    return f"a metric of the task {selector.task}{answer_filter}"
