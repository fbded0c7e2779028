"""One decision over a suite: what each finding comes to, and all of them together."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.analysis import decisions
from evalrpc.analysis.decisions import CONSEQUENCES, GRAVITY, decide
from evalrpc.analysis.evidence import Evidence, Measured, MetricName
from evalrpc.analysis.sample_values import SampleValues, nothing_said
from evalrpc.analysis.value_tests import value_test
from evalrpc.jobs.size_limits import MAX_FINDINGS_BYTES
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_MCNEMAR,
    TEST_METHOD_NONE,
    TEST_METHOD_ONE_SAMPLE_Z,
    VERDICT_SAME,
    VERDICT_UNSPECIFIED,
    VERDICT_VOID,
    VERDICT_WORSE,
    AnswerCounts,
    MetricComparison,
)
from evalrpc.v1.results_pb2 import MetricSelector
from evalrpc.v1.suites_pb2 import (
    ASSESSMENT_FAILED,
    ASSESSMENT_NO_NUMBERS,
    ASSESSMENT_PASSED,
    ASSESSMENT_UNDECIDED,
    SUITE_OUTCOME_GO,
    SUITE_OUTCOME_INCONCLUSIVE,
    SUITE_OUTCOME_NO_GO,
    Assessment,
    Suite,
    SuiteDecision,
    SuiteEntry,
    SuiteFinding,
)

GO, NO_GO, INCONCLUSIVE = SUITE_OUTCOME_GO, SUITE_OUTCOME_NO_GO, SUITE_OUTCOME_INCONCLUSIVE
PASSED, FAILED = ASSESSMENT_PASSED, ASSESSMENT_FAILED
UNDECIDED, NO_NUMBERS = ASSESSMENT_UNDECIDED, ASSESSMENT_NO_NUMBERS


def entry(name: str = "a", **fields: Any) -> SuiteEntry:
    return SuiteEntry(**({"name": name, "tier": 1, "required": True, "tolerance": 0.01} | fields))


def alone(value: float | None = 0.7, **fields: Any) -> MetricComparison:
    """A metric without a baseline, of which higher is better."""
    given = {"task": "t", "metric": "acc", "candidate_value": value, "higher_is_better": True, "method": TEST_METHOD_NONE}
    return MetricComparison(**(given | fields))


def compared(lower: float, upper: float, **fields: Any) -> MetricComparison:
    """A metric beside a baseline, whose difference was tested."""
    given = {
        "baseline_value": 0.7,
        "difference": (lower + upper) / 2,
        "interval_lower": lower,
        "interval_upper": upper,
        "p_value": 0.5 if lower <= 0 <= upper else 0.001,
        "method": TEST_METHOD_MCNEMAR,
        "paired_sample_count": 1000,
        "differing_sample_count": 50,
    }
    return alone(0.7 + (lower + upper) / 2, **(given | fields))


def equal(count: int) -> MetricComparison:
    """A metric all of whose pairs are equal."""
    return compared(-0.15, 0.15, paired_sample_count=count, differing_sample_count=0)


def untested(**fields: Any) -> MetricComparison:
    """A metric beside a baseline of the same value, with nothing that could be tested."""
    return alone(**({"baseline_value": 0.7, "difference": 0.0} | fields))


SAME, WORSE, OPEN = compared(-0.005, 0.005), compared(-0.09, -0.05), compared(-0.05, 0.05)


def of(metric: MetricComparison | None = None, *, baseline: bool = True, problem: str = "", **fields: Any) -> Evidence:
    """The evidence of an entry with one metric, or with none."""
    measured = None if metric is None else Measured([metric])
    has_baseline = baseline and (metric is None or metric.HasField("baseline_value"))
    return Evidence(entry(**fields), "job", "baseline-job" if has_baseline else "", measured, problem)


def of_samples(value: float, samples: list[float], *, threshold: float) -> Evidence:
    """The evidence of an entry with one metric, of which there are samples; the harness says nothing of them."""
    metric, values = alone(value), np.array(samples)
    ids = np.arange(len(samples))
    test = value_test(value, SampleValues(ids, values, nothing_said(len(ids))), threshold, 0.05)
    tests = {MetricName.of(metric): test} if test else {}
    return Evidence(entry(threshold=threshold), "job", measured=Measured([metric], value_tests=tests))


def decided(*evidence: Evidence, has_ended: bool = True, alpha: float = 0.05) -> SuiteDecision:
    return decide(Suite(name="s", alpha=alpha, max_bad_answer_ratio=0.02), evidence, has_ended=has_ended)


def found(evidence: Evidence) -> SuiteFinding:
    (finding,) = decided(evidence).findings
    return finding


# One finding

BAD = AnswerCounts(total_count=100, empty_count=3)
WITH_ERROR = {"candidate_standard_error": 0.01, "candidate_sample_count": 400}


@pytest.mark.parametrize(
    ("evidence", "expected", "words"),
    [
        # Against the baseline.
        (of(compared(0.02, 0.05)), PASSED, "BETTER: 0.7350 against the baseline's 0.7000"),
        (of(SAME), PASSED, "SAME: 0.7000 against the baseline's 0.7000"),
        (of(compared(-0.005, 0.03)), PASSED, "NOT_WORSE"),
        (of(WORSE), FAILED, "WORSE: 0.6300 against the baseline's 0.7000"),
        (of(OPEN), UNDECIDED, "INCONCLUSIVE"),
        (of(compared(-0.09, -0.05, higher_is_better=False)), PASSED, "BETTER"),
        (of(compared(-0.09, -0.05, higher_is_better=None)), UNDECIDED, "set higher_is_better"),
        (of(compared(-0.09, -0.05, higher_is_better=None), higher_is_better=False), PASSED, "BETTER"),
        (of(WORSE, tolerance=0.1), PASSED, "SAME"),
        (
            of(compared(-0.005, 0.005, definition_differences=["version 1 and 2"])),
            UNDECIDED,
            "other questions: version 1 and 2",
        ),
        (of(compared(-0.09, -0.05, candidate_answers=BAD)), NO_NUMBERS, "VOID"),
        (of(compared(-0.005, 0.005, baseline_answers=BAD)), NO_NUMBERS, "VOID"),
        # SAME passes by an interval within the tolerance, or by at least ten pairs that are all equal, and never by a few.
        (of(equal(1)), UNDECIDED, "SAME, but of 1 samples only"),
        (of(equal(9)), UNDECIDED, "SAME, but of 9 samples only"),
        (of(equal(9), tolerance=0.2), PASSED, "SAME: "),
        (of(equal(10)), PASSED, "SAME: "),
        # Without a test it passes only if nothing is known of any noise.
        (of(untested()), PASSED, "SAME: 0.7000 against the baseline's 0.7000, taken as it is"),
        (of(untested(), tolerance=0.0), PASSED, "SAME: "),
        (
            of(untested(candidate_sample_count=400, baseline_sample_count=400)),
            UNDECIDED,
            "can't be tested: there are no samples",
        ),
        (of(untested(candidate_sample_count=400)), UNDECIDED, "can't be tested: there are no samples"),
        (of(untested(candidate_sample_count=400, baseline_sample_count=9)), UNDECIDED, "can't be tested: of too few samples"),
        (of(untested(baseline_standard_error=0.0)), UNDECIDED, "can't be tested"),
        (
            of(untested(cluster_field="p", cluster_count=4, note="too few clusters")),
            UNDECIDED,
            "can't be tested: too few clusters",
        ),
        (of(untested(candidate_value=0.68, difference=-0.02)), UNDECIDED, "INCONCLUSIVE"),
        (of(alone())._replace(baseline_job_id="b"), UNDECIDED, "the baseline has no such metric"),
        (of(alone())._replace(baseline_job_id="b", baseline_problem="it was deleted"), UNDECIDED, "it was deleted"),
        (of(alone(), threshold=0.6)._replace(baseline_problem="its run is gone"), UNDECIDED, "its run is gone"),
        (of(alone(), threshold=0.8)._replace(baseline_problem="its run is gone"), FAILED, "misses its threshold"),
        (
            of(alone(), threshold=0.6)._replace(remark="it has no such entry"),
            PASSED,
            "error is; it has no such entry",
        ),
        (of(alone())._replace(remark="it has no such entry"), UNDECIDED, "to hold it against; it has no such entry"),
        (of(alone(None, baseline_value=0.7)), NO_NUMBERS, "the job has no such metric, which the baseline has"),
        (of(alone(math.nan, baseline_value=0.7)), NO_NUMBERS, "its value is nan"),
        (of(alone(math.inf, baseline_value=0.7)), NO_NUMBERS, "its value is inf"),
        # Against a threshold, without and with an interval, which is 0.7 plus or minus 0.0196.
        (of(alone(), threshold=0.7), PASSED, "0.7000 against at least 0.7, taken as it is"),
        (of(alone(), threshold=0.71), FAILED, "misses its threshold: 0.7000 against at least 0.71"),
        (of(alone(higher_is_better=False), threshold=0.7), PASSED, "0.7000 against at most 0.7"),
        (of(alone(higher_is_better=False), threshold=0.69), FAILED, "misses its threshold: 0.7000 against at most 0.69"),
        (of(alone(higher_is_better=None), threshold=0.6), UNDECIDED, "set higher_is_better"),
        (of(alone(higher_is_better=None), threshold=0.6, higher_is_better=True), PASSED, "at least 0.6"),
        (of(alone(**WITH_ERROR), threshold=0.68), PASSED, "0.7000 against at least 0.68"),
        (of(alone(**WITH_ERROR), threshold=0.69), UNDECIDED, "may miss its threshold, or reach it"),
        (of(alone(**WITH_ERROR), threshold=0.71), UNDECIDED, "may miss its threshold, or reach it"),
        (of(alone(**WITH_ERROR), threshold=0.72), FAILED, "misses its threshold"),
        (of(alone(**WITH_ERROR, higher_is_better=False), threshold=0.72), PASSED, "at most 0.72"),
        (of(alone(**WITH_ERROR, higher_is_better=False), threshold=0.68), FAILED, "misses its threshold"),
        # Too few samples, or an error that is none, decide nothing, in either direction.
        (of(alone(1.0, candidate_standard_error=0.0, candidate_sample_count=1), threshold=0.9), UNDECIDED, "of 1 samples only"),
        (of(alone(1.0, candidate_standard_error=0.0, candidate_sample_count=20), threshold=0.95), UNDECIDED, "error is 0"),
        (of(alone(0.4, candidate_sample_count=5), threshold=0.6), UNDECIDED, "of 5 samples only, at least 10 are needed"),
        (of(alone(candidate_standard_error=0.2, candidate_sample_count=9), threshold=0.1), UNDECIDED, "of 9 samples only"),
        (of(alone(candidate_standard_error=0.0), threshold=0.8), UNDECIDED, "its standard error is 0"),
        (of(alone(candidate_standard_error=math.nan), threshold=0.69), UNDECIDED, "its standard error is nan"),
        (of(alone(candidate_standard_error=math.inf), threshold=0.69), UNDECIDED, "its standard error is inf"),
        (of(alone(candidate_sample_count=400), threshold=0.6), UNDECIDED, "the harness gives no standard error"),
        # What the samples say comes before what the harness says of them.
        (of_samples(1.0, [1.0] * 100, threshold=0.96), PASSED, "1.0000 against at least 0.96"),
        (of_samples(1.0, [1.0] * 100, threshold=0.97), UNDECIDED, "may miss its threshold, or reach it"),
        (of_samples(0.0, [0.0] * 4, threshold=0.9), FAILED, "misses its threshold"),
        (of_samples(0.5, [0.5] * 100, threshold=0.4), UNDECIDED, "can't be tested: all 100 samples have the same value"),
        (of_samples(0.5, [0.4, 0.6] * 4, threshold=0.1), UNDECIDED, "can't be tested: it is of 8 samples only"),
        (of_samples(0.5, [0.4, 0.6] * 40, threshold=0.4), PASSED, "0.5000 against at least 0.4"),
        (of_samples(0.9, [0.4, 0.6] * 40, threshold=0.4), PASSED, "taken as it is"),
        (of(alone(0.3), threshold=0.1 + 0.2), PASSED, "0.3000 against at least 0.3, taken as it is"),
        (of(alone(0.1 + 0.2), threshold=0.3, higher_is_better=False), PASSED, "0.3000 against at most 0.3, taken as it is"),
        (of(alone(candidate_answers=BAD), threshold=0.6), NO_NUMBERS, "VOID"),
        (of(alone(math.nan), threshold=0.6), NO_NUMBERS, "its value is nan"),
        # Against both: the graver counts, with its own reason.
        (
            of(SAME, threshold=0.6),
            PASSED,
            "0.7000 against at least 0.6, taken as it is: nobody says",
        ),
        (of(WORSE, threshold=0.6), FAILED, "WORSE"),
        (of(SAME, threshold=0.8), FAILED, "misses its threshold"),
        (of(OPEN, threshold=0.8), FAILED, "misses its threshold"),
        (of(OPEN, threshold=0.6), UNDECIDED, "INCONCLUSIVE"),
        # Against nothing.
        (of(alone()), UNDECIDED, "there is neither a threshold nor a baseline"),
        # Without any metric.
        (of(problem="the job is FAILED: out of memory"), NO_NUMBERS, "the job is FAILED: out of memory"),
        (of(problem="the job was deleted", threshold=0.6), NO_NUMBERS, "the job was deleted"),
    ],
)
def test_a_metric_is_held_against_its_threshold_and_the_baseline(evidence: Evidence, expected: int, words: str) -> None:
    finding = found(evidence)
    assert Assessment.Name(finding.assessment) == Assessment.Name(expected), finding.reason
    assert words in finding.reason


def test_a_selector_that_takes_nothing_is_a_finding() -> None:
    selector = MetricSelector(task="t", metric="f1")
    evidence = of(SAME)._replace(measured=Measured([SAME], [selector]))
    missing, same = decided(evidence).findings
    assert (missing.assessment, missing.reason, missing.HasField("metric")) == (NO_NUMBERS, "the job has no metric t/f1", False)
    assert same.assessment == PASSED
    assert decided(evidence).outcome == INCONCLUSIVE


def test_each_number_has_its_n_its_method_and_its_interval() -> None:
    finding = found(of(compared(-0.005, 0.005, **WITH_ERROR), threshold=0.6))
    assert finding.value_method == TEST_METHOD_ONE_SAMPLE_Z
    assert (finding.value_lower, finding.value_upper) == pytest.approx(scipy.stats.norm.interval(0.95, 0.7, 0.01))
    assert finding.threshold_p_value == pytest.approx(2 * scipy.stats.norm.sf(10))
    assert (finding.metric.candidate_sample_count, finding.metric.method) == (400, TEST_METHOD_MCNEMAR)
    assert (finding.metric.verdict, finding.metric.tolerance) == (VERDICT_SAME, 0.01)
    assert (finding.tier, finding.required, finding.job_id, finding.baseline_job_id) == (1, True, "job", "baseline-job")
    without = found(of(alone(candidate_standard_error=0.0), threshold=0.6))
    assert without.value_method == TEST_METHOD_NONE
    assert not without.HasField("value_lower")
    assert not without.HasField("threshold_p_value")


def test_without_a_baseline_there_is_no_verdict_but_void() -> None:
    assert found(of(alone(), threshold=0.6)).metric.verdict == VERDICT_UNSPECIFIED
    assert found(of(alone(candidate_answers=BAD), threshold=0.6)).metric.verdict == VERDICT_VOID


# Holm


@given(
    st.lists(st.tuples(st.floats(0.0001, 1), st.integers(1, 3), st.booleans()), min_size=1, max_size=12),
    st.sampled_from([0.01, 0.05]),
)
def test_p_values_are_corrected_within_each_tier_as_statsmodels_does(
    tests: list[tuple[float, int, bool]], alpha: float
) -> None:
    """Of each triple: the p-value, the tier, and whether it is of a threshold."""
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    evidence = []
    for number, (p_value, tier, is_threshold) in enumerate(tests):
        name = str(number)
        if is_threshold:
            distance = scipy.stats.norm.isf(p_value / 2) * 0.01
            metric = alone(0.7, **WITH_ERROR)
            evidence.append(of(metric, name=name, tier=tier, threshold=0.7 + distance))
        else:
            evidence.append(of(compared(-0.02, -0.01, p_value=p_value), name=name, tier=tier))
    findings = {finding.entry: finding for finding in decided(*evidence, alpha=alpha).findings}
    for tier in {tier for _, tier, _ in tests}:
        of_tier = [(str(n), p, t) for n, (p, in_tier, t) in enumerate(tests) if in_tier == tier]
        _, expected, *_ = multitest.multipletests([p for _, p, _ in of_tier], alpha=alpha, method="holm")
        for (name, _, is_threshold), adjusted in zip(of_tier, expected, strict=True):
            finding = findings[name]
            of_finding = finding.threshold_adjusted_p_value if is_threshold else finding.metric.adjusted_p_value
            assert of_finding == pytest.approx(adjusted, rel=1e-6)


def test_a_tier_with_many_metrics_takes_no_power_from_another() -> None:
    weak = compared(-0.04, -0.001, p_value=0.03)
    alone_in_tier, others = of(weak), [of(OPEN, name=f"o{n}", tier=2, required=False) for n in range(20)]
    assert decided(alone_in_tier, *others).outcome == NO_GO
    same_tier = [each._replace(entry=entry(each.entry.name, required=False)) for each in others]
    findings = {finding.entry: finding for finding in decided(alone_in_tier, *same_tier).findings}
    assert findings["a"].metric.adjusted_p_value == pytest.approx(0.03 * 21)
    assert findings["a"].assessment == UNDECIDED, "of 21 metrics, one at 3 % is no finding"


def test_a_run_that_goes_on_is_corrected_for_the_tests_that_are_still_to_come() -> None:
    weak = of(compared(-0.04, -0.001, p_value=0.02))
    two = [MetricSelector(metric="acc"), MetricSelector(metric="f1")]
    running = of(name="b", problem="the job is RUNNING", threshold=0.5, metrics=two)
    (finding,) = [each for each in decided(weak, running, has_ended=False).findings if each.entry == "a"]
    assert finding.metric.adjusted_p_value == pytest.approx(0.02 * 5), "its own, and a threshold and a baseline of two metrics"
    assert decided(weak, running, has_ended=False).outcome == INCONCLUSIVE
    bare = of(name="b", problem="the job is RUNNING", baseline=False)
    (finding, _) = decided(weak, bare, has_ended=False).findings
    assert finding.metric.adjusted_p_value == pytest.approx(0.02 * 2), "at least one test of each entry"
    elsewhere = of(name="b", problem="the job is RUNNING", tier=2)
    assert decided(weak, elsewhere, has_ended=False).outcome == NO_GO
    assert decided(weak, running, has_ended=True).outcome == NO_GO, "nothing more is to come"


def test_a_correction_turns_no_pass_into_anything_else() -> None:
    others = [of(OPEN, name=f"o{n}", required=False) for n in range(50)]
    assert decided(of(SAME), *others).outcome == GO


# All of them together


@pytest.mark.parametrize(("assessment", "required"), list(product(GRAVITY, (True, False))))
def test_the_table_of_consequences_is_whole(assessment: Any, required: bool) -> None:
    outcome = CONSEQUENCES[assessment, required]
    if assessment == FAILED:
        assert outcome == NO_GO
    elif required and assessment in (UNDECIDED, NO_NUMBERS):
        assert outcome == INCONCLUSIVE
    else:
        assert outcome == GO


OPTIONAL: dict[str, Any] = {"name": "b", "required": False}


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ([of(SAME)], GO),
        ([of(SAME), of(WORSE, name="b")], NO_GO),
        ([of(SAME), of(OPEN, name="b")], INCONCLUSIVE),
        ([of(SAME), of(name="b", problem="the job is FAILED")], INCONCLUSIVE),
        ([of(SAME), of(alone(math.nan), name="b")], INCONCLUSIVE),
        ([of(SAME), of(compared(-0.005, 0.005, candidate_answers=BAD), name="b")], INCONCLUSIVE),
        ([of(SAME), of(alone(), name="b")], INCONCLUSIVE),
        ([of(OPEN), of(WORSE, name="b")], NO_GO),
        # What is not required can only fail.
        ([of(SAME), of(WORSE, **OPTIONAL)], NO_GO),
        ([of(SAME), of(OPEN, **OPTIONAL)], GO),
        ([of(SAME), of(problem="the job is FAILED", **OPTIONAL)], GO),
        ([of(SAME), of(alone(math.nan), **OPTIONAL)], GO),
        # Nothing passes for want of numbers.
        ([of(OPEN, required=False), of(problem="the job was deleted", **OPTIONAL)], INCONCLUSIVE),
        ([of(SAME, required=False)], GO),
    ],
)
def test_a_suite_comes_to_the_gravest_of_what_counts(evidence: list[Evidence], expected: int) -> None:
    decision = decided(*evidence)
    assert decision.outcome == expected
    assert bool(decision.reasons) == (expected != GO)


@given(st.lists(st.tuples(st.sampled_from([SAME, WORSE, OPEN, None]), st.booleans()), min_size=1, max_size=8), st.booleans())
def test_it_is_never_go_while_something_required_has_not_passed(
    entries: list[tuple[MetricComparison | None, bool]], has_ended: bool
) -> None:
    evidence = [of(metric, name=str(n), required=required, problem="none") for n, (metric, required) in enumerate(entries)]
    decision = decided(*evidence, has_ended=has_ended)
    if decision.outcome == GO:
        assert has_ended
        assert WORSE not in [metric for metric, _ in entries]
        assert {finding.assessment for finding in decision.findings if finding.required} <= {PASSED}
        assert any(finding.assessment == PASSED for finding in decision.findings)


def test_a_run_that_goes_on_can_already_have_failed_but_not_passed() -> None:
    running = of(name="b", problem="the job is RUNNING", required=False)
    assert decided(of(WORSE), running, has_ended=False).outcome == NO_GO
    decision = decided(of(SAME), running, has_ended=False)
    assert (decision.outcome, decision.reasons[0]) == (INCONCLUSIVE, "the run has not ended")


def test_reasons_and_findings_come_with_the_gravest_first() -> None:
    decision = decided(
        of(SAME, name="passes"),
        of(OPEN, name="open", tier=2),
        of(WORSE, name="worse", tier=3),
        of(name="failed", problem="the job is FAILED: boom"),
        of(compared(-0.09, -0.05), name="worst"),
        of(OPEN, **OPTIONAL),
    )
    assert [finding.entry for finding in decision.findings] == ["worst", "worse", "failed", "b", "open", "passes"]
    assert [reason.partition(":")[0] for reason in decision.reasons] == [
        "worst t/acc (tier 1) FAILED",
        "worse t/acc (tier 3) FAILED",
        "failed (tier 1) NO_NUMBERS",
        "open t/acc (tier 2) UNDECIDED",
    ]
    assert decision.reasons[2] == "failed (tier 1) NO_NUMBERS: the job is FAILED: boom"
    assert decision.finding_count == 6
    assert decision.confidence_level == pytest.approx(0.95)


def test_a_decision_stays_within_its_bounds_and_counts_all() -> None:
    metrics = [compared(-0.05, 0.05, task="t" * 250, metric=f"{n:0250}", note="n" * 500) for n in range(3000)]
    evidence = Evidence(entry(), "job", "baseline-job", Measured([*metrics, compared(-0.09, -0.05, p_value=1e-9)]))
    decision = decided(evidence)
    assert decision.outcome == NO_GO
    assert decision.finding_count == 3001
    assert decision.findings[0].metric.verdict == VERDICT_WORSE
    assert len(decision.findings) < 3001
    assert sum(finding.ByteSize() for finding in decision.findings) <= MAX_FINDINGS_BYTES
    assert len(decision.reasons) == decisions.MAX_REASONS
    assert decision.reasons[-1] == "and 2902 more"
    assert all(len(reason.encode()) <= decisions.MAX_REASON_BYTES for reason in decision.reasons)
