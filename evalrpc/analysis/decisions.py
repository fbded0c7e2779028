"""One decision over the metrics of a suite, each of which is held against its threshold and against the baseline. Pure.

The rules are in the schema, at `Assessment` and `SuiteOutcome`. GO needs no correction for many tests: every metric that is
required has to pass by itself, so a false GO takes a false pass of the very metric that is bad, whose chance no further metric
raises (an intersection-union test: Berger 1982). NO_GO takes only one metric that fails, so each further one is another chance
of a false alarm: Holm's correction keeps that of a tier below `alpha`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from operator import attrgetter
from typing import Final

from evalrpc.analysis import significance, verdicts
from evalrpc.analysis.evidence import Evidence, MetricName, ValueTest
from evalrpc.jobs.metric_selectors import selector_words
from evalrpc.jobs.size_limits import MAX_FINDINGS_BYTES
from evalrpc.protobuf.texts import cut
from evalrpc.reading.page_bound import PageBound
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_NONE,
    TEST_METHOD_ONE_SAMPLE_Z,
    VERDICT_BETTER,
    VERDICT_INCONCLUSIVE,
    VERDICT_NOT_WORSE,
    VERDICT_SAME,
    VERDICT_UNSPECIFIED,
    VERDICT_VOID,
    VERDICT_WORSE,
    MetricComparison,
    Verdict,
)
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
    SuiteFinding,
    SuiteOutcome,
)

MAX_REASONS: Final = 100
MAX_REASON_BYTES: Final = 512

_AS_IT_IS: Final = "taken as it is: nobody says of how many samples it is, or how large its error is"

_Assessed = tuple["Assessment.ValueType", str]
"""What was found, and why."""

_OF_VERDICT: Final[Mapping["Verdict.ValueType", "Assessment.ValueType"]] = {
    VERDICT_BETTER: ASSESSMENT_PASSED,
    VERDICT_SAME: ASSESSMENT_PASSED,
    VERDICT_NOT_WORSE: ASSESSMENT_PASSED,
    VERDICT_WORSE: ASSESSMENT_FAILED,
    VERDICT_INCONCLUSIVE: ASSESSMENT_UNDECIDED,
}
"""What a comparison with the baseline comes to. One that is VOID has no numbers."""

GRAVITY: Final = (ASSESSMENT_FAILED, ASSESSMENT_NO_NUMBERS, ASSESSMENT_UNDECIDED, ASSESSMENT_PASSED)
"""Of several, the first counts; findings are listed in this order."""

CONSEQUENCES: Final[Mapping[tuple["Assessment.ValueType", bool], "SuiteOutcome.ValueType"]] = {
    (ASSESSMENT_PASSED, True): SUITE_OUTCOME_GO,
    (ASSESSMENT_PASSED, False): SUITE_OUTCOME_GO,
    (ASSESSMENT_FAILED, True): SUITE_OUTCOME_NO_GO,
    (ASSESSMENT_FAILED, False): SUITE_OUTCOME_NO_GO,
    (ASSESSMENT_UNDECIDED, True): SUITE_OUTCOME_INCONCLUSIVE,
    (ASSESSMENT_UNDECIDED, False): SUITE_OUTCOME_GO,
    (ASSESSMENT_NO_NUMBERS, True): SUITE_OUTCOME_INCONCLUSIVE,
    (ASSESSMENT_NO_NUMBERS, False): SUITE_OUTCOME_GO,
}
"""What the suite comes to at best, by what is found out about a metric, and whether its entry is required."""


def decide(suite: Suite, evidence: Sequence[Evidence], *, has_ended: bool) -> SuiteDecision:
    """Return the decision over a suite run, of which there is this evidence, in the order of the entries."""
    findings = [finding for each in evidence for finding in _findings(suite, each)]
    _correct_by_tier(findings, Counter() if has_ended else _awaited_by_tier(evidence))
    by_entry = {each.entry.name: each for each in evidence}
    for finding in findings:
        if finding.HasField("metric"):
            _assess(finding, suite, by_entry[finding.entry])
    outcome, reasons = _outcome(findings, has_ended=has_ended)
    findings.sort(key=lambda finding: (GRAVITY.index(finding.assessment), finding.tier))
    bound = PageBound(len(findings), MAX_FINDINGS_BYTES)
    return SuiteDecision(
        outcome=outcome,
        reasons=reasons,
        findings=takewhile(bound.takes, findings),
        finding_count=len(findings),
        confidence_level=1 - suite.alpha,
    )


# Findings, with what was tested


def _findings(suite: Suite, evidence: Evidence) -> Iterator[SuiteFinding]:
    """Yield a finding for each metric of an entry, tested and not yet assessed, and one for each thing that is missing."""
    if evidence.measured is None:
        yield _without_numbers(evidence, evidence.problem)
        return
    for selector in evidence.measured.missing:
        yield _without_numbers(evidence, f"the job has no {selector_words(selector).removeprefix('a ')}")
    for metric in evidence.measured.metrics:
        finding = _new_finding(evidence)
        finding.metric.CopyFrom(metric)
        finding.metric.tolerance = evidence.entry.tolerance
        if evidence.entry.HasField("higher_is_better"):
            finding.metric.higher_is_better = evidence.entry.higher_is_better
        _test_value(finding, evidence.measured.value_tests.get(MetricName.of(metric)), suite.alpha)
        yield finding


def _new_finding(evidence: Evidence) -> SuiteFinding:
    entry = evidence.entry
    return SuiteFinding(
        entry=entry.name,
        tier=entry.tier,
        required=entry.required,
        job_id=evidence.job_id,
        baseline_job_id=evidence.baseline_job_id,
        threshold=entry.threshold if entry.HasField("threshold") else None,
    )


def _without_numbers(evidence: Evidence, reason: str) -> SuiteFinding:
    finding = _new_finding(evidence)
    finding.assessment, finding.reason = ASSESSMENT_NO_NUMBERS, cut(reason, MAX_REASON_BYTES)
    return finding


def _test_value(finding: SuiteFinding, tested: ValueTest | None, alpha: float) -> None:
    """Set the interval of the value, and test it against the threshold: from the samples, if they have been tested, or else
    from its standard error, if that says something."""
    if not math.isfinite(finding.metric.candidate_value):
        tested = None
    elif tested is None:
        tested = _by_standard_error(finding.metric, finding.threshold, alpha)
    else:
        finding.value_sample_count = tested.sample_count
        if tested.cluster_count is not None:
            finding.value_cluster_count = tested.cluster_count
    finding.value_method = TEST_METHOD_NONE if tested is None else tested.method
    if tested is None or tested.found is None:
        return
    finding.value_lower, finding.value_upper = tested.found.lower, tested.found.upper
    if finding.HasField("threshold"):
        finding.threshold_p_value = tested.found.p_value


def _by_standard_error(metric: MetricComparison, threshold: float, alpha: float) -> ValueTest | None:
    if _lack_of_error(metric):
        return None
    found = significance.one_sample_z(metric.candidate_value, metric.candidate_standard_error, threshold, alpha)
    return ValueTest(TEST_METHOD_ONE_SAMPLE_Z, 0, found=found)


def _lack_of_error(metric: MetricComparison) -> str:
    """Return why the standard error of the value says nothing; empty if it does."""
    if metric.HasField("candidate_sample_count") and metric.candidate_sample_count < significance.MIN_SAMPLES:
        return f"it is of {metric.candidate_sample_count} samples only, at least {significance.MIN_SAMPLES} are needed"
    if not metric.HasField("candidate_standard_error"):
        return "the harness gives no standard error"
    error = metric.candidate_standard_error
    return "" if 0 < error < math.inf else f"its standard error is {error:g}"


def _awaited_by_tier(evidence: Iterable[Evidence]) -> Counter[int]:
    """Count the tests that are still to come in each tier: at least those of one metric of each selector."""
    awaited: Counter[int] = Counter()
    for each in evidence:
        if each.measured is None:
            test_count = each.entry.HasField("threshold") + bool(each.baseline_job_id)
            awaited[each.entry.tier] += max(1, len(each.entry.metrics)) * max(1, test_count)
    return awaited


def _correct_by_tier(findings: Sequence[SuiteFinding], awaited: Counter[int]) -> None:
    """Adjust the p-values of each tier by Holm's method, those of comparisons and of thresholds together.

    Each test that is awaited counts as one with a p-value of 1, so that a run that goes on fails no sooner than it may.
    """
    for tier, of_tier in groupby(sorted(findings, key=attrgetter("tier")), key=attrgetter("tier")):
        tested = list(of_tier)
        compared = [finding.metric for finding in tested if finding.metric.HasField("p_value")]
        bounded = [finding for finding in tested if finding.HasField("threshold_p_value")]
        p_values = [*(metric.p_value for metric in compared), *(finding.threshold_p_value for finding in bounded)]
        p_values += [1.0] * awaited[tier]
        adjusted = iter(significance.holm(p_values))
        for metric in compared:
            metric.adjusted_p_value = next(adjusted)
        for finding in bounded:
            finding.threshold_adjusted_p_value = next(adjusted)


# Assessing


def _assess(finding: SuiteFinding, suite: Suite, evidence: Evidence) -> None:
    """Set the verdict and the assessment of a finding that has a metric."""
    metric = finding.metric
    metric.verdict = verdicts.verdict(metric, suite.alpha, suite.max_bad_answer_ratio)
    found = list(_without_a_number(metric))
    if not found:
        found += _against_threshold(finding, _lack(finding, evidence), suite.alpha) if finding.HasField("threshold") else ()
        has_baseline = evidence.baseline_job_id or evidence.baseline_problem
        found += _against_baseline(finding, evidence.baseline_problem) if has_baseline else ()
        found = found or [(ASSESSMENT_UNDECIDED, "there is neither a threshold nor a baseline to hold it against")]
    if metric.verdict != VERDICT_VOID and not metric.HasField("baseline_value"):
        metric.verdict = VERDICT_UNSPECIFIED
    gravest = min((assessment for assessment, _ in found), key=GRAVITY.index)
    finding.assessment = gravest
    reasons = [*(reason for assessment, reason in found if assessment == gravest), evidence.remark]
    finding.reason = cut("; ".join(filter(None, reasons)), MAX_REASON_BYTES)


def _without_a_number(metric: MetricComparison) -> Iterator[_Assessed]:
    if not metric.HasField("candidate_value"):
        yield ASSESSMENT_NO_NUMBERS, "the job has no such metric, which the baseline has"
    elif not math.isfinite(metric.candidate_value):
        yield ASSESSMENT_NO_NUMBERS, f"its value is {metric.candidate_value}"
    elif metric.verdict == VERDICT_VOID:
        yield ASSESSMENT_NO_NUMBERS, "VOID: too many answers are truncated, empty or failed"


def _lack(finding: SuiteFinding, evidence: Evidence) -> str:
    """Return why the value can't be tested; empty if it was."""
    if finding.value_method != TEST_METHOD_NONE:
        return ""
    tests = evidence.measured.value_tests if evidence.measured else {}
    tested = tests.get(MetricName.of(finding.metric))
    return tested.lack if tested else _lack_of_error(finding.metric)


