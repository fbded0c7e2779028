"""The clustered test against matrices written out, SciPy, and statsmodels where it has the same formula."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evalrpc.analysis.clusters import clustered_t, cr2_variance, degrees_of_freedom, intra_cluster_correlation
from evalrpc.analysis.sample_fields import ClusterField
from evalrpc.analysis.sample_values import MetricKey, clusters_of, pair, read_samples
from evalrpc.analysis.significance import mcnemar

EXACT = 1e-9
SIZES = st.lists(st.integers(1, 9), min_size=2, max_size=8)


def clustered(sizes: list[int], seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Differences with an effect of their cluster, and their clusters."""
    dice = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    return dice.normal(0.2, 1.0, len(clusters)) + dice.normal(size=len(sizes))[clusters], clusters


def cr2_of_matrices(differences: NDArray[np.float64], clusters: NDArray[np.int64]) -> float:
    """The definition of Bell and McCaffrey: residuals of each cluster times the inverse square root of I - H."""
    count = len(differences)
    design = np.ones((count, 1))
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    residuals = differences - hat @ differences
    total = 0.0
    for cluster in np.unique(clusters):
        own = clusters == cluster
        values, vectors = np.linalg.eigh(np.eye(own.sum()) - hat[np.ix_(own, own)])
        adjusted = vectors @ np.diag(values**-0.5) @ vectors.T @ residuals[own]
        total += float((design[own].T @ adjusted).item()) ** 2
    return total / count**2


