"""Comparison of jobs with a baseline: match their metrics, test each difference, and judge it.

This module and its imports load NumPy and SciPy, 90 MB of memory that a server which compares nothing should not pay for: so
only the first comparison imports it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from evalrpc.analysis import significance, verdicts
from evalrpc.analysis.clusters import MIN_CLUSTERS, clustered_t
from evalrpc.analysis.job_samples import JobSamples, by_task, key_of, keys_of
from evalrpc.analysis.matching import Matching, has_chat_template, limit_difference, line_up, require_results, require_size
from evalrpc.analysis.noise import Noise, noise_of
from evalrpc.analysis.sample_fields import ClusterField
from evalrpc.analysis.sample_values import NO_VALUES, Pairs, SampleValues, TaskSamples, clusters_of, pair
from evalrpc.analysis.significance import MIN_SAMPLES, Difference
from evalrpc.errors import DefinitionsDifferError
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness
from evalrpc.reading.job_results import JobResults
from evalrpc.v1.comparison_pb2 import (
    NOISE_SOURCE_ANSWERS,
    NOISE_SOURCE_DOCUMENTS,
    TEST_METHOD_CLUSTERED_T,
    TEST_METHOD_MCNEMAR,
    TEST_METHOD_NONE,
    TEST_METHOD_PAIRED_BOOTSTRAP,
    TEST_METHOD_UNPAIRED_Z,
    CompareJobsRequest,
    CompareJobsResponse,
    JobComparison,
    MetricComparison,
)
from evalrpc.v1.jobs_pb2 import JobInfo

DEFAULT_ALPHA: Final = 0.05

Observer = Callable[[MetricComparison, SampleValues], None]
"""Gets a metric and the candidate's samples of it, which need not be read again then."""


def compare(
    call: CompareJobsRequest,
    baseline: JobInfo,
    candidates: Sequence[JobInfo],
    harnesses: Mapping[str, Harness],
    data_dir: Path,
    budget: ReadBudget,
    observe: Observer = lambda _, __: None,
) -> CompareJobsResponse:
    """Compare the candidates with the baseline. Blocks on the disk, and takes seconds if there are many samples: with every row
    and metric it may raise what `ReadBudget.spend` does. `observe` is called with each metric that both have.

    Only the samples of one task of the baseline and of one candidate are in memory at a time, and no more metrics than the
    answer may have. Raises NoResultsError, MetricNotFoundError, InvalidRequestError for an answer that would be too large or
    a field of samples that there is not, FileUnavailableError and FileUnreadableError.
    """
    for job in (baseline, *candidates):
        require_results(job)
    alpha = call.alpha if call.HasField("alpha") else DEFAULT_ALPHA
    results = JobResults(data_dir)
    matching = Matching(call.metrics, budget, [threshold.selector for threshold in call.metric_thresholds])
    for candidate in candidates:
        matching.add(line_up(baseline, candidate, results, budget))
    matching.require_known()
    matching.require_size()
    asked_for = matching.asked_for
    clusters = ClusterField(call.cluster_by)
    samples = JobSamples(harnesses, data_dir, budget, clusters)
    _Tester(baseline, samples, clusters, budget, alpha, observe).test_all(zip(candidates, asked_for, strict=True))
    samples.require_clusters()
    if call.strict:
        _require_same_definitions(chain.from_iterable(asked_for))
    verdicts.judge(call, list(chain.from_iterable(asked_for)), alpha)
    comparisons = [
        JobComparison(candidate_job_id=job.job_id, metrics=metrics) for job, metrics in zip(candidates, asked_for, strict=True)
    ]
    response = CompareJobsResponse(candidates=comparisons, confidence_level=1 - alpha)
    require_size(response.ByteSize(), sum(map(len, asked_for)), len(candidates), is_exact=True)
    return response


def _require_same_definitions(metrics: Iterable[MetricComparison]) -> None:
    different = [metric for metric in metrics if metric.definition_differences]
    if different:
        first = different[0]
        raise DefinitionsDifferError(
            f"{len(different)} of the metrics are of different questions, such as {first.task}/{first.metric}: "
            f"{', '.join(first.definition_differences)}; compare without `strict`, or select others"
        )


