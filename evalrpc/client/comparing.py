"""Builds the requests of comparisons, plans and flips from plain values."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from evalrpc.client import values
from evalrpc.jobs.metric_selectors import parse_metric
from evalrpc.v1.comparison_pb2 import (
    CORRECTION_HOLM,
    CORRECTION_UNSPECIFIED,
    CompareJobsRequest,
    FlipDirection,
    ListFlipsRequest,
    MetricThreshold,
    PlanComparisonRequest,
)


class CompareOptions(TypedDict, total=False):
    """What to compare, and with which thresholds. See CompareJobsRequest in the schema.

    A metric is TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix.
    """

    metrics: Sequence[str] | str
    """Only these. Default: all."""
    alpha: float | None
    """The accepted false alarm rate. Default: 0.05."""
    tolerance: float | None
    """The largest difference that does not matter. Default: 0."""
    tolerances: Mapping[str, float] | None
    """Tolerances of individual metrics."""
    higher_is_better: bool | None
    """The direction of metrics whose harness gives none. Default: unknown, so no verdict on which is better."""
    directions: Mapping[str, bool] | None
    """Whether higher is better, for individual metrics; overrides the harness."""
    holm: bool
    """Adjust the p-values for multiple comparisons (Holm). Default: False."""
    strict: bool
    """Refuse to compare what answered different questions. Default: False."""
    cluster_by: str
    """The field of the samples that says which of them belong together. Default: as the harness says, if it does."""
    max_bad_answer_ratio: float | None
    """The share of answers that may be truncated, empty or failed before a metric is VOID. Default: 0.02."""


def compare_request(
    baseline_job_id: str,
    candidate_job_ids: Sequence[str] | str,
    *,
    metrics: Sequence[str] | str = (),
    alpha: float | None = None,
    tolerance: float | None = None,
    tolerances: Mapping[str, float] | None = None,
    higher_is_better: bool | None = None,
    directions: Mapping[str, bool] | None = None,
    holm: bool = False,
    strict: bool = False,
    cluster_by: str = "",
    max_bad_answer_ratio: float | None = None,
) -> CompareJobsRequest:
    """Build the request. A single candidate or metric may be a plain string.

    Raises TypeError or ValueError that names the argument which can't be sent.
    """
    build = values.build
    thresholds = [
        build(MetricThreshold, selector=parse_metric(values.text("tolerances", name)), tolerance=value)
        for name, value in (tolerances or {}).items()
    ]
    thresholds += [
        build(MetricThreshold, selector=parse_metric(values.text("directions", name)), higher_is_better=value)
        for name, value in (directions or {}).items()
    ]
    return build(
        CompareJobsRequest,
        baseline_job_id=baseline_job_id,
        candidate_job_ids=values.texts("candidate_job_ids", candidate_job_ids),
        metrics=map(parse_metric, values.texts("metrics", metrics)),
        alpha=alpha,
        tolerance=tolerance,
        higher_is_better=higher_is_better,
        metric_thresholds=thresholds,
        correction=CORRECTION_HOLM if holm else CORRECTION_UNSPECIFIED,
        strict=strict,
        cluster_by=cluster_by,
        max_bad_answer_ratio=max_bad_answer_ratio,
    )


class PlanOptions(TypedDict, total=False):
    """What to plan from. Either `differing_ratio`, or earlier jobs. See PlanComparisonRequest in the schema."""

    differing_ratio: float | None
    """The share of samples whose results differ between two models."""
    baseline_job_id: str
    """An earlier job with samples."""
    candidate_job_id: str
    """A second one, so that it is known how much two models differ."""
    metrics: Sequence[str] | str
    """Only these, as in CompareOptions. Default: all."""
    alpha: float | None
    """The accepted false alarm rate. Default: 0.05."""
    power: float | None
    """The probability of seeing a difference that there is. Default: 0.8."""
    cluster_by: str
    """As in CompareOptions."""


def plan_request(
    difference: float,
    *,
    differing_ratio: float | None = None,
    baseline_job_id: str = "",
    candidate_job_id: str = "",
    metrics: Sequence[str] | str = (),
    alpha: float | None = None,
    power: float | None = None,
    cluster_by: str = "",
) -> PlanComparisonRequest:
    """Build the request. Raises TypeError or ValueError that names the argument which can't be sent."""
    return values.build(
        PlanComparisonRequest,
        difference=difference,
        differing_ratio=differing_ratio,
        baseline_job_id=baseline_job_id,
        candidate_job_id=candidate_job_id,
        metrics=map(parse_metric, values.texts("metrics", metrics)),
        alpha=alpha,
        power=power,
        cluster_by=cluster_by,
    )


def flips_request(
    baseline_job_id: str,
    candidate_job_id: str,
    metric: str,
    model: str,
    direction: FlipDirection.ValueType,
    higher_is_better: bool | None,
    page_size: int,
) -> ListFlipsRequest:
    """Build the request. Raises TypeError or ValueError that names the argument which can't be sent."""
    return values.build(
        ListFlipsRequest,
        baseline_job_id=baseline_job_id,
        candidate_job_id=candidate_job_id,
        metric=parse_metric(values.text("metric", metric)) if metric else None,
        model=model,
        direction=direction,
        higher_is_better=higher_is_better,
        page_size=page_size,
    )
