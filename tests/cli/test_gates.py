"""When a comparison is good enough to go on."""

import math
from collections.abc import Callable

import pytest
from click.testing import Result
from fake_server import JOB_ID, FakeService

from evalrpc.cli import gates
from evalrpc.v1.comparison_pb2 import AnswerCounts, CompareJobsResponse, JobComparison, MetricComparison, TestMethod, Verdict

OTHER_ID = "abcd8d5e-6f1e-4f0e-9d51-0d5fb3a1c002"

Run = Callable[..., Result]

BETTER, WORSE, SAME, INCONCLUSIVE = (
    Verdict.VERDICT_BETTER,
    Verdict.VERDICT_WORSE,
    Verdict.VERDICT_SAME,
    Verdict.VERDICT_INCONCLUSIVE,
)
NOT_WORSE, VOID = Verdict.VERDICT_NOT_WORSE, Verdict.VERDICT_VOID
UNKNOWN = 99
NAN = math.nan


def metric(verdict: int, baseline: float | None = 0.5, candidate: float | None = 0.5) -> MetricComparison:
    return MetricComparison(
        task="t",
        metric="acc",
        filter="none",
        verdict=verdict,  # type: ignore[arg-type]
        baseline_value=baseline,
        candidate_value=candidate,
    )


def compared(*metrics: MetricComparison) -> CompareJobsResponse:
    return CompareJobsResponse(candidates=[JobComparison(candidate_job_id=JOB_ID, metrics=metrics)], confidence_level=0.95)


def passes(gate: str, *metrics: MetricComparison, allow_missing: bool = False) -> bool:
    return not list(gates.failures(compared(*metrics), gate, allow_missing=allow_missing))


@pytest.mark.parametrize(
    ("gate", "through"),
    [
        ("no-significant-drop", {BETTER, SAME, NOT_WORSE, INCONCLUSIVE, UNKNOWN}),
        ("no-worse", {BETTER, SAME, NOT_WORSE}),
        ("better", {BETTER}),
    ],
)
def test_a_gate_lets_these_verdicts_through(gate: str, through: set[int]) -> None:
    known = (BETTER, WORSE, SAME, NOT_WORSE, VOID, INCONCLUSIVE, UNKNOWN)
    assert {verdict for verdict in known if passes(gate, metric(verdict))} == through


@pytest.mark.parametrize("gate", gates.GATES)
def test_too_many_bad_answers_fail_every_gate_and_are_counted(gate: str) -> None:
    void = metric(VOID)
    void.candidate_answers.CopyFrom(AnswerCounts(total_count=100, truncated_count=9, empty_count=3))
    void.baseline_answers.CopyFrom(AnswerCounts(total_count=100))
    assert list(gates.failures(compared(void), gate, allow_missing=True)) == [
        "t/acc,none is VOID: 3 empty and 9 truncated of 100 answers in the candidate"
    ]
    assert not passes(gate, metric(BETTER), metric(VOID, NAN), allow_missing=True)


@pytest.mark.parametrize("gate", gates.GATES)
@pytest.mark.parametrize(
    ("baseline", "candidate"), [(0.5, NAN), (NAN, 0.5), (NAN, NAN), (0.5, None), (None, 0.5), (0.5, math.inf), (-math.inf, 0.5)]
)
def test_a_value_that_is_missing_or_no_number_fails_every_gate_unless_it_is_allowed(
    gate: str, baseline: float | None, candidate: float | None
) -> None:
    missing = metric(INCONCLUSIVE, baseline, candidate)

    assert not passes(gate, metric(BETTER), missing)
    assert passes(gate, metric(BETTER), missing, allow_missing=True)


@pytest.mark.parametrize("gate", gates.GATES)
@pytest.mark.parametrize("counts", [(0, 10), (10, 0), (0, 0), (None, 0)])
def test_a_value_of_no_sample_is_none(gate: str, counts: tuple[int | None, int | None]) -> None:
    of_none = metric(SAME, 0.5, 0.5)
    of_none.MergeFrom(MetricComparison(baseline_sample_count=counts[0], candidate_sample_count=counts[1]))

    assert not passes(gate, metric(BETTER), of_none)
    assert passes(gate, metric(BETTER), of_none, allow_missing=True)


@pytest.mark.parametrize("gate", gates.GATES)
@pytest.mark.parametrize("allow_missing", [True, False])
def test_nothing_to_compare_fails_every_gate(gate: str, allow_missing: bool) -> None:
    assert not passes(gate, allow_missing=allow_missing)
    assert not passes(gate, metric(INCONCLUSIVE, NAN, NAN), allow_missing=allow_missing)