def _against_threshold(finding: SuiteFinding, lack: str, alpha: float) -> Iterator[_Assessed]:
    metric, threshold = finding.metric, finding.threshold
    if not metric.HasField("higher_is_better"):
        yield ASSESSMENT_UNDECIDED, "nobody says which direction is better: set higher_is_better in the suite"
        return
    sign, bound = (1, "at least") if metric.higher_is_better else (-1, "at most")
    least = sign * threshold - verdicts.rounding(threshold)
    value = f"{metric.candidate_value:.4f} against {bound} {threshold:.15g}"
    if lack and _is_bare(finding):
        reaches = sign * metric.candidate_value >= least
        taken = f"{value}, {_AS_IT_IS}"
        yield (ASSESSMENT_PASSED, taken) if reaches else (ASSESSMENT_FAILED, f"misses its threshold: {taken}")
        return
    if lack:
        yield ASSESSMENT_UNDECIDED, f"{value} can't be tested: {lack}"
        return
    worst, best = sorted((sign * finding.value_lower, sign * finding.value_upper))
    if worst >= least:
        yield ASSESSMENT_PASSED, value
    elif best < least and finding.threshold_adjusted_p_value < alpha:
        yield ASSESSMENT_FAILED, f"misses its threshold: {value}"
    else:
        yield ASSESSMENT_UNDECIDED, f"may miss its threshold, or reach it: {value}"


