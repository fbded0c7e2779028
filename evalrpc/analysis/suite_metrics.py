"""The metrics of an entry of a suite: which count, how they compare with the baseline's, and what the model answered.

Loads NumPy and SciPy, as `comparison` does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from evalrpc.analysis.comparison import compare
from evalrpc.analysis.evidence import Measured, MetricName, ValueTest
from evalrpc.analysis.job_samples import JobSamples, key_of, keys_of
from evalrpc.analysis.matching import Matching, line_up, require_results
from evalrpc.analysis.sample_fields import ClusterField
from evalrpc.analysis.sample_values import NO_VALUES, SampleValues
from evalrpc.analysis.value_tests import value_test
from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness
from evalrpc.jobs.metric_selectors import Parts, parts_of, parts_taking
from evalrpc.reading.job_results import JobResults
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, MetricComparison
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import MetricSelector
from evalrpc.v1.suites_pb2 import Suite, SuiteEntry

MAX_METRICS: Final = 1000
"""How many metrics of an entry may count, so that a decision of many entries stays small."""


def measure(
    suite: Suite,
    entry: SuiteEntry,
    candidate: JobInfo,
    baseline: JobInfo | None,
    harnesses: Mapping[str, Harness],
    data_dir: Path,
    budget: ReadBudget,
) -> Measured:
    """Return the metrics of an entry that count. Blocks on the disk, and may take as long as a comparison.

    Raises InvalidRequestError for too many of them, and what `evalrpc.analysis.comparison.compare` does.
    """
    require_results(candidate)
    results = JobResults(data_dir)
    selectors, missing = _chosen(entry, filter(None, (candidate, baseline)), results, budget)
    if not selectors:
        return Measured((), missing)
    tests = _ValueTests(entry, suite.alpha)
    if baseline is None:
        metrics = _measured_alone(selectors, candidate, results, budget)
    else:
        call = CompareJobsRequest(metrics=selectors, alpha=suite.alpha, cluster_by=entry.cluster_by)
        (comparison,) = compare(call, baseline, [candidate], harnesses, data_dir, budget, tests.take).candidates
        metrics = list(comparison.metrics)
    _require_few(metrics)
    unread = [metric for metric in metrics if metric.HasField("candidate_value") and not metric.HasField("difference")]
    samples = JobSamples(harnesses, data_dir, budget, ClusterField(entry.cluster_by))
    _read_samples(unread, candidate, samples, tests)
    if baseline is None:
        samples.require_clusters()
    return Measured(metrics, missing, tests.found)


class _ValueTests:
    """Tests the values of an entry's metrics, as their samples are read."""

    def __init__(self, entry: SuiteEntry, alpha: float) -> None:
        self._threshold = entry.threshold
        self._alpha = alpha
        self.found: dict[MetricName, ValueTest] = {}

    def take(self, metric: MetricComparison, samples: SampleValues) -> None:
        """Test a metric."""
        test = value_test(metric.candidate_value, samples, self._threshold, self._alpha)
        if test is not None:
            self.found[MetricName.of(metric)] = test


def _chosen(
    entry: SuiteEntry, jobs: Iterable[JobInfo], results: JobResults, budget: ReadBudget
) -> tuple[list[MetricSelector], list[MetricSelector]]:
    """Return the selectors of an entry that take some metric of the jobs, and those that take none.

    If no metric is of a task that the entry names, a name stands for several tasks: then the selectors take those of any.
    """
    taken: set[Parts] = set()
    for job in jobs:
        for row in results.metrics(job, budget):
            taken |= parts_taking(row.metric)
    selectors = list(_of_tasks(entry))
    if taken and taken.isdisjoint(map(parts_of, selectors)):
        selectors = list(entry.metrics) or [MetricSelector()]
    chosen = [selector for selector in selectors if parts_of(selector) in taken]
    return chosen, [selector for selector in selectors if parts_of(selector) not in taken]


def _of_tasks(entry: SuiteEntry) -> Iterator[MetricSelector]:
    """Yield what an entry selects, for each of its tasks if that names none."""
    for selector in entry.metrics or [MetricSelector()]:
        for task in [selector.task] if selector.task else entry.request.tasks:
            yield MetricSelector(task=task, metric=selector.metric, filter=selector.filter)


def _measured_alone(
    selectors: Sequence[MetricSelector], candidate: JobInfo, results: JobResults, budget: ReadBudget
) -> list[MetricComparison]:
    matching = Matching(selectors, budget)
    matching.add(line_up(JobInfo(), candidate, results, budget))
    matching.require_size()
    return matching.asked_for[0]


def _read_samples(metrics: Sequence[MetricComparison], candidate: JobInfo, samples: JobSamples, tests: _ValueTests) -> None:
    """Count the answers and test the values, as is done for metrics that both jobs have while these are compared."""
    for (model, task), of_task in groupby(metrics, key=lambda metric: (metric.candidate_model, metric.task)):
        same_task = list(of_task)
        found = samples.read(candidate, model, task, keys_of(same_task))
        for metric in same_task:
            if found.answers is not None:
                metric.candidate_answers.CopyFrom(found.answers)
            tests.take(metric, found.values.get(key_of(metric), NO_VALUES))


def _require_few(metrics: Sequence[MetricComparison]) -> None:
    if len(metrics) > MAX_METRICS:
        raise InvalidRequestError(
            violations=[FieldViolation("metrics", f"the entry takes {len(metrics)} metrics; at most {MAX_METRICS} may count")]
        )