class _Tester:
    """Tests the metrics of one comparison."""

    def __init__(
        self,
        baseline: JobInfo,
        samples: JobSamples,
        clusters: ClusterField,
        budget: ReadBudget,
        alpha: float,
        observe: Observer,
    ) -> None:
        self._baseline = baseline
        self._samples = samples
        self._clusters = clusters
        self._budget = budget
        self._alpha = alpha
        self._observe = observe

    def test_all(self, lined_up: Iterable[tuple[JobInfo, Sequence[MetricComparison]]]) -> None:
        """Test the metrics that both sides have a value of, task by task, so that each file is read once."""
        pairs = [(job, metric) for job, metrics in lined_up for metric in metrics if _set_difference(metric)]
        for model, task, of_candidates in by_task(pairs):
            wanted = keys_of(metric for _, metrics in of_candidates for metric in metrics)
            ours = self._samples.read(self._baseline, model, task, wanted)
            for candidate, metrics in of_candidates:
                their_model = metrics[0].candidate_model
                theirs = self._samples.read(candidate, their_model, task, keys_of(metrics))
                documents = _pairs_of_any(ours, theirs)
                words_count = not any(map(has_chat_template, (self._baseline.results[model], candidate.results[their_model])))
                for metric in metrics:
                    self._budget.spend()
                    test = _MetricTest(metric, ours, theirs, documents, self._clusters, self._alpha)
                    test.run()
                    if words_count and not metric.definition_differences:
                        test.name_other_prompts()
                    if not metric.paired_sample_count and (other := limit_difference(metric, self._baseline, candidate)):
                        metric.definition_differences.append(other)
                    self._observe(metric, theirs.values.get(key_of(metric), NO_VALUES))


def _set_difference(metric: MetricComparison) -> bool:
    """Set the difference of the values, and return whether there is one."""
    metric.method = TEST_METHOD_NONE
    difference = metric.candidate_value - metric.baseline_value
    if not metric.HasField("baseline_value"):
        metric.note = "the baseline has no such metric"
    elif not metric.HasField("candidate_value"):
        metric.note = "the candidate has no such metric"
    elif not math.isfinite(difference):
        metric.note = "the values are not finite"
    else:
        metric.difference = difference
    return metric.HasField("difference")


