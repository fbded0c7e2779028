"""Power: figures worked elsewhere, statsmodels, the solution of each formula in the other, and the exact power beside them."""

import math

import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.analysis.power import Design, detectable_mean, detectable_share, required_pairs, required_repeats, required_samples

USUAL = Design(0.05, 0.8)
DESIGNS = st.builds(Design, st.sampled_from([0.001, 0.01, 0.05, 0.2]), st.sampled_from([0.5, 0.8, 0.9, 0.99]))


@pytest.mark.parametrize(("difference", "pairs"), [(0.01, 7847), (0.02, 1960)])
def test_at_ten_per_cent_differing_pairs_these_many_are_needed(difference: float, pairs: int) -> None:
    assert math.ceil(required_pairs(0.1, difference, USUAL)) == pairs


@settings(deadline=None, max_examples=50)
@given(ratio=st.floats(0.01, 1), share=st.floats(0.01, 1), design=DESIGNS)
def test_the_pairs_are_those_of_statsmodels(ratio: float, share: float, design: Design) -> None:
    power = pytest.importorskip("statsmodels.stats.power")
    difference = ratio * share
    expected = power.normal_sample_size_one_tail(
        difference, design.power, design.alpha / 2, math.sqrt(ratio), math.sqrt(ratio - difference**2)
    )
    assert required_pairs(ratio, difference, design) == pytest.approx(float(expected), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(variance=st.floats(0.01, 10), difference=st.floats(0.001, 1), design=DESIGNS)
def test_the_samples_are_those_of_statsmodels(variance: float, difference: float, design: Design) -> None:
    power = pytest.importorskip("statsmodels.stats.power")
    expected = power.normal_sample_size_one_tail(difference, design.power, design.alpha / 2, math.sqrt(variance))
    assert required_samples(variance, difference, design) == pytest.approx(float(expected), rel=1e-9)


@given(ratio=st.floats(0.01, 1), share=st.floats(0.01, 0.9), design=DESIGNS)
def test_so_many_pairs_can_see_what_they_are_meant_for(ratio: float, share: float, design: Design) -> None:
    pairs = required_pairs(ratio, ratio * share, design)
    assert detectable_share(ratio, pairs, design) == pytest.approx(ratio * share, rel=1e-6)


def test_what_a_mean_can_see_is_the_sum_of_two_quantiles_of_its_standard_error() -> None:
    assert detectable_mean(0.01, math.inf, USUAL) == pytest.approx(
        0.01 * (scipy.stats.norm.isf(0.025) + scipy.stats.norm.ppf(0.8))
    )
    assert detectable_mean(0.01, 9, USUAL) == pytest.approx(0.01 * (scipy.stats.t.isf(0.025, 9) + scipy.stats.t.ppf(0.8, 9)))


@given(repeats=st.integers(1, 50), documents=st.floats(0, 1), answers=st.floats(0.01, 1))
def test_repeats_bring_the_variance_down_to_what_is_allowed(repeats: int, documents: float, answers: float) -> None:
    difference = sum(USUAL.quantiles) * math.sqrt((documents + answers / repeats) / 100)
    assert required_repeats(answers, documents, 100, difference, USUAL) == pytest.approx(repeats, rel=1e-6)
    hopeless = sum(USUAL.quantiles) * math.sqrt(documents / 100)
    if documents:
        assert required_repeats(answers, documents, 100, hopeless * 0.999, USUAL) is None


def test_mcnemar_sees_what_it_says_about_as_often_as_it_says() -> None:
    """The exact power, summed over the number of pairs that differ, is a little below the 80 % of the approximation."""
    pairs, ratio = 1960, 0.1
    difference = detectable_share(ratio, pairs, USUAL)
    gain = (1 + difference / ratio) / 2
    power = 0.0
    for differing in range(110, 290):
        limit = scipy.stats.binom.ppf(0.025, differing, 0.5)
        limit -= scipy.stats.binom.cdf(limit, differing, 0.5) > 0.025
        hit = scipy.stats.binom.cdf(limit, differing, gain) + scipy.stats.binom.sf(differing - limit - 1, differing, gain)
        power += scipy.stats.binom.pmf(differing, pairs, ratio) * hit
    assert 0.76 < power < 0.81
