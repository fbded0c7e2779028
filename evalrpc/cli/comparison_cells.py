"""The numbers and the test of a comparison, as the cells of a table."""

from typing import Final

from evalrpc.cli import gates
from evalrpc.cli.tables import Cell
from evalrpc.v1.comparison_pb2 import MetricComparison, NoiseSource, TestMethod

_TESTS: Final = {
    TestMethod.TEST_METHOD_MCNEMAR: "McNemar",
    TestMethod.TEST_METHOD_PAIRED_BOOTSTRAP: "bootstrap",
    TestMethod.TEST_METHOD_UNPAIRED_Z: "z-test",
    TestMethod.TEST_METHOD_CLUSTERED_T: "clustered t-test",
    TestMethod.TEST_METHOD_ONE_SAMPLE_Z: "z-test",
    TestMethod.TEST_METHOD_ONE_SAMPLE_T: "t-test",
    TestMethod.TEST_METHOD_CLOPPER_PEARSON: "Clopper-Pearson",
    TestMethod.TEST_METHOD_NONE: "none",
}
_NOISE: Final = {NoiseSource.NOISE_SOURCE_ANSWERS: "the answers", NoiseSource.NOISE_SOURCE_DOCUMENTS: "the documents"}


def method_name(method: "TestMethod.ValueType") -> str:
    """Return the name of a test; the number for one of a newer server."""
    return _TESTS.get(method, f"method {method:d}")


def comparison_numbers(metric: MetricComparison) -> tuple[Cell, ...]:
    """Return both values, the difference, its interval, the p-value, and the detectable difference."""
    p_value = metric.adjusted_p_value if metric.HasField("adjusted_p_value") else metric.p_value
    return (
        metric.baseline_value if metric.HasField("baseline_value") else None,
        metric.candidate_value if metric.HasField("candidate_value") else None,
        metric.difference if metric.HasField("difference") else None,
        f"[{metric.interval_lower:+.4f}, {metric.interval_upper:+.4f}]" if metric.HasField("p_value") else None,
        p_value if metric.HasField("p_value") else None,
        metric.detectable_difference if metric.HasField("detectable_difference") else None,
    )


def test_words(metric: MetricComparison) -> str:
    """Say which test was made of what."""
    pairs = f"{metric.paired_sample_count} pairs" if metric.paired_sample_count else ""
    unpaired = f"{metric.unpaired_sample_count} unpaired" if metric.unpaired_sample_count else ""
    clusters = f"{metric.cluster_count} clusters by {metric.cluster_field}" if metric.cluster_field else ""
    repeats = f"noise mostly of {_NOISE[metric.larger_noise]}" if metric.larger_noise in _NOISE else ""
    parts = (method_name(metric.method), pairs, unpaired, clusters, repeats, gates.bad_answers(metric), metric.note)
    return ", ".join(filter(None, parts))
