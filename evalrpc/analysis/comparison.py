"""Comparison of jobs with a baseline: match their metrics, test each difference, and judge it.

This module and its imports load NumPy and SciPy, 90 MB of memory that a server which compares nothing should not pay for: so
only the first comparison imports it.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final

from evalrpc.analysis import significance, verdicts
from evalrpc.analysis.sample_values import NO_VALUES, MetricKey, SampleValues, pair, read_values
from evalrpc.analysis.significance import MIN_SAMPLES, Difference
from evalrpc.errors import (
    DefinitionsDifferError,
    FieldViolation,
    InvalidRequestError,
    MetricNotFoundError,
    NoResultsError,
    NotFoundError,
)
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness, SampleRow
from evalrpc.jobs.metric_selectors import Selection, parts_of, parts_taking, selector_text, selector_words
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.wire_format import field_size
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.job_results import JobResults, metric_key
from evalrpc.reading.sample_files import open_samples
from evalrpc.results.layout import samples_by_task
from evalrpc.v1.comparison_pb2 import (
    TEST_METHOD_MCNEMAR,
    TEST_METHOD_NONE,
    TEST_METHOD_PAIRED_BOOTSTRAP,
    TEST_METHOD_UNPAIRED_Z,
    CompareJobsRequest,
    CompareJobsResponse,
    JobComparison,
    MetricComparison,
)
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult

DEFAULT_ALPHA: Final = 0.05

_MAX_NAMED: Final = 5  # metrics that an error names

_Key = tuple[str, str, str]  # task, metric, filter
_Values = Mapping[MetricKey, SampleValues]


def compare(
    call: CompareJobsRequest,
    baseline: JobInfo,
    candidates: Sequence[JobInfo],
    harnesses: Mapping[str, Harness],
    data_dir: Path,
    budget: ReadBudget,
) -> CompareJobsResponse:
    """Compare the candidates with the baseline. Blocks on the disk, and takes seconds if there are many samples: with every row
    and metric it may raise what `ReadBudget.spend` does.

    Only the samples of one task of the baseline and of one candidate are in memory at a time, and no more metrics than the
    answer may have. Raises NoResultsError, MetricNotFoundError, InvalidRequestError for an answer that would be too large,
    FileUnavailableError and FileUnreadableError.
    """
    for job in (baseline, *candidates):
        _require_results(job)
    alpha = call.alpha if call.HasField("alpha") else DEFAULT_ALPHA
    results = JobResults(data_dir)
    matching = _Matching(call, budget)
    for candidate in candidates:
        matching.add(_line_up(baseline, candidate, results, budget))
    matching.require_known()
    matching.require_size()
    asked_for = matching.asked_for
    _Tester(baseline, harnesses, data_dir, budget, alpha).test_all(zip(candidates, asked_for, strict=True))
    if call.strict:
        _require_same_definitions(chain.from_iterable(asked_for))
    verdicts.judge(call, list(chain.from_iterable(asked_for)), alpha)
    comparisons = [
        JobComparison(candidate_job_id=job.job_id, metrics=metrics) for job, metrics in zip(candidates, asked_for, strict=True)
    ]
    response = CompareJobsResponse(candidates=comparisons, confidence_level=1 - alpha)
    _require_size(response.ByteSize(), sum(map(len, asked_for)), len(candidates), is_exact=True)
    return response


# Matching metrics


class _Matching:
    """The metrics of a comparison that are asked for, chosen from all that the jobs have, of which there may be very many."""

    def __init__(self, call: CompareJobsRequest, budget: ReadBudget) -> None:
        self.asked_for: list[list[MetricComparison]] = []
        """By candidate. Incomplete once they are more than an answer may have."""
        self._budget = budget
        self._selection = Selection(call.metrics)
        self._selectors = [*call.metrics, *(threshold.selector for threshold in call.metric_thresholds)]
        self._unknown = set(map(parts_of, self._selectors))
        self._known: set[str] = set()  # names of a few metrics
        self._count = 0
        self._size_bytes = 0

    def add(self, lined_up: Iterable[MetricComparison]) -> None:
        """Choose from the metrics of a candidate and the baseline."""
        asked_for: list[MetricComparison] = []
        self.asked_for.append(asked_for)
        for metric in lined_up:
            self._budget.spend()
            self._note(metric)
            if self._selection.takes(metric):
                self._count += 1
                self._size_bytes += field_size(metric.ByteSize())
                if self._size_bytes <= MAX_PAGE_BYTES:
                    asked_for.append(metric)

    def require_known(self) -> None:
        """Raise MetricNotFoundError for the first selector that takes no metric of any job."""
        for selector in self._selectors:
            if parts_of(selector) in self._unknown:
                known = sorted(self._known)
                more = ", ..." if len(known) > _MAX_NAMED else ""
                raise MetricNotFoundError(
                    f"none of the jobs has {selector_words(selector)}; they have: {', '.join(known[:_MAX_NAMED])}{more}",
                    metadata={"resource_type": "evalrpc.v1.Metric", "resource_name": selector_text(selector)[:255]},
                )

    def require_size(self) -> None:
        """Raise InvalidRequestError if the answer would be too large even without the outcomes of the tests."""
        _require_size(self._size_bytes, self._count, len(self.asked_for), is_exact=False)

    def _note(self, metric: MetricComparison) -> None:
        if self._unknown:
            self._unknown -= parts_taking(metric)
            self._known.add(f"{metric.task}/{metric.metric}")
            if len(self._known) > _MAX_NAMED + 1:
                self._known.remove(max(self._known))


def _require_size(size_bytes: int, metric_count: int, candidate_count: int, *, is_exact: bool) -> None:
    if size_bytes > MAX_PAGE_BYTES:
        takes = f"{'' if is_exact else 'more than '}{size_bytes} bytes"
        raise InvalidRequestError(
            violations=[
                FieldViolation(
                    "metrics",
                    f"the answer would have {metric_count} metrics of {candidate_count} candidates, which take {takes}; at most"
                    f" {MAX_PAGE_BYTES} are allowed: select fewer metrics here, or pass fewer candidates",
                )
            ]
        )


def _line_up(baseline: JobInfo, candidate: JobInfo, results: JobResults, budget: ReadBudget) -> Iterator[MetricComparison]:
    """Yield every metric that either job has, sorted by model, task, metric and filter. Both are read once, side by side."""
    models = _ModelPairs(baseline, candidate)
    ours = ((models.key(each.model), metric_key(each.metric), 0, each.metric) for each in results.metrics(baseline, budget))
    theirs = ((models.key(each.model), metric_key(each.metric), 1, each.metric) for each in results.metrics(candidate, budget))
    merged = heapq.merge(ours, theirs, key=lambda each: each[:3])
    our_heads, their_heads = results.heads(baseline), results.heads(candidate)
    for model, of_model in groupby(merged, key=lambda each: each[0]):
        our_model, their_model = models.names(model)
        differences = _definition_differences(our_heads.get(our_model), their_heads.get(their_model))
        for key, same in groupby(of_model, key=lambda each: each[1]):
            sides = {side: metric for _, _, side, metric in same}
            lined_up = _lined_up(key, sides.get(0), sides.get(1))
            lined_up.baseline_model, lined_up.candidate_model = our_model, their_model
            lined_up.definition_differences.extend(differences.get(lined_up.task, ()))
            yield lined_up


class _ModelPairs:
    """Pairs models by name; if each job has a single model, pairs those whatever their names."""

    def __init__(self, baseline: JobInfo, candidate: JobInfo) -> None:
        self._ours, self._theirs = set(baseline.results), set(candidate.results)
        self._are_single = len(self._ours) == len(self._theirs) == 1

    def key(self, model: str) -> str:
        """Return what the models of a pair have in common."""
        return "" if self._are_single else model

    def names(self, key: str) -> tuple[str, str]:
        """Return the names of the baseline's and the candidate's model; empty where there is none."""
        if self._are_single:
            return next(iter(self._ours)), next(iter(self._theirs))
        return key if key in self._ours else "", key if key in self._theirs else ""


def _lined_up(key: _Key, ours: Metric | None, theirs: Metric | None) -> MetricComparison:
    task, metric, answer_filter = key
    directions = {m.higher_is_better for m in (ours, theirs) if m is not None and m.HasField("higher_is_better")}
    return MetricComparison(
        task=task,
        metric=metric,
        filter=answer_filter,
        higher_is_better=directions.pop() if len(directions) == 1 else None,
        paired_sample_count=0,
        differing_sample_count=0,
        unpaired_sample_count=0,
        **_facts("baseline", ours),
        **_facts("candidate", theirs),
    )


def _facts(side: str, metric: Metric | None) -> dict[str, Any]:
    if metric is None:
        return {}
    return {
        f"{side}_value": metric.value,
        f"{side}_standard_error": metric.standard_error if metric.HasField("standard_error") else None,
        f"{side}_sample_count": metric.sample_count if metric.HasField("sample_count") else None,
    }


def _definition_differences(ours: ModelResult | None, theirs: ModelResult | None) -> dict[str, list[str]]:
    """Return by task in what its definition differs between the two results, as far as both say."""
    if ours is None or theirs is None:
        return {}
    defined = {task.task: task for task in ours.tasks}
    return {task.task: list(_differences(defined[task.task], task)) for task in theirs.tasks if task.task in defined}


def _differences(ours: TaskResult, theirs: TaskResult) -> Iterator[str]:
    if ours.version and theirs.version and ours.version != theirs.version:
        yield f"version {ours.version} and {theirs.version}"
    if ours.HasField("num_fewshot") and theirs.HasField("num_fewshot") and ours.num_fewshot != theirs.num_fewshot:
        yield f"num_fewshot {ours.num_fewshot} and {theirs.num_fewshot}"
    if ours.config_hash and theirs.config_hash and ours.config_hash != theirs.config_hash:
        yield "another configuration (config_hash)"


def _require_same_definitions(metrics: Iterable[MetricComparison]) -> None:
    different = [metric for metric in metrics if metric.definition_differences]
    if different:
        first = different[0]
        raise DefinitionsDifferError(
            f"{len(different)} of the metrics are of different questions, such as {first.task}/{first.metric}: "
            f"{', '.join(first.definition_differences)}; compare without `strict`, or select others"
        )


def _require_results(job: JobInfo) -> None:
    if job.results and job.status == JobStatus.JOB_STATUS_COMPLETED:  # other states may have results of some tasks
        return
    status = JobStatus.Name(job.status).removeprefix("JOB_STATUS_")
    raise NoResultsError(
        f"job {job.job_id} is {status} and has no results to compare; compare jobs that are COMPLETED",
        metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id},
    )


# Testing differences


class _Tester:
    """Tests the metrics of one comparison."""

    def __init__(
        self, baseline: JobInfo, harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget, alpha: float
    ) -> None:
        self._baseline = baseline
        self._harnesses = harnesses
        self._data_dir = data_dir
        self._results = JobResults(data_dir)
        self._budget = budget
        self._alpha = alpha
        self._files: dict[tuple[str, str], Mapping[str, str]] = {}

    def test_all(self, lined_up: Iterable[tuple[JobInfo, Sequence[MetricComparison]]]) -> None:
        """Test the metrics that both sides have a value of, task by task, so that each file is read once."""
        pairs = [(job, metric) for job, metrics in lined_up for metric in metrics if _set_difference(metric)]
        pairs.sort(key=_file)
        for (model, task), of_file in groupby(pairs, key=_file):
            of_task = list(of_file)
            ours = self._read(self._baseline, model, task, [metric for _, metric in of_task])
            for _, of_job in groupby(of_task, key=lambda pair: pair[0].job_id):
                of_candidate = list(of_job)
                job, first = of_candidate[0]
                theirs = self._read(job, first.candidate_model, task, [metric for _, metric in of_candidate])
                for _, metric in of_candidate:
                    self._budget.spend()
                    _test(metric, ours, theirs, self._alpha)

    def _read(self, job: JobInfo, model: str, task: str, metrics: Iterable[MetricComparison]) -> _Values:
        """Read the samples of a task; none if they were not logged, are gone or can't be read to their end."""
        path = self._files_of(job, model).get(task)
        folder = output_dir(self._data_dir, job)
        if path is None or folder is None:
            return {}
        keys = {MetricKey(metric.metric, metric.filter) for metric in metrics}
        try:
            with open_samples(job, folder, path, self._harnesses, budget=self._budget) as rows:
                return read_values(self._values(rows), keys)
        except (NotFoundError, InvalidRequestError):  # gone, or cut off
            return {}

    def _files_of(self, job: JobInfo, model: str) -> Mapping[str, str]:
        """Return the sample files by task, which are looked up once."""
        key = job.job_id, model
        if key not in self._files:
            self._files[key] = samples_by_task(self._results.heads(job)[model])
        return self._files[key]

    def _values(self, rows: Iterable[SampleRow]) -> Iterator[Mapping[str, object]]:
        for row in rows:
            self._budget.spend()
            yield row.values