class _MetricTest:
    """The test of one metric, which is written into its message."""

    def __init__(
        self,
        metric: MetricComparison,
        ours: TaskSamples,
        theirs: TaskSamples,
        documents: Pairs,
        clusters: ClusterField,
        alpha: float,
    ) -> None:
        key = key_of(metric)
        self._metric = metric
        self._ours, self._theirs = ours.values.get(key, NO_VALUES), theirs.values.get(key, NO_VALUES)
        self._pairs = pair(self._ours, self._theirs)
        self._documents = self._pairs if self._pairs.has_ids else documents
        self._clusters = clusters
        self._alpha = alpha
        if ours.answers is not None:
            metric.baseline_answers.CopyFrom(ours.answers)
        if theirs.answers is not None:
            metric.candidate_answers.CopyFrom(theirs.answers)

    def run(self) -> None:
        """Test the samples that both jobs have, or else the values by their standard errors."""
        metric = self._metric
        self._count_samples()
        if other := self._documents.other_document_count:
            of = other + self._documents.count
            metric.definition_differences.append(f"another document under {other} of {of} ids")
        metric.note = _misfit("baseline", self._ours, metric.baseline_value) or _misfit(
            "candidate", self._theirs, metric.candidate_value
        )
        found = self._paired() if not metric.note else None
        if found is None and not metric.cluster_field:
            found = _unpaired(metric, self._alpha)
        if found is not None:
            metric.difference, metric.interval_lower, metric.interval_upper, metric.p_value = found[:4]
            metric.detectable_difference = found.detectable

    def name_other_prompts(self) -> None:
        """Say of how many documents the prompts differ, which no more than the samples may tell: a task's code has changed."""
        if other := self._documents.other_prompt_count:
            self._metric.definition_differences.append(f"another prompt for {other} of {self._documents.count} documents")

    def _count_samples(self) -> None:
        """Say of how many samples the values are, where the harness does not and they are the means of samples."""
        metric = self._metric
        if not metric.HasField("baseline_sample_count") and self._ours.mean_is(metric.baseline_value):
            metric.baseline_sample_count = len(self._ours.ids)
        if not metric.HasField("candidate_sample_count") and self._theirs.mean_is(metric.candidate_value):
            metric.candidate_sample_count = len(self._theirs.ids)

    def _paired(self) -> Difference | None:
        """Test the pairs, or note why not."""
        metric, pairs = self._metric, self._pairs
        if pairs.count < (1 if pairs.are_zero_or_one() else MIN_SAMPLES):
            metric.note = f"too few samples are in both jobs: {pairs.count}"
            return None
        test = self._clustered if len(self._ours.clusters) or len(self._theirs.clusters) else self._independent
        found = test(pairs)
        if found is not None:
            metric.paired_sample_count = pairs.count
            metric.differing_sample_count = pairs.losses + pairs.gains
            metric.unpaired_sample_count = pairs.unpaired_count
            _set_noise(metric, noise_of(pairs, self._ours, self._theirs, found.standard_error))
        return found

    def _clustered(self, pairs: Pairs) -> Difference | None:
        metric, clusters = self._metric, clusters_of(pairs, self._ours, self._theirs)
        metric.cluster_field = self._clusters.name
        metric.cluster_count = int(clusters.max()) + 1
        if metric.cluster_count < MIN_CLUSTERS:
            metric.note = (
                f"too few clusters by the field {self._clusters.name!r}: {metric.cluster_count}, at least {MIN_CLUSTERS} are "
                "needed; name another field in `cluster_by`, or `doc_id` for none"
            )
            return None
        metric.method = TEST_METHOD_CLUSTERED_T
        found = clustered_t(pairs.differences, clusters, self._alpha, pairs.scale)
        if found.design_effect is not None:
            metric.design_effect = found.design_effect
        return found.difference

    def _independent(self, pairs: Pairs) -> Difference:
        metric = self._metric
        if self._clusters.is_asked_for:
            metric.note = f"no sample has the field {self._clusters.name!r}, so all are taken for independent"
        if pairs.are_zero_or_one():
            metric.method = TEST_METHOD_MCNEMAR
            return significance.mcnemar(pairs.losses, pairs.gains, pairs.count, self._alpha)
        metric.method = TEST_METHOD_PAIRED_BOOTSTRAP
        return significance.paired_bootstrap(pairs.differences, self._alpha, pairs.scale)


def _pairs_of_any(ours: TaskSamples, theirs: TaskSamples) -> Pairs:
    """Return the pairs of some metric of a task. They have the task's documents also for metrics without values of samples."""
    key = next((key for key, values in ours.values.items() if len(values.ids) and key in theirs.values), None)
    return pair(NO_VALUES, NO_VALUES) if key is None else pair(ours.values[key], theirs.values[key])


def _misfit(side: str, samples: SampleValues, value: float) -> str:
    """Return why a test of the samples would not be a test of the metric; empty if it would."""
    if not len(samples.ids):
        return f"the {side} has no value of any sample"
    return "" if samples.mean_is(value) else f"the {side}'s value is not the mean of its samples"


def _set_noise(metric: MetricComparison, noise: Noise) -> None:
    metric.baseline_repeats, metric.candidate_repeats = noise.baseline_repeats, noise.candidate_repeats
    if noise.answer_error is None:
        return
    metric.answer_standard_error, metric.document_standard_error = noise.answer_error, noise.document_error
    from_answers = noise.answer_error > noise.document_error
    metric.larger_noise = NOISE_SOURCE_ANSWERS if from_answers else NOISE_SOURCE_DOCUMENTS


def _unpaired(metric: MetricComparison, alpha: float) -> Difference | None:
    """Test the values alone, if their standard errors say something."""
    stderr = math.hypot(metric.baseline_standard_error, metric.candidate_standard_error)
    has_both = metric.HasField("baseline_standard_error") and metric.HasField("candidate_standard_error")
    if not (has_both and 0 < stderr < math.inf) or verdicts.has_few_samples(metric):
        return None
    metric.method = TEST_METHOD_UNPAIRED_Z
    return significance.unpaired_z(metric.difference, stderr, alpha)