def differing(p_value: float, adjusted: float | None = None, higher_is_better: bool | None = None) -> MetricComparison:
    """A metric that has fallen, of which nobody says what is better."""
    found = metric(INCONCLUSIVE, 0.8, 0.2)
    found.interval_lower, found.interval_upper, found.p_value = -0.7, -0.5, p_value
    if adjusted is not None:
        found.adjusted_p_value = adjusted
    if higher_is_better is not None:
        found.higher_is_better = higher_is_better
    return found


@pytest.mark.parametrize("gate", gates.GATES)
def test_a_significant_difference_in_no_known_direction_fails_every_gate_and_says_what_helps(gate: str) -> None:
    (line,) = gates.failures(compared(differing(1e-9)), gate, allow_missing=True)
    assert line == "t/acc,none is INCONCLUSIVE and differs, but nobody says which direction is better: add --direction"


def test_what_may_be_chance_passes_the_default_gate_whatever_its_direction() -> None:
    may_be_chance = [differing(0.06), differing(0.001, adjusted=0.06), differing(0.06, higher_is_better=True)]
    assert passes(gates.DEFAULT_GATE, *may_be_chance, metric(INCONCLUSIVE, 0.8, 0.2))


def test_a_drop_that_could_not_be_tested_passes_the_default_gate_and_not_without_a_word(run: Run, service: FakeService) -> None:
    bare, missing = metric(INCONCLUSIVE, 0.9, 0.1), metric(INCONCLUSIVE, 0.9, NAN)
    bare.difference, bare.method, missing.method = -0.8, TestMethod.TEST_METHOD_NONE, TestMethod.TEST_METHOD_NONE
    service.comparison = compared(bare, missing, metric(INCONCLUSIVE))

    result = run("compare", OTHER_ID, JOB_ID, "--allow-missing")

    line = "evalrpc: not tested, for want of samples or standard errors: t/acc,none (-0.8000)"
    assert (result.exit_code, result.stderr.splitlines()) == (0, ["3 INCONCLUSIVE", line])


@pytest.mark.parametrize("gate", gates.GATES)
def test_one_metric_that_does_not_pass_is_enough(gate: str) -> None:
    assert not passes(gate, metric(BETTER), metric(WORSE))


@pytest.mark.parametrize(
    ("flags", "verdict", "exit_code"),
    [
        ([], INCONCLUSIVE, 0),
        ([], WORSE, 1),
        (["--gate", "no-significant-drop"], SAME, 0),
        (["--gate", "no-worse"], INCONCLUSIVE, 1),
        (["--gate", "no-worse"], SAME, 0),
        (["--gate", "better"], SAME, 1),
        (["--gate", "better"], BETTER, 0),
        (["--gate", "best"], BETTER, 2),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"], ["-o", "csv"]], ids=["table", "json", "csv"])
def test_compare_exits_as_its_gate_says_in_every_form(
    run: Run, service: FakeService, flags: list[str], verdict: int, exit_code: int, form: list[str]
) -> None:
    service.comparison = compared(metric(verdict))

    assert run("compare", OTHER_ID, JOB_ID, *flags, *form).exit_code == exit_code


def test_compare_names_each_metric_that_does_not_pass_and_why(run: Run, service: FakeService) -> None:
    service.comparison = compared(metric(WORSE), metric(INCONCLUSIVE, 0.5, NAN), metric(INCONCLUSIVE, 0.5, None), metric(SAME))

    assert run("compare", OTHER_ID, JOB_ID).stderr.splitlines() == [
        "2 INCONCLUSIVE, 1 SAME, 1 WORSE",
        "evalrpc: the gate no-significant-drop does not pass:",
        "evalrpc:   t/acc,none is WORSE",
        "evalrpc:   t/acc,none: the candidate's value is nan",
        "evalrpc:   t/acc,none: the candidate has no value",
    ]


def test_compare_says_that_there_is_nothing_to_compare(run: Run, service: FakeService) -> None:
    service.comparison = compared()

    result = run("compare", OTHER_ID, JOB_ID, "--allow-missing")

    assert result.exit_code == 1
    assert "there is nothing to compare" in result.stderr


def test_of_very_many_failures_the_first_are_named_and_the_others_counted(run: Run, service: FakeService) -> None:
    service.comparison = compared(*(metric(WORSE) for _ in range(50)))

    lines = run("compare", OTHER_ID, JOB_ID).stderr.splitlines()

    assert len(lines) == 1 + 1 + 20 + 1
    assert lines[-1] == "evalrpc:   and 30 more"
