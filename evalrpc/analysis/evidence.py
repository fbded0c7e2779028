"""What is known about an entry of a suite when it is decided over. Light, so that it can be imported where SciPy can't."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evalrpc.v1.comparison_pb2 import MetricComparison, TestMethod
from evalrpc.v1.results_pb2 import MetricSelector
from evalrpc.v1.suites_pb2 import SuiteEntry


class Value(NamedTuple):
    """The confidence interval of a value, and how probable one at least as far from a threshold is if that is the true one."""

    lower: float
    upper: float
    p_value: float


class ValueTest(NamedTuple):
    """What the samples of a job say about the value of a metric."""

    method: "TestMethod.ValueType"
    sample_count: int
    cluster_count: int | None = None
    """None: the samples are independent."""
    found: Value | None = None
    """None with the method NONE. Without a threshold, the p-value says nothing."""
    lack: str = ""
    """Why there is no test; empty if there is one."""


class MetricName(NamedTuple):
    """What tells a metric of a job from all others."""

    model: str
    task: str
    metric: str
    filter: str

    @classmethod
    def of(cls, metric: MetricComparison) -> "MetricName":
        """Return the name of the candidate's metric."""
        return cls(metric.candidate_model, metric.task, metric.metric, metric.filter)


class Measured(NamedTuple):
    """The metrics of an entry that count."""

    metrics: Sequence[MetricComparison]
    """Tested against the baseline's; without a baseline they have the fields about the candidate alone."""
    missing: Sequence[MetricSelector] = ()
    """What the suite names and no job has."""
    value_tests: Mapping[MetricName, ValueTest] = {}
    """Of the metrics whose value is the mean of samples that are there."""


class Evidence(NamedTuple):
    """What the job of an entry says."""

    entry: SuiteEntry
    job_id: str
    baseline_job_id: str = ""
    """Empty: there is nothing to compare with."""
    measured: Measured | None = None
    """None: nothing, for the reason in `problem`."""
    problem: str = ""
    baseline_problem: str = ""
    """Why the baseline says nothing; empty if it does, or if there is none."""
    remark: str = ""
    """What whoever reads the reason should know besides."""