def _is_bare(finding: SuiteFinding) -> bool:
    """Return whether nothing is known of samples behind the value, nor of an error."""
    known = (finding.metric.HasField(name) for name in ("candidate_standard_error", "candidate_sample_count"))
    return not (finding.HasField("value_sample_count") or any(known))


def _against_baseline(finding: SuiteFinding, baseline_problem: str) -> Iterator[_Assessed]:
    metric = finding.metric
    if baseline_problem or not metric.HasField("baseline_value"):
        yield ASSESSMENT_UNDECIDED, baseline_problem or "the baseline has no such metric"
        return
    if metric.definition_differences:
        yield ASSESSMENT_UNDECIDED, f"the baseline answered other questions: {', '.join(metric.definition_differences)}"
        return
    name = Verdict.Name(metric.verdict).removeprefix("VERDICT_")
    values = f"{metric.candidate_value:.4f} against the baseline's {metric.baseline_value:.4f}"
    if metric.verdict == VERDICT_SAME and (lack := _lack_of_sameness(metric)):
        yield ASSESSMENT_UNDECIDED, f"{name}, but {lack}: {values}"
        return
    yield _OF_VERDICT[metric.verdict], f"{name}: {values}{_remark_on(metric)}"


def _remark_on(metric: MetricComparison) -> str:
    """Return what whoever reads a verdict should know of what it rests on."""
    if metric.verdict == VERDICT_SAME and metric.method == TEST_METHOD_NONE:
        return f", {_AS_IT_IS}"
    if metric.verdict != VERDICT_INCONCLUSIVE:
        return ""
    if metric.method == TEST_METHOD_NONE:
        lack = "of too few samples" if verdicts.has_few_samples(metric) else "there are no samples, and no standard errors"
        return f"; it can't be tested: {metric.note or lack}"
    if not metric.HasField("higher_is_better"):
        return "; nobody says which direction is better: set higher_is_better in the suite"
    return ""


