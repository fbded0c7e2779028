"""The interval of a metric's value, and its test against a threshold, from the samples of the job alone. Pure.

Values of 0 and 1 have the exact interval of Clopper and Pearson. If they come in clusters, it is that of so many independent
samples as the clusters are worth (Korn and Graubard 1998), so that it stays within 0 and 1, and says something also where all
values are the same. Other values have a t-test.
"""

import numpy as np
from numpy.typing import NDArray

from evalrpc.analysis.clusters import MIN_CLUSTERS, clustered_t
from evalrpc.analysis.distributions import t_quantile
from evalrpc.analysis.evidence import Value, ValueTest
from evalrpc.analysis.sample_values import SampleValues, clusters_of, pair
from evalrpc.analysis.significance import MIN_SAMPLES, Difference, clopper_pearson
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_CLOPPER_PEARSON,
    TEST_METHOD_CLUSTERED_T,
    TEST_METHOD_NONE,
    TEST_METHOD_ONE_SAMPLE_T,
    TestMethod,
)


def value_test(value: float, samples: SampleValues, threshold: float, alpha: float) -> ValueTest | None:
    """Test the mean of samples against a threshold; None if the metric's value is not their mean."""
    if not samples.mean_is(value):
        return None
    count, clusters = len(samples.values), _clusters(samples)
    cluster_count = None if clusters is None else int(clusters.max()) + 1
    if cluster_count is not None and cluster_count < MIN_CLUSTERS:
        lack = f"its samples are of {cluster_count} clusters only, at least {MIN_CLUSTERS} are needed"
        return ValueTest(TEST_METHOD_NONE, count, cluster_count, lack=lack)
    if np.all((samples.values == 0) | (samples.values == 1)):
        method, found = TEST_METHOD_CLOPPER_PEARSON, _share(samples.values, clusters, threshold, alpha)
    elif count < MIN_SAMPLES:
        lack = f"it is of {count} samples only, at least {MIN_SAMPLES} are needed"
        return ValueTest(TEST_METHOD_NONE, count, cluster_count, lack=lack)
    elif np.ptp(samples.values) == 0:
        lack = f"all {count} samples have the same value, which says nothing about how they vary"
        return ValueTest(TEST_METHOD_NONE, count, cluster_count, lack=lack)
    else:
        method, found = _mean(samples.values, clusters, threshold, alpha)
    return ValueTest(method, count, cluster_count, found)


def _clusters(samples: SampleValues) -> NDArray[np.int64] | None:
    """Return the clusters of samples, numbered from 0 on; None if they are independent."""
    return clusters_of(pair(samples, samples), samples, samples) if len(samples.clusters) else None


def _share(values: NDArray[np.float64], clusters: NDArray[np.int64] | None, threshold: float, alpha: float) -> Value:
    """Test the share of ones. Where all are the same, nothing is known about clusters, so each counts as one sample."""
    count, share = float(len(values)), float(values.mean())
    if clusters is not None and share in (0.0, 1.0):
        count = float(clusters.max()) + 1
    elif clusters is not None:
        found = clustered_t(values, clusters, alpha).difference
        reach = found.upper - found.value
        count = min(count, share * (1 - share) * (t_quantile(alpha / 2, count - 1) / reach) ** 2)
    return clopper_pearson(share * count, count, threshold, alpha)


def _mean(
    values: NDArray[np.float64], clusters: NDArray[np.int64] | None, threshold: float, alpha: float
) -> tuple["TestMethod.ValueType", Value]:
    """Test the mean of numbers. Without clusters each sample is one, with which the test is Student's."""
    method = TEST_METHOD_ONE_SAMPLE_T if clusters is None else TEST_METHOD_CLUSTERED_T
    groups = np.arange(len(values)) if clusters is None else clusters
    found: Difference = clustered_t(values - threshold, groups, alpha).difference
    return method, Value(found.lower + threshold, found.upper + threshold, found.p_value)
