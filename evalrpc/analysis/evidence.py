"""What is known about an entry of a suite when it is decided over. Light, so that it can be imported where SciPy can't."""

from collections.abc import Sequence
from typing import NamedTuple

from evalrpc.v1.comparison_pb2 import MetricComparison
from evalrpc.v1.results_pb2 import MetricSelector
from evalrpc.v1.suites_pb2 import SuiteEntry


class Measured(NamedTuple):
    """The metrics of an entry that count."""

    metrics: Sequence[MetricComparison]
    """Tested against the baseline's; without a baseline they have the fields about the candidate alone."""
    missing: Sequence[MetricSelector] = ()
    """What the suite names and no job has."""


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
