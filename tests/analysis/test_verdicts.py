"""The verdict rule, case by case, and the thresholds that apply to a metric."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.analysis import verdicts
from evalrpc.jobs.metric_selectors import Selection, parts_of
from evalrpc.v1.comparison_pb2 import (
    CORRECTION_HOLM,
    TEST_METHOD_MCNEMAR,
    TEST_METHOD_NONE,
    VERDICT_BETTER,
    VERDICT_INCONCLUSIVE,
    VERDICT_NOT_WORSE,
    VERDICT_SAME,
    VERDICT_VOID,
    VERDICT_WORSE,
    AnswerCounts,
    CompareJobsRequest,
    MetricComparison,
    MetricThreshold,
)
from evalrpc.v1.results_pb2 import MetricSelector

BETTER, WORSE = VERDICT_BETTER, VERDICT_WORSE
SAME, INCONCLUSIVE = VERDICT_SAME, VERDICT_INCONCLUSIVE
NOT_WORSE, VOID = VERDICT_NOT_WORSE, VERDICT_VOID


def answers(**counts: int) -> AnswerCounts:
    """Of a hundred answers, so many bad ones."""
    return AnswerCounts(total_count=100, **counts)


def metric(lower: float | None, upper: float | None, **fields: Any) -> MetricComparison:
    """A metric for which higher is better, and whose difference was tested unless there is no interval."""
    is_tested = lower is not None and upper is not None
    given = {
        "task": "t",
        "metric": "acc",
        "filter": "none",
        "difference": (lower + upper) / 2 if is_tested else None,
        "interval_lower": lower,
        "interval_upper": upper,
        "p_value": (0.5 if lower <= 0 <= upper else 0.01) if is_tested else None,
        "higher_is_better": True,
        "method": TEST_METHOD_MCNEMAR if is_tested else TEST_METHOD_NONE,
        "paired_sample_count": 100 if is_tested else 0,
        "differing_sample_count": 10 if is_tested else 0,
    }
    return MetricComparison(**(given | fields))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Interval relative to zero.
        (metric(0.01, 0.05), BETTER),
        (metric(-0.05, -0.01), WORSE),
        (metric(-0.01, 0.05), INCONCLUSIVE),
        (metric(0.0, 0.05, p_value=0.01), INCONCLUSIVE),
        # Direction.
        (metric(0.01, 0.05, higher_is_better=False), WORSE),
        (metric(-0.05, -0.01, higher_is_better=False), BETTER),
        (metric(0.01, 0.05, higher_is_better=None), INCONCLUSIVE),
        (metric(-0.005, 0.005, higher_is_better=None, tolerance=0.01), SAME),
        # Tolerance: the whole interval must be within it, ends included.
        (metric(-0.01, 0.01, tolerance=0.01), SAME),
        (metric(0.005, 0.01, tolerance=0.01), SAME),
        (metric(-0.005, 0.011, tolerance=0.01, higher_is_better=None), INCONCLUSIVE),
        (metric(0.005, 0.011, tolerance=0.01), BETTER),
        (metric(-0.03, -0.001, tolerance=0.01), WORSE),
        # Not worse: no loss of the tolerance is within the interval, ends excluded.
        (metric(-0.005, 0.03, tolerance=0.01), NOT_WORSE),
        (metric(-0.01, 0.03, tolerance=0.01), NOT_WORSE),
        (metric(-0.0101, 0.03, tolerance=0.01), INCONCLUSIVE),
        (metric(-0.03, 0.005, tolerance=0.01), INCONCLUSIVE),
        (metric(-0.03, 0.005, tolerance=0.01, higher_is_better=False), NOT_WORSE),
        (metric(-0.005, 0.03, tolerance=0.01, higher_is_better=False), INCONCLUSIVE),
        (metric(0.0, 0.03, p_value=0.06), INCONCLUSIVE),
        (metric(0.0, 0.03, p_value=0.06, tolerance=0.001), NOT_WORSE),
        # Void: more bad answers than allowed in either job, whatever was found.
        (metric(0.01, 0.05, baseline_answers=answers(truncated_count=3)), VOID),
        (metric(0.01, 0.05, candidate_answers=answers(empty_count=1, failed_count=1, truncated_count=1)), VOID),
        (metric(None, None, candidate_answers=answers(failed_count=100)), VOID),
        (metric(0.01, 0.05, baseline_answers=answers(truncated_count=2), candidate_answers=answers(empty_count=2)), BETTER),
        # The p-value, or the adjusted one if there is one.
        (metric(0.01, 0.05, p_value=0.06), INCONCLUSIVE),
        (metric(0.01, 0.05, p_value=0.05), INCONCLUSIVE),
        (metric(0.01, 0.05, p_value=0.01, adjusted_p_value=0.2), INCONCLUSIVE),
        (metric(0.01, 0.05, p_value=0.01, adjusted_p_value=0.04), BETTER),
        # No pair differs.
        (metric(-0.02, 0.02, differing_sample_count=0), SAME),
        (metric(-0.02, 0.02, differing_sample_count=0, unpaired_sample_count=1), INCONCLUSIVE),
        # Nothing to test with.
        (metric(None, None, difference=0.0), SAME),
        (metric(None, None, difference=0.5), INCONCLUSIVE),
        (metric(None, None, difference=-0.01, tolerance=0.01), SAME),
        # Numbers that are equal but for rounding.
        (metric(None, None, baseline_value=0.3, candidate_value=0.1 + 0.2, difference=0.1 + 0.2 - 0.3), SAME),
        (metric(None, None, baseline_value=0.5, candidate_value=0.51, difference=0.51 - 0.5, tolerance=0.01), SAME),
        (metric(0.5 - 0.51, 0.03, baseline_value=0.5, candidate_value=0.51, tolerance=0.01), NOT_WORSE),
        (metric(None, None, baseline_value=0.5, candidate_value=0.51001, difference=0.01001, tolerance=0.01), INCONCLUSIVE),
        # Nothing to test with, though there is noise.
        (metric(None, None, difference=0.0, baseline_sample_count=400), INCONCLUSIVE),
        (metric(None, None, difference=0.0, candidate_standard_error=0.0), INCONCLUSIVE),
        (metric(None, None, difference=0.0, cluster_count=4), INCONCLUSIVE),
        (metric(None, None), INCONCLUSIVE),
        (metric(None, None, tolerance=1.0), INCONCLUSIVE),
    ],
)
def test_verdict(found: MetricComparison, expected: int) -> None:
    assert verdicts.verdict(found, alpha=0.05) == expected


@given(lower=st.floats(-1, 1), width=st.floats(0, 1), tolerance=st.floats(0, 1), p_value=st.floats(0, 1))
def test_the_opposite_direction_gives_the_opposite_verdict(
    lower: float, width: float, tolerance: float, p_value: float
) -> None:
    either = {NOT_WORSE, INCONCLUSIVE}
    opposite = {BETTER: {WORSE}, WORSE: {BETTER}, SAME: {SAME}, INCONCLUSIVE: either, NOT_WORSE: either}
    found = metric(lower, lower + width, tolerance=tolerance, p_value=p_value)
    verdict = verdicts.verdict(found, 0.05)
    assert (verdict in (BETTER, WORSE)) <= (p_value < 0.05 and not lower <= 0 <= lower + width)
    found.higher_is_better = False
    assert verdicts.verdict(found, 0.05) in opposite[verdict]


@given(lower=st.floats(-1, 1), width=st.floats(0, 1), tolerance=st.floats(0, 1), p_value=st.floats(0, 1))
def test_what_is_not_worse_has_no_loss_of_the_tolerance_in_its_interval(
    lower: float, width: float, tolerance: float, p_value: float
) -> None:
    found = metric(lower, lower + width, tolerance=tolerance, p_value=p_value)
    if verdicts.verdict(found, 0.05) == NOT_WORSE:
        assert lower >= -tolerance
        assert lower + width > tolerance > 0


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, VOID), (0.029, VOID), (0.03, BETTER), (1.0, BETTER)])
def test_how_many_bad_answers_are_too_many_is_said_by_the_call(ratio: float, expected: int) -> None:
    found = metric(0.01, 0.05, candidate_answers=answers(truncated_count=3))
    verdicts.judge(CompareJobsRequest(max_bad_answer_ratio=ratio), [found], 0.05)
    assert found.verdict == expected


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"task": "t"}, True),
        ({"metric": "acc"}, True),
        ({"task": "t", "metric": "acc", "filter": "none"}, True),
        ({"task": "u", "metric": "acc"}, False),
        ({"metric": "ac"}, False),
        ({"metric": "acc", "filter": "strict"}, False),
    ],
)
def test_a_selector_takes_what_agrees_with_all_that_it_names(selector: dict[str, str], expected: bool) -> None:
    assert Selection([MetricSelector(**selector)]).takes(metric(0, 1)) == expected


def plainly_takes(selector: MetricSelector, found: MetricComparison) -> bool:
    return all(getattr(selector, part) in ("", getattr(found, part)) for part in ("task", "metric", "filter"))


NAMES = st.sampled_from(("", "a", "b"))
SELECTORS = st.builds(MetricSelector, task=NAMES, metric=NAMES, filter=NAMES)
METRICS = st.builds(MetricComparison, task=NAMES, metric=NAMES, filter=NAMES)


@given(selectors=st.lists(SELECTORS), found=METRICS)
def test_of_many_selectors_any_may_take_a_metric_and_without_one_all_are_taken(
    selectors: list[MetricSelector], found: MetricComparison
) -> None:
    expected = not selectors or any(plainly_takes(selector, found) for selector in selectors)
    assert Selection(selectors).takes(found) == expected


def threshold(selector: dict[str, str], **fields: Any) -> MetricThreshold:
    return MetricThreshold(selector=MetricSelector(**selector), **fields)


def judged(found: MetricComparison, *thresholds: MetricThreshold, **fields: Any) -> MetricComparison:
    verdicts.judge(CompareJobsRequest(metric_thresholds=thresholds, **fields), [found], 0.05)
    return found


def test_the_thresholds_of_a_metric_come_before_those_of_all() -> None:
    mine, others = {"task": "t", "metric": "acc"}, {"task": "u"}
    assert judged(metric(0, 1), tolerance=0.5).tolerance == 0.5
    assert judged(metric(0, 1), threshold(mine, tolerance=0.1), threshold(others, tolerance=9), tolerance=0.5).tolerance == 0.1
    assert judged(metric(0, 1), threshold(mine, tolerance=0.1), threshold({"task": "t"}, tolerance=0.2)).tolerance == 0.2
    assert judged(metric(0, 1), threshold(mine, tolerance=0.1), threshold(mine, higher_is_better=False)).tolerance == 0.1


THRESHOLDS = st.builds(
    MetricThreshold,
    selector=SELECTORS,
    tolerance=st.none() | st.floats(0, 1),
    higher_is_better=st.none() | st.booleans(),
)


@given(thresholds=st.lists(THRESHOLDS), found=METRICS)
def test_of_many_thresholds_the_last_that_sets_a_value_counts(
    thresholds: list[MetricThreshold], found: MetricComparison
) -> None:
    taking = [threshold for threshold in thresholds if plainly_takes(threshold.selector, found)]
    tolerances = [threshold.tolerance for threshold in taking if threshold.HasField("tolerance")]
    directions = [threshold.higher_is_better for threshold in taking if threshold.HasField("higher_is_better")]
    judged(found, *thresholds, tolerance=0.5)
    assert found.tolerance == [0.5, *tolerances][-1]
    assert (found.higher_is_better if found.HasField("higher_is_better") else None) == [None, *directions][-1]


def test_each_threshold_is_looked_at_once_however_many_metrics_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    monkeypatch.setattr(verdicts, "parts_of", lambda selector: looked_at.append(selector) or parts_of(selector))
    thresholds = [threshold({"task": f"t{number}"}, tolerance=number) for number in range(50)]
    metrics = [metric(0, 1, task=f"t{number}") for number in range(50)]
    verdicts.judge(CompareJobsRequest(metric_thresholds=thresholds), metrics, 0.05)
    assert [found.tolerance for found in metrics] == list(range(50))
    assert len(looked_at) == 50


@pytest.mark.parametrize(
    ("harness", "general", "own", "expected"),
    [
        (None, None, None, None),
        (None, False, None, False),
        (True, False, None, True),
        (True, None, False, False),
        (None, True, False, False),
    ],
)
def test_the_direction_is_the_metrics_own_then_the_harness_s_then_that_of_all(
    harness: bool | None, general: bool | None, own: bool | None, expected: bool | None
) -> None:
    thresholds = () if own is None else (threshold({"metric": "acc"}, higher_is_better=own),)
    found = judged(metric(0.01, 0.02, higher_is_better=harness), *thresholds, higher_is_better=general)
    assert (found.higher_is_better if found.HasField("higher_is_better") else None) == expected


def test_holm_is_over_all_that_were_tested_and_only_where_asked_for() -> None:
    found = [metric(0.01, 0.05, p_value=0.03), metric(None, None, difference=0.1), metric(0.01, 0.05, p_value=0.04)]
    verdicts.judge(CompareJobsRequest(), found, 0.05)
    assert [m.verdict for m in found] == [BETTER, INCONCLUSIVE, BETTER]
    assert not any(m.HasField("adjusted_p_value") for m in found)
    verdicts.judge(CompareJobsRequest(correction=CORRECTION_HOLM), found, 0.05)
    assert [m.adjusted_p_value for m in found] == [0.06, 0, 0.06]
    assert [m.verdict for m in found] == [INCONCLUSIVE] * 3
