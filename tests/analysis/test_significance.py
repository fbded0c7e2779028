"""The significance tests against independently computed references, on random data."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import scipy
from example_count import example_count
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evalrpc.analysis.significance import MAX_RESAMPLED, MIN_SAMPLES, holm, mcnemar, paired_bootstrap, unpaired_z

COUNTS = st.integers(0, 60)
ALPHAS = st.sampled_from([0.001, 0.01, 0.05, 0.2, 0.5])


def exact_p_value(losses: int, gains: int) -> Fraction:
    """Sum the binomial probabilities that are no larger than that of the observation, in exact arithmetic."""
    discordant = losses + gains
    seen = comb(discordant, gains)
    return Fraction(sum(comb(discordant, k) for k in range(discordant + 1) if comb(discordant, k) <= seen), 2**discordant)


@given(losses=COUNTS, gains=COUNTS, equal=COUNTS)
def test_mcnemar_has_the_exact_p_value(losses: int, gains: int, equal: int) -> None:
    pairs = losses + gains + equal
    if pairs:
        assert mcnemar(losses, gains, pairs, 0.05).p_value == pytest.approx(float(exact_p_value(losses, gains)), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(losses=COUNTS, gains=COUNTS, equal=COUNTS)
def test_mcnemar_has_the_p_value_of_statsmodels(losses: int, gains: int, equal: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    if losses + gains:
        reference = tables.mcnemar([[equal, losses], [gains, 0]], exact=True)
        found = mcnemar(losses, gains, losses + gains + equal, 0.05)
        assert found.p_value == pytest.approx(reference.pvalue, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]), rel=1e-9)


@given(losses=COUNTS, gains=COUNTS, equal=COUNTS, alpha=ALPHAS)
def test_mcnemar_the_other_way_round_is_its_mirror(losses: int, gains: int, equal: int, alpha: float) -> None:
    pairs = losses + gains + equal or 1
    there, back = mcnemar(losses, gains, pairs, alpha), mcnemar(gains, losses, pairs, alpha)
    assert (back.value, back.lower, back.upper) == pytest.approx((-there.value, -there.upper, -there.lower))
    assert back.p_value == pytest.approx(there.p_value)
    assert -1 <= there.lower <= there.upper <= 1


def test_mcnemar_of_an_example_worked_by_hand_is_stricter_than_its_interval() -> None:
    found = mcnemar(losses=7, gains=1, pairs=21, alpha=0.05)
    assert found.value == pytest.approx(-6 / 21)
    assert found.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    reach = 1.959964 * ((2 / 23 + 8 / 23 - (6 / 23) ** 2) / 23) ** 0.5
    assert (found.lower, found.upper) == pytest.approx((-6 / 23 - reach, -6 / 23 + reach))
    assert found.upper < 0 < 0.05 < found.p_value


@pytest.mark.parametrize(("lost", "gained", "pairs"), [(0.05, 0.05, 50), (0.1, 0.2, 100), (0.02, 0.0, 500), (0.0, 0.0, 20)])
def test_the_interval_of_mcnemar_covers_the_truth_as_often_as_it_says(lost: float, gained: float, pairs: int) -> None:
    dice = np.random.default_rng(1)
    tables = dice.multinomial(pairs, (lost, gained, 1 - lost - gained), size=1000)
    intervals = [mcnemar(int(table[0]), int(table[1]), pairs, 0.05) for table in tables]
    assert np.mean([found.lower <= gained - lost <= found.upper for found in intervals]) >= 0.94


def skewed(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).exponential(size=count) - 0.9


@pytest.mark.parametrize("count", [MIN_SAMPLES, 30, 300, MAX_RESAMPLED, MAX_RESAMPLED + 1, 50_000])
def test_the_bootstrap_agrees_with_the_paired_t_test_on_well_behaved_data(count: int) -> None:
    dice = np.random.default_rng(count)
    baseline = dice.normal(size=count)
    candidate = baseline + dice.normal(0.05, 1.0, size=count)
    reference = scipy.stats.ttest_rel(candidate, baseline)
    interval = reference.confidence_interval(0.95)
    found = paired_bootstrap(candidate - baseline, 0.05)
    width = interval.high - interval.low
    assert found.value == pytest.approx(np.mean(candidate - baseline))
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), abs=0.08 * width)
    assert found.p_value == pytest.approx(reference.pvalue, rel=0.25, abs=0.01)


def test_the_bootstrap_agrees_with_that_of_scipy_on_skewed_data() -> None:
    differences = skewed(400)
    reference = scipy.stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(7)
    )
    found = paired_bootstrap(differences, 0.05)
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found.lower == pytest.approx(reference.confidence_interval.low, abs=0.03 * width)
    assert found.upper == pytest.approx(reference.confidence_interval.high, abs=0.03 * width)


def test_the_bootstrap_of_many_groups_spreads_as_that_of_all_samples() -> None:
    differences = skewed(MAX_RESAMPLED * 3 + 1)
    found = paired_bootstrap(differences, 0.05)
    reach = 1.96 * differences.std() / np.sqrt(len(differences))
    assert (found.lower, found.upper) == pytest.approx((found.value - reach, found.value + reach), abs=0.1 * reach)


@pytest.mark.parametrize("count", [MIN_SAMPLES, pytest.param(50, marks=pytest.mark.slow)])
def test_the_bootstrap_of_few_samples_covers_the_truth_about_as_often_as_it_says(count: int) -> None:
    dice = np.random.default_rng(3)
    intervals = [paired_bootstrap(dice.normal(0.3, 1.0, size=count), 0.05) for _ in range(200)]
    assert 0.92 <= np.mean([found.lower <= 0.3 <= found.upper for found in intervals]) <= 0.98


def test_the_same_samples_have_the_same_bootstrap() -> None:
    assert paired_bootstrap(skewed(2 * MAX_RESAMPLED), 0.05) == paired_bootstrap(skewed(2 * MAX_RESAMPLED), 0.05)


@settings(deadline=None, max_examples=example_count(25))
@given(
    differences=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0, 1e100]), min_size=MIN_SAMPLES, max_size=40), alpha=ALPHAS
)
def test_the_p_value_of_the_bootstrap_and_its_interval_say_the_same(differences: list[float], alpha: float) -> None:
    found = paired_bootstrap(np.array(differences), alpha)
    assert found.lower <= found.upper
    assert 0 < found.p_value <= 1
    differing = sum(map(bool, differences))
    if found.lower > 0 or found.upper < 0:
        assert found.p_value <= max(alpha + 0.001, 2.0 ** (1 - differing))
    else:
        assert found.p_value >= alpha - 0.001


@pytest.mark.parametrize(
    ("difference", "scale", "size"), [(0.0, 0.5, 0.5), (0.0, 0.0, 0.0), (0.3 - 0.2, 0.5, 0.1), (-7.0, 9.0, 7.0)]
)
def test_differences_that_do_not_vary_are_those_of_mcnemar_s_test(difference: float, scale: float, size: float) -> None:
    found = paired_bootstrap(np.full(20, difference), 0.05, scale)
    reference = mcnemar(20 * (difference < 0), 20 * (difference > 0), 20, 0.05)
    assert found.value == pytest.approx(difference)
    assert (found.lower, found.upper) == pytest.approx((reference.lower * size, reference.upper * size))
    assert (found.p_value, found.detectable) == pytest.approx((reference.p_value, reference.detectable * size))


@pytest.mark.parametrize("differing", [1, 4, 5, 6, 12])
def test_few_pairs_that_differ_say_no_more_than_their_signs(differing: int) -> None:
    differences = np.zeros(1000)
    differences[:differing] = 0.5 + 0.1 * np.arange(differing)
    assert paired_bootstrap(differences, 0.05).p_value >= 2.0 ** (1 - differing)


@given(difference=st.floats(-5, 5), stderr=st.floats(0.01, 5), alpha=ALPHAS)
def test_the_z_test_is_that_of_a_normal_difference(difference: float, stderr: float, alpha: float) -> None:
    found = unpaired_z(difference, stderr, alpha)
    reference = scipy.stats.norm.interval(1 - alpha, loc=difference, scale=stderr)
    assert (found.lower, found.upper) == pytest.approx(reference)
    assert found.p_value == pytest.approx(2 * scipy.stats.norm.cdf(-abs(difference) / stderr))


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_multiplies_by_those_that_are_left_and_keeps_the_order(p_values: list[float]) -> None:
    multiplied = (min(1.0, p_value * (len(p_values) - rank)) for rank, p_value in enumerate(sorted(p_values)))
    adjusted = holm(p_values)
    assert sorted(adjusted) == list(itertools.accumulate(multiplied, max))
    assert [a for _, a in sorted(zip(p_values, adjusted, strict=True))] == sorted(adjusted)


def test_holm_agrees_with_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
