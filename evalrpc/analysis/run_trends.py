"""Trends and alarms of series, as the messages of an answer."""

from collections.abc import Iterable, Sequence
from typing import Final

from evalrpc.analysis.run_series import Series, Value
from evalrpc.analysis.trends import Point, Watch, trend, watch
from evalrpc.files.read_budget import ReadBudget
from evalrpc.v1.history_pb2 import FallAlarm, MetricTrend, TrendOptions

DEFAULT_ALPHA: Final = 0.05


def find_trends(options: TrendOptions, series: Iterable[Series], budget: ReadBudget) -> list[MetricTrend]:
    """Say how each series goes. Raises what `ReadBudget.spend` does."""
    trends = []
    for each in series:
        budget.spend()
        trends.append(_trend(options, each))
    return trends


def _trend(options: TrendOptions, series: Series) -> MetricTrend:
    alpha = options.alpha if options.HasField("alpha") else DEFAULT_ALPHA
    points = [Point(value.step, value.value, value.sample_count) for value in series.values]
    steps = [point.step for point in points]
    answer = MetricTrend(
        **series.key._asdict(),
        model=series.model,
        higher_is_better=_direction(options, series.values),
        point_count=len(points),
        first_step=min(steps),
        last_step=max(steps),
    )
    if line := trend(points, alpha):
        answer.slope, answer.slope_lower, answer.slope_upper, answer.noise = line
    if answer.HasField("higher_is_better"):
        sign = 1 if answer.higher_is_better else -1
        upwards = [point._replace(value=sign * point.value) for point in points]
        if seen := watch(upwards, alpha, options.tolerance):
            _set_alarm(answer, seen, series.values, sign)
    return answer


def _direction(options: TrendOptions, values: Sequence[Value]) -> bool | None:
    """Return what the harness has said last, else what the request says."""
    said = [value.higher_is_better for value in values if value.higher_is_better is not None]
    if said:
        return said[-1]
    return options.higher_is_better if options.HasField("higher_is_better") else None


def _set_alarm(answer: MetricTrend, seen: Watch, values: Sequence[Value], sign: int) -> None:
    answer.alarm_p_value = seen.p_value
    if fall := seen.fall:
        raised_by = values[fall.place]
        answer.alarm.CopyFrom(
            FallAlarm(
                job_id=raised_by.job_id,
                step=raised_by.step,
                before=sign * fall.before + 0.0,  # no negative zero
                after=sign * fall.after + 0.0,
                after_count=fall.after_count,
            )
        )
