"""Gates: whether a comparison is good enough to go on. Pure."""

import math
from collections.abc import Callable, Iterator
from typing import Final

from evalrpc.client.arguments import metric_text
from evalrpc.v1.comparison_pb2 import AnswerCounts, CompareJobsResponse, MetricComparison, TestMethod, Verdict

DEFAULT_GATE: Final = "no-significant-drop"

GATES: Final[dict[str, Callable[["Verdict.ValueType"], bool]]] = {
    DEFAULT_GATE: lambda verdict: verdict != Verdict.VERDICT_WORSE,
    "no-worse": lambda verdict: verdict in (Verdict.VERDICT_BETTER, Verdict.VERDICT_SAME, Verdict.VERDICT_NOT_WORSE),
    "better": lambda verdict: verdict == Verdict.VERDICT_BETTER,
}
"""Which verdicts let a metric through. All metrics have to pass, and VOID never does. A verdict of a newer server counts as
INCONCLUSIVE."""

_NEEDS_DIRECTION: Final = "and differs, but nobody says which direction is better: add --direction"


def failures(response: CompareJobsResponse, gate: str, *, allow_missing: bool) -> Iterator[str]:
    """Yield a line for each metric that does not pass, and one if there is no metric at all. None: the gate passed.

    A value that is missing, not finite or of no sample fails every gate, since nothing is known then, unless `allow_missing`
    leaves it out. Too many bad answers always do, and so does a significant difference of which nobody says whether it is a
    loss.
    """
    alpha = 1 - response.confidence_level
    several = len(response.candidates) > 1
    compared = 0
    for candidate in response.candidates:
        of_job = f" of job {candidate.candidate_job_id}" if several else ""
        for metric in candidate.metrics:
            if metric.verdict == Verdict.VERDICT_VOID:
                compared += 1
                yield f"{metric_text(metric)}{of_job} is VOID: {bad_answers(metric)}"
                continue
            missing = missing_value(metric)
            if missing and allow_missing:
                continue
            compared += 1
            if missing:
                yield f"{metric_text(metric)}{of_job}: {missing}"
            elif needs_direction(metric, alpha):
                yield f"{metric_text(metric)}{of_job} is {verdict_name(metric)} {_NEEDS_DIRECTION}"
            elif not GATES[gate](metric.verdict):
                yield f"{metric_text(metric)}{of_job} is {verdict_name(metric)}"
    if not compared:
        yield "there is nothing to compare"


def untested(response: CompareJobsResponse) -> Iterator[str]:
    """Yield the metrics that have both values, but nothing to test their difference with: INCONCLUSIVE, so that the
    default gate lets them through, however far apart the values are."""
    for candidate in response.candidates:
        for metric in candidate.metrics:
            is_open = metric.verdict == Verdict.VERDICT_INCONCLUSIVE and metric.method == TestMethod.TEST_METHOD_NONE
            if is_open and not missing_value(metric):
                yield f"{metric_text(metric)} ({metric.difference:+.4f})"


def needs_direction(metric: MetricComparison, alpha: float) -> bool:
    """Return whether a metric would be BETTER or WORSE if anybody said which direction is better."""
    if metric.verdict != Verdict.VERDICT_INCONCLUSIVE or metric.HasField("higher_is_better") or not metric.HasField("p_value"):
        return False
    p_value = metric.adjusted_p_value if metric.HasField("adjusted_p_value") else metric.p_value
    return p_value < alpha and (metric.interval_lower > 0 or metric.interval_upper < 0)


def missing_value(metric: MetricComparison) -> str:
    """Say which of the two values is missing, not finite or of no sample; empty if both are numbers."""
    candidate = metric.candidate_value if metric.HasField("candidate_value") else None
    baseline = metric.baseline_value if metric.HasField("baseline_value") else None
    for side, value in (("candidate", candidate), ("baseline", baseline)):
        if value is None:
            return f"the {side} has no value"
        if not math.isfinite(value):
            return f"the {side}'s value is {value}"
    if metric.HasField("candidate_sample_count") and not metric.candidate_sample_count:
        return "the candidate's value is of no sample"
    if metric.HasField("baseline_sample_count") and not metric.baseline_sample_count:
        return "the baseline's value is of no sample"
    return ""


def bad_answers(metric: MetricComparison) -> str:
    """Say how many answers of either job are bad, such as `3 empty and 9 truncated of 100 answers in the candidate`."""
    sides = (("baseline", metric.baseline_answers), ("candidate", metric.candidate_answers))
    return "; ".join(
        f"{' and '.join(kinds)} of {counts.total_count} answers in the {side}"
        for side, counts in sides
        if (kinds := _bad_kinds(counts))
    )


def _bad_kinds(counts: AnswerCounts) -> list[str]:
    kinds = (("failed", counts.failed_count), ("empty", counts.empty_count), ("truncated", counts.truncated_count))
    return [f"{count} {kind}" for kind, count in kinds if count]


def verdict_name(metric: MetricComparison) -> str:
    """Return the verdict, such as WORSE; the number for one of a newer server."""
    known = metric.verdict in Verdict.values()
    return Verdict.Name(metric.verdict).removeprefix("VERDICT_") if known else f"VERDICT_{metric.verdict:d}"