def _lack_of_sameness(metric: MetricComparison) -> str:
    """Return why the verdict SAME rests on too little to pass; empty if it does not."""
    is_equal = metric.paired_sample_count >= significance.MIN_SAMPLES and verdicts.is_equal_throughout(metric)
    if metric.method == TEST_METHOD_NONE or is_equal or verdicts.is_within_tolerance(metric):
        return ""
    return f"of {metric.paired_sample_count} samples only, and the interval leaves room for more than the tolerance"


# Deciding


def _outcome(findings: Sequence[SuiteFinding], *, has_ended: bool) -> tuple["SuiteOutcome.ValueType", Sequence[str]]:
    """Return the decision, and why it is not GO."""
    outcomes = {CONSEQUENCES[finding.assessment, finding.required] for finding in findings}
    ways = list(_in_the_way(findings))
    if SUITE_OUTCOME_NO_GO in outcomes:
        return SUITE_OUTCOME_NO_GO, _bounded(ways)
    if not has_ended:
        return SUITE_OUTCOME_INCONCLUSIVE, _bounded(["the run has not ended", *ways])
    if SUITE_OUTCOME_INCONCLUSIVE in outcomes:
        return SUITE_OUTCOME_INCONCLUSIVE, _bounded(ways)
    if all(finding.assessment != ASSESSMENT_PASSED for finding in findings):
        return SUITE_OUTCOME_INCONCLUSIVE, ["nothing has passed: no entry is required, and none has numbers that decide"]
    return SUITE_OUTCOME_GO, []


def _in_the_way(findings: Iterable[SuiteFinding]) -> Iterator[str]:
    """Yield what keeps a suite from GO, the gravest first."""
    blocking = [each for each in findings if CONSEQUENCES[each.assessment, each.required] != SUITE_OUTCOME_GO]
    for finding in sorted(blocking, key=lambda each: (GRAVITY.index(each.assessment), each.tier)):
        metric = f" {finding.metric.task}/{finding.metric.metric}" if finding.HasField("metric") else ""
        name = Assessment.Name(finding.assessment).removeprefix("ASSESSMENT_")
        yield cut(f"{finding.entry}{metric} (tier {finding.tier}) {name}: {finding.reason}", MAX_REASON_BYTES)


def _bounded(reasons: Sequence[str]) -> Sequence[str]:
    if len(reasons) <= MAX_REASONS:
        return reasons
    return [*reasons[: MAX_REASONS - 1], f"and {len(reasons) - MAX_REASONS + 1} more"]
