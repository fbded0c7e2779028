"""The interval of a value and its test against a threshold, beside SciPy, statsmodels, and simulated truths."""

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evalrpc.analysis.evidence import Value, ValueTest
from evalrpc.analysis.sample_values import SampleValues, nothing_said
from evalrpc.analysis.significance import clopper_pearson
from evalrpc.analysis.value_tests import value_test
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_CLOPPER_PEARSON,
    TEST_METHOD_CLUSTERED_T,
    TEST_METHOD_NONE,
    TEST_METHOD_ONE_SAMPLE_T,
)

ALPHAS = st.sampled_from([0.001, 0.01, 0.05, 0.2])


def samples(values: NDArray[np.float64], clusters: NDArray[np.int64] | None = None) -> SampleValues:
    ids = np.arange(len(values))
    return SampleValues(ids, values, nothing_said(len(ids)), np.empty(0, np.int64) if clusters is None else clusters)


def outcome(values: NDArray[np.float64], threshold: float = 0.5, clusters: NDArray[np.int64] | None = None) -> ValueTest:
    found = value_test(float(values.mean()), samples(values, clusters), threshold, 0.05)
    assert found is not None
    return found


def interval(values: NDArray[np.float64], clusters: NDArray[np.int64] | None = None, threshold: float = 0.5) -> Value:
    found = outcome(values, threshold, clusters).found
    assert found is not None
    return found


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 500), share=st.floats(0, 1), threshold=st.floats(0.001, 0.999), alpha=ALPHAS)
def test_a_share_has_the_exact_interval_and_p_value_of_scipy_and_statsmodels(
    count: int, share: float, threshold: float, alpha: float
) -> None:
    hits = round(share * count)
    found = clopper_pearson(hits, count, threshold, alpha)
    reference = scipy.stats.binomtest(hits, count, threshold).proportion_ci(1 - alpha, "exact")
    assert (found.lower, found.upper) == pytest.approx((reference.low, reference.high), rel=1e-9, abs=1e-12)
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    assert (found.lower, found.upper) == pytest.approx(proportion.proportion_confint(hits, count, alpha, "beta"), rel=1e-9)
    tails = (scipy.stats.binomtest(hits, count, threshold, alternative=side).pvalue for side in ("less", "greater"))
    assert found.p_value == pytest.approx(min(1, 2 * min(tails)), rel=1e-9, abs=1e-12)


@given(count=st.integers(1, 300), share=st.floats(0, 1), threshold=st.floats(-1, 2), alpha=ALPHAS)
def test_the_p_value_of_a_share_and_its_interval_say_the_same(count: int, share: float, threshold: float, alpha: float) -> None:
    found = clopper_pearson(round(share * count), count, threshold, alpha)
    if found.lower + 1e-9 < threshold < found.upper - 1e-9:
        assert found.p_value >= alpha
    elif not found.lower - 1e-9 <= threshold <= found.upper + 1e-9:
        assert found.p_value <= alpha


def test_samples_that_are_all_right_have_a_lower_bound() -> None:
    found = outcome(np.ones(100), 0.9)
    assert (found.method, found.sample_count, found.cluster_count) == (TEST_METHOD_CLOPPER_PEARSON, 100, None)
    assert found.found == pytest.approx(Value(0.025**0.01, 1.0, 2 * 0.9**100))


def test_clustered_samples_that_are_all_right_count_as_one_per_cluster() -> None:
    assert interval(np.ones(100), np.repeat(np.arange(1, 21), 5)) == interval(np.ones(20))


def test_clusters_without_a_correlation_change_little_and_never_for_the_surer() -> None:
    values = np.random.default_rng(4).binomial(1, 0.8, 1000).astype(float)
    clustered, independent = interval(values, np.repeat(np.arange(1, 101), 10)), interval(values)
    assert clustered.lower <= independent.lower < independent.upper <= clustered.upper
    assert clustered.upper - clustered.lower < 1.2 * (independent.upper - independent.lower)


def test_clusters_that_are_the_same_inside_count_as_one_sample_each() -> None:
    of_clusters = np.random.default_rng(5).binomial(1, 0.8, 200).astype(float)
    clustered = interval(np.repeat(of_clusters, 10), np.repeat(np.arange(1, 201), 10))
    assert (clustered.lower, clustered.upper) == pytest.approx(interval(of_clusters)[:2], abs=0.002)


@pytest.mark.parametrize("share", [0.7, 0.95])
def test_the_interval_of_a_clustered_share_covers_the_truth_as_often_as_it_says(share: float) -> None:
    dice, clusters = np.random.default_rng(6), np.repeat(np.arange(1, 41), 10)
    chances = dice.beta(share * 9, (1 - share) * 9, size=(300, 40)).repeat(10, axis=1)  # a correlation of 0.1
    found = [interval((dice.random(400) < each).astype(float), clusters) for each in chances]
    assert np.mean([each.lower <= share <= each.upper for each in found]) >= 0.93


def test_other_numbers_have_the_t_test_of_scipy() -> None:
    values = np.random.default_rng(7).normal(0.6, 0.2, 30)
    found = outcome(values)
    reference = scipy.stats.ttest_1samp(values, 0.5)
    bounds = reference.confidence_interval(0.95)
    assert found.method == TEST_METHOD_ONE_SAMPLE_T
    assert found.found == pytest.approx((bounds.low, bounds.high, reference.pvalue), rel=1e-9)


def test_other_numbers_in_clusters_of_one_size_have_the_t_test_of_the_clusters() -> None:
    values = np.random.default_rng(8).normal(0.6, 0.2, 60)
    found = outcome(values, clusters=np.repeat(np.arange(1, 13), 5))
    reference = scipy.stats.ttest_1samp(values.reshape(12, 5).mean(axis=1), 0.5)
    assert (found.method, found.cluster_count) == (TEST_METHOD_CLUSTERED_T, 12)
    assert found.found is not None
    assert found.found.p_value == pytest.approx(reference.pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "clusters", "lack"),
    [
        (np.array([0.5, 0.4]), None, "of 2 samples only"),
        (np.full(50, 0.5), None, "all 50 samples have the same value"),
        (np.array([0.5, 0.4] * 10), np.repeat(np.arange(1, 5), 5), "of 4 clusters only"),
        (np.ones(20), np.repeat(np.arange(1, 5), 5), "of 4 clusters only"),
    ],
)
def test_what_says_too_little_is_not_tested(values: NDArray[np.float64], clusters: NDArray[np.int64] | None, lack: str) -> None:
    found = outcome(values, clusters=clusters)
    assert (found.method, found.found) == (TEST_METHOD_NONE, None)
    assert lack in found.lack


def test_samples_of_which_the_value_is_not_the_mean_say_nothing() -> None:
    assert value_test(0.7, samples(np.ones(50)), 0.5, 0.05) is None