def freedom_of_matrices(sizes: list[int], correlation: float) -> float:
    """The definition of Imbens and Kolesár: squared trace over squared norm of G' Omega G."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    count = len(clusters)
    omega = (1 - correlation) * np.eye(count) + correlation * (clusters[:, None] == clusters)
    centred = np.eye(count) - np.ones((count, count)) / count
    columns = [centred @ np.where(clusters == g, 1 / math.sqrt(1 - n / count), 0.0) / count for g, n in enumerate(sizes)]
    matrix = np.array(columns) @ omega @ np.array(columns).T
    return float(np.trace(matrix) ** 2 / np.sum(matrix**2))


@given(sizes=SIZES, seed=st.integers(0, 99))
def test_the_variance_is_that_of_its_definition(sizes: list[int], seed: int) -> None:
    differences, clusters = clustered(sizes, seed)
    sums = np.asarray(np.bincount(clusters, weights=differences - differences.mean()), np.float64)
    expected = cr2_of_matrices(differences, clusters)
    assert cr2_variance(np.array(sizes), sums) == pytest.approx(expected, rel=EXACT)


@given(sizes=SIZES, correlation=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_degrees_of_freedom_are_those_of_their_definition(sizes: list[int], correlation: float) -> None:
    assert degrees_of_freedom(np.array(sizes), correlation) == pytest.approx(freedom_of_matrices(sizes, correlation), rel=EXACT)


@given(size=st.integers(1, 50), count=st.integers(2, 200), correlation=st.sampled_from([0.0, 0.3, 1.0]))
def test_clusters_of_one_size_have_their_number_minus_one(size: int, count: int, correlation: float) -> None:
    assert degrees_of_freedom(np.full(count, size), correlation) == pytest.approx(count - 1, rel=EXACT)


@given(size=st.integers(1, 6), count=st.integers(5, 12), seed=st.integers(0, 99), alpha=st.sampled_from([0.01, 0.05, 0.2]))
def test_of_clusters_of_one_size_it_is_the_t_test_of_their_means(size: int, count: int, seed: int, alpha: float) -> None:
    differences, clusters = clustered([size] * count, seed)
    found = clustered_t(differences, clusters, alpha).difference
    reference = scipy.stats.ttest_1samp(differences.reshape(count, size).mean(axis=1), 0)
    interval = reference.confidence_interval(1 - alpha)
    assert found.p_value == pytest.approx(reference.pvalue, rel=EXACT)
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), rel=EXACT)


@settings(deadline=None, max_examples=50)
@given(count=st.integers(5, 12), size=st.integers(2, 6), seed=st.integers(0, 99))
def test_of_clusters_of_one_size_statsmodels_says_the_same(count: int, size: int, seed: int) -> None:
    ols = pytest.importorskip("statsmodels.api").OLS
    differences, clusters = clustered([size] * count, seed)
    fit = ols(differences, np.ones(len(differences))).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    found = clustered_t(differences, clusters, 0.05).difference
    # Its CR1 has another correction for the size of the sample, (n - 1) / (n - 1) here, so only that of the clusters is left.
    assert found.standard_error == pytest.approx(float(fit.bse[0]), rel=EXACT)
    assert found.p_value == pytest.approx(float(fit.pvalues[0]), rel=1e-7, abs=EXACT)
    assert (found.lower, found.upper) == pytest.approx(tuple(fit.conf_int(0.05)[0]), rel=EXACT)


@given(sizes=st.lists(st.integers(1, 9), min_size=5, max_size=12), seed=st.integers(0, 99))
def test_the_design_effect_is_the_ratio_of_both_variances(sizes: list[int], seed: int) -> None:
    differences, clusters = clustered(sizes, seed)
    found = clustered_t(differences, clusters, 0.05)
    alone = clustered_t(differences, np.arange(len(differences)), 0.05)
    assert found.design_effect == pytest.approx((found.difference.standard_error / alone.difference.standard_error) ** 2)
    assert alone.difference.p_value == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, rel=EXACT)
    assert alone.design_effect == pytest.approx(1)


def test_a_design_effect_says_how_values_correlate() -> None:
    sizes = np.full(10, 20)
    assert intra_cluster_correlation(sizes, 1 + 19 * 0.3) == pytest.approx(0.3)
    assert intra_cluster_correlation(sizes, 0.7) == 0
    assert intra_cluster_correlation(sizes, 100.0) == 1
    assert intra_cluster_correlation(np.ones(10, np.int64), 1.0) == 0


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_where_nothing_varies_each_cluster_counts_as_one_pair(value: float) -> None:
    differences, clusters = np.full(100, value), np.repeat(np.arange(10), 10)
    found = clustered_t(differences, clusters, 0.05, scale=1.0)
    reference = mcnemar(10 if value < 0 else 0, 10 if value > 0 else 0, 10, 0.05)
    assert found.difference[:4] == pytest.approx(reference[:4])
    assert found.design_effect is None
    same = clustered_t(differences * 0.25, clusters, 0.05, scale=0.5)
    assert same.difference.value == value * 0.25
    assert same.difference.p_value == pytest.approx(reference.p_value)
    size = 0.25 if value else 0.5
    assert (same.difference.lower, same.difference.upper) == pytest.approx((reference.lower * size, reference.upper * size))


def test_clusters_that_are_equal_by_chance_are_not_certain() -> None:
    differences = np.array([1.0, -1.0] * 10)
    found = clustered_t(differences, np.repeat(np.arange(10), 2), 0.05, scale=1.0).difference
    assert found.lower < 0 < found.upper
    assert found.p_value == 1


# The clusters of samples

ACC = MetricKey("acc", "none")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"passage": "a"}, "passage"),
        ({"doc": {"passage": "a"}}, "passage"),
        ({"metadata": {"passage": "a"}}, "passage"),
        ({"doc": {"passage": "a"}}, "doc.passage"),
        ({"doc": {"source": {"page": 7}}}, "source.page"),
        ({"doc": {"source": {"page": [7, 8]}}}, "doc.source.page"),
        ({"a.b": 0}, "a.b"),
        ({"cluster": "a"}, ""),
    ],
)
def test_a_field_is_found_in_the_row_its_document_and_its_metadata(row: dict[str, object], field: str) -> None:
    assert ClusterField(field).code(row) != 0
    assert ClusterField("other").code(row) == 0


@pytest.mark.parametrize("row", [{}, {"cluster": None}, {"doc": {"cluster": "a"}}, {"doc": "text", "metadata": None}])
def test_only_what_a_harness_says_itself_is_a_cluster_unasked(row: dict[str, object]) -> None:
    assert ClusterField("").code(row) == 0


@given(names=st.lists(st.sampled_from(["a", "b", 1, None]), min_size=1, max_size=12))
def test_samples_without_a_cluster_are_one_each_and_numbers_have_no_gaps(names: list[object]) -> None:
    rows = [{"doc_id": n, "acc": 1, "g": name} for n, name in enumerate(names)]
    values = read_samples(rows, [ACC], ClusterField("g")).values[ACC]
    pairs = pair(values, values)
    if any(names):
        found = clusters_of(pairs, values, values).tolist()
        for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
            assert (found[i] == found[j]) == (a is not None and a == b)
        assert sorted(set(found)) == list(range(len(set(found))))


def test_the_numbers_of_clusters_do_not_depend_on_the_process() -> None:
    program = (
        "from evalrpc.analysis.sample_values import *; from evalrpc.analysis.sample_fields import ClusterField;"
        "rows = [{'doc_id': n, 'acc': 1, 'g': 'xyz'[n * n % 3] + str(n % 4) if n % 5 else None} for n in range(40)];"
        "key = MetricKey('acc', 'none'); found = read_samples(rows, [key], ClusterField('g')).values[key];"
        "print(clusters_of(pair(found, found), found, found).tolist())"
    )
    outputs = {
        subprocess.run(
            (sys.executable, "-c", program), env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_repeats_are_averaged_and_their_variance_is_kept(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    by_id = [data.draw(st.lists(st.integers(-5, 5), min_size=count, max_size=count)) for count in counts]
    rows = [{"doc_id": n, "acc": value} for n, values in enumerate(by_id) for value in values]
    found = read_samples(rows, [ACC]).values[ACC]
    assert found.values.tolist() == pytest.approx([np.mean(values) for values in by_id])
    if max(counts) == 1:
        assert found.repeats is None
    else:
        assert found.repeats is not None
        assert found.repeats.counts.tolist() == counts
        expected = [np.var(values, ddof=1) if len(values) > 1 else math.nan for values in by_id]
        assert found.repeats.variances.tolist() == pytest.approx(expected, nan_ok=True)