def _file(pair: tuple[JobInfo, MetricComparison]) -> tuple[str, str]:
    """Name the baseline's samples file of a metric."""
    return pair[1].baseline_model, pair[1].task


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


def _test(metric: MetricComparison, ours: _Values, theirs: _Values, alpha: float) -> None:
    key = MetricKey(metric.metric, metric.filter)
    found = _test_paired(metric, ours.get(key, NO_VALUES), theirs.get(key, NO_VALUES), alpha) or _test_unpaired(metric, alpha)
    if found is not None:
        metric.difference, metric.interval_lower, metric.interval_upper, metric.p_value = found


def _test_paired(metric: MetricComparison, ours: SampleValues, theirs: SampleValues, alpha: float) -> Difference | None:
    """Test the samples that both jobs have, or note why not."""
    metric.note = _misfit("baseline", ours, metric.baseline_value) or _misfit("candidate", theirs, metric.candidate_value)
    if metric.note:
        return None
    pairs = pair(ours, theirs)
    if pairs.other_document_count:
        of = pairs.other_document_count + pairs.count
        metric.definition_differences.append(f"another document under {pairs.other_document_count} of {of} ids")
    is_binary = pairs.are_zero_or_one()
    if pairs.count < (1 if is_binary else MIN_SAMPLES):
        metric.note = f"too few samples are in both jobs: {pairs.count}"
        return None
    metric.paired_sample_count = pairs.count
    metric.differing_sample_count = pairs.losses + pairs.gains
    metric.unpaired_sample_count = pairs.unpaired_count
    if is_binary:
        metric.method = TEST_METHOD_MCNEMAR
        return significance.mcnemar(pairs.losses, pairs.gains, pairs.count, alpha)
    metric.method = TEST_METHOD_PAIRED_BOOTSTRAP
    return significance.paired_bootstrap(pairs.differences, alpha)


def _misfit(side: str, samples: SampleValues, value: float) -> str:
    """Return why a test of the samples would not be a test of the metric; empty if it would."""
    if not len(samples.ids):
        return f"the {side} has no value of any sample"
    return "" if samples.mean_is(value) else f"the {side}'s value is not the mean of its samples"


def _test_unpaired(metric: MetricComparison, alpha: float) -> Difference | None:
    stderr = math.hypot(metric.baseline_standard_error, metric.candidate_standard_error)
    has_both = metric.HasField("baseline_standard_error") and metric.HasField("candidate_standard_error")
    counts = [getattr(metric, name) for name in ("baseline_sample_count", "candidate_sample_count") if metric.HasField(name)]
    if not (has_both and 0 < stderr < math.inf) or min(counts, default=MIN_SAMPLES) < MIN_SAMPLES:
        return None
    metric.method = TEST_METHOD_UNPAIRED_Z
    return significance.unpaired_z(metric.difference, stderr, alpha)
