"""The values of metrics in runs, from the points of a history, as trends need them."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.v1.history_pb2 import HistoryPoint, TrendOptions
from evalrpc.v1.results_pb2 import Metric

MAX_SERIES: Final = 100
"""In an answer."""
MAX_POINTS: Final = 1_000
"""Of a series: a trend looks at each pair of its points."""


class Key(NamedTuple):
    """What a series is of. Sorted as an answer is."""

    run: str
    task: str
    metric: str
    filter: str


class Value(NamedTuple):
    """A metric of a point. Sorted by arrival."""

    completed_ns: int
    created_ns: int
    model: str
    job_id: str
    step: float
    value: float
    sample_count: int
    """The documents behind it; 0 if unknown."""
    higher_is_better: bool | None


class Series(NamedTuple):
    """A metric of a run, by arrival."""

    key: Key
    model: str
    """Empty if each step has a model of its own."""
    values: Sequence[Value]


class RunSeries:
    """Takes the points of a history, and sorts their values by run, metric and model."""

    def __init__(self, options: TrendOptions) -> None:
        self._run_label = options.run_label
        self._values: dict[Key, list[Value]] = {}

    def add(self, point: HistoryPoint) -> None:
        """Take the metrics of a point, unless it has no step. Raises InvalidRequestError for more than can be answered."""
        if not point.HasField("step"):
            return
        run = point.labels.get(self._run_label, "") if self._run_label else ""
        for metric in point.metrics:
            if metric.HasField("value") and math.isfinite(metric.value):
                values = self._values.setdefault(Key(run, metric.task, metric.metric, metric.filter), [])
                values.append(_value(point, metric))
                _require("filter", len(values), MAX_POINTS, "points of one run: select fewer jobs, or name the label of runs")
        _require("metrics", len(self._values), MAX_SERIES, "trends: select fewer metrics, or fewer jobs")

    def sorted(self) -> list[Series]:
        """Return the series by key and model. Raises InvalidRequestError for too many."""
        found = [
            Series(key, model, sorted(of_model))
            for key, values in sorted(self._values.items())
            for model, of_model in _by_model(values)
        ]
        _require("metrics", len(found), MAX_SERIES, "trends: select fewer metrics, or fewer jobs")
        return found


def _value(point: HistoryPoint, metric: Metric) -> Value:
    return Value(
        point.completed_at.ToNanoseconds(),
        point.created_at.ToNanoseconds(),
        point.model,
        point.job_id,
        point.step,
        metric.value,
        metric.sample_count,
        metric.higher_is_better if metric.HasField("higher_is_better") else None,
    )


def _by_model(values: Sequence[Value]) -> Iterator[tuple[str, Sequence[Value]]]:
    """Tell models apart if one was evaluated at several steps, or several at one step; else each is a checkpoint of the run."""
    pairs = {(value.model, value.step) for value in values}
    models, steps = ({pair[place] for pair in pairs} for place in (0, 1))
    if len(models) == len(pairs) == len(steps) > 1:
        yield "", values
        return
    for model, of_model in groupby(sorted(values, key=attrgetter("model")), key=attrgetter("model")):
        yield model, list(of_model)


def _require(field: str, count: int, most: int, advice: str) -> None:
    if count > most:
        raise InvalidRequestError(violations=[FieldViolation(field, f"there are more than {most} {advice}")])
