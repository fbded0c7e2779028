"""Comparison of jobs with a baseline: match their metrics, test each difference, and judge it.

This module and its imports load NumPy and SciPy, 90 MB of memory that a server which compares nothing should not pay for: so
only the first comparison imports it.
"""

import math
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final

from evalrpc.analysis import significance, verdicts
from evalrpc.analysis.sample_values import NO_VALUES, MetricKey, SampleValues, pair, read_values
from evalrpc.analysis.significance import MIN_SAMPLES, Difference
from evalrpc.errors import DefinitionsDifferError, InvalidRequestError, MetricNotFoundError, NoResultsError, NotFoundError
from evalrpc.harnesses.base import Harness, SampleRow
from evalrpc.jobs.metric_selectors import Selection, parts_of, parts_taking, selector_text, selector_words
from evalrpc.reading.attempts import output_dir
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
from evalrpc.v1.results_pb2 import Metric, TaskResult

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
    stop: threading.Event,
) -> CompareJobsResponse:
    """Compare the candidates with the baseline. Blocks on the disk, and takes seconds if there are many samples: once `stop` is
    set, it raises CancelledError after the current row or metric.

    Only the samples of one task of the baseline and of one candidate are in memory at a time. Raises NoResultsError and
    MetricNotFoundError.
    """
    for job in (baseline, *candidates):
        _require_results(job)
    alpha = call.alpha if call.HasField("alpha") else DEFAULT_ALPHA
    found = [list(_line_up(baseline, candidate)) for candidate in candidates]
    _require_known(call, list(chain.from_iterable(found)))
    selection = Selection(call.metrics)
    asked_for = [[metric for metric in metrics if selection.takes(metric)] for metrics in found]
    _Tester(baseline, harnesses, data_dir, stop, alpha).test_all(zip(candidates, asked_for, strict=True))
    if call.strict:
        _require_same_definitions(list(chain.from_iterable(asked_for)))
    verdicts.judge(call, list(chain.from_iterable(asked_for)), alpha)
    comparisons = [
        JobComparison(candidate_job_id=job.job_id, metrics=metrics) for job, metrics in zip(candidates, asked_for, strict=True)
    ]
    return CompareJobsResponse(candidates=comparisons, confidence_level=1 - alpha)


# Matching metrics


def _line_up(baseline: JobInfo, candidate: JobInfo) -> Iterator[MetricComparison]:
    """Yield every metric that either job has, with the values from their results."""
    for our_model, their_model in _model_pairs(baseline, candidate):
        ours, theirs = _metrics(baseline, our_model), _metrics(candidate, their_model)
        differences = _definition_differences(_tasks(baseline, our_model), _tasks(candidate, their_model))
        for key in sorted(ours.keys() | theirs.keys()):
            lined_up = _lined_up(key, ours.get(key), theirs.get(key))
            lined_up.baseline_model, lined_up.candidate_model = our_model, their_model
            lined_up.definition_differences.extend(differences.get(lined_up.task, ()))
            yield lined_up


def _lined_up(key: _Key, ours: Metric | None, theirs: Metric | None) -> MetricComparison:
    task, metric, answer_filter = key
    directions = {m.higher_is_better for m in (ours, theirs) if m is not None and m.HasField("higher_is_better")}
    return MetricComparison(
        task=task,
        metric=metric,
        filter=answer_filter,
        higher_is_better=directions.pop() if len(directions) == 1 else None,
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


def _model_pairs(baseline: JobInfo, candidate: JobInfo) -> list[tuple[str, str]]:
    """Pair the models by name; if each job has a single model, pair those whatever their names."""
    ours, theirs = set(baseline.results), set(candidate.results)
    if len(ours) == len(theirs) == 1:
        return [(ours.pop(), theirs.pop())]
    return [(name if name in ours else "", name if name in theirs else "") for name in sorted(ours | theirs)]


def _metrics(job: JobInfo, model: str) -> dict[_Key, Metric]:
    metrics = job.results[model].metrics if model in job.results else ()
    return {(metric.task, metric.metric, metric.filter): metric for metric in metrics}


def _tasks(job: JobInfo, model: str) -> dict[str, TaskResult]:
    return {task.task: task for task in job.results[model].tasks} if model in job.results else {}


def _definition_differences(ours: Mapping[str, TaskResult], theirs: Mapping[str, TaskResult]) -> dict[str, list[str]]:
    """Return by task in what its definition differs between the two jobs, as far as both say."""
    return {name: list(_differences(ours[name], theirs[name])) for name in ours.keys() & theirs.keys()}


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


def _require_known(call: CompareJobsRequest, metrics: Collection[MetricComparison]) -> None:
    selectors = [*call.metrics, *(threshold.selector for threshold in call.metric_thresholds)]
    unknown = set(map(parts_of, selectors))
    for metric in metrics:
        if not unknown:
            return
        unknown -= parts_taking(metric)
    for selector in selectors:
        if parts_of(selector) in unknown:
            known = sorted({f"{metric.task}/{metric.metric}" for metric in metrics})
            more = ", ..." if len(known) > _MAX_NAMED else ""
            raise MetricNotFoundError(
                f"none of the jobs has {selector_words(selector)}; they have: {', '.join(known[:_MAX_NAMED])}{more}",
                metadata={"resource_type": "evalrpc.v1.Metric", "resource_name": selector_text(selector)[:255]},
            )


# Testing differences


class _Tester:
    """Tests the metrics of one comparison."""

    def __init__(
        self, baseline: JobInfo, harnesses: Mapping[str, Harness], data_dir: Path, stop: threading.Event, alpha: float
    ) -> None:
        self._baseline = baseline
        self._harnesses = harnesses
        self._data_dir = data_dir
        self._stop = stop
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
                    self._go_on()
                    _test(metric, ours, theirs, self._alpha)

    def _read(self, job: JobInfo, model: str, task: str, metrics: Iterable[MetricComparison]) -> _Values:
        """Read the samples of a task; none if they were not logged, are gone or can't be read to their end."""
        path = self._files_of(job, model).get(task)
        folder = output_dir(self._data_dir, job)
        if path is None or folder is None:
            return {}
        keys = {MetricKey(metric.metric, metric.filter) for metric in metrics}
        try:
            with open_samples(job, folder, path, self._harnesses) as rows:
                return read_values(self._values(rows), keys)
        except (NotFoundError, InvalidRequestError):  # gone, or cut off
            return {}

    def _files_of(self, job: JobInfo, model: str) -> Mapping[str, str]:
        """Return the sample files by task, which are looked up once."""
        key = job.job_id, model
        if key not in self._files:
            self._files[key] = samples_by_task(job.results[model])
        return self._files[key]

    def _values(self, rows: Iterable[SampleRow]) -> Iterator[Mapping[str, object]]:
        for row in rows:
            self._go_on()
            yield row.values

    def _go_on(self) -> None:
        """Raise CancelledError if nobody waits for the answer any more."""
        if self._stop.is_set():
            raise CancelledError


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
