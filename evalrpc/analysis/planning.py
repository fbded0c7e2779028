"""What it takes to see a difference: samples, repeats or tasks, from earlier jobs or from a share of differing pairs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalrpc.analysis.clusters import MIN_CLUSTERS, clustered_t
from evalrpc.analysis.comparison import DEFAULT_ALPHA
from evalrpc.analysis.job_samples import JobSamples, by_task, keys_of
from evalrpc.analysis.matching import Matching, line_up, require_results, require_size
from evalrpc.analysis.noise import answer_variance
from evalrpc.analysis.power import DEFAULT_POWER, Design, detectable_share, required_pairs, required_repeats, required_samples
from evalrpc.analysis.sample_fields import ClusterField
from evalrpc.analysis.sample_values import NO_VALUES, MetricKey, Pairs, SampleValues, clusters_of, pair
from evalrpc.analysis.significance import MIN_SAMPLES
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness
from evalrpc.reading.job_results import JobResults
from evalrpc.v1.comparison_pb2 import MetricComparison, MetricPlan, PlanComparisonRequest, PlanComparisonResponse
from evalrpc.v1.jobs_pb2 import JobInfo

_LARGEST: Final = 2**63 - 1
_NOT_FINITE = "the values are too large for a variance"
_ASSUMES_INDEPENDENCE = "assumes that the other model's answers are independent of this one's, so fewer samples may do"


def plan_from_ratio(call: PlanComparisonRequest) -> PlanComparisonResponse:
    """Plan from the share of pairs that differ."""
    pairs = required_pairs(call.differing_ratio, call.difference, _design(call))
    return PlanComparisonResponse(metrics=[MetricPlan(required_sample_count=_rounded(pairs))])


def plan_from_jobs(
    call: PlanComparisonRequest, jobs: Sequence[JobInfo], harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget
) -> PlanComparisonResponse:
    """Plan from the samples of one job, or of two. Blocks on the disk, and with every row and metric may raise what
    `ReadBudget.spend` does.

    Raises NoResultsError, MetricNotFoundError, InvalidRequestError for an answer that would be too large or a field of samples
    that there is not, FileUnavailableError and FileUnreadableError.
    """
    baseline, other = jobs[0], jobs[-1]
    for job in jobs:
        require_results(job)
    matching = Matching(call.metrics, budget)
    matching.add(line_up(baseline, other, JobResults(data_dir), budget))
    matching.require_known()
    matching.require_size()
    metrics = matching.asked_for[0]
    samples = JobSamples(harnesses, data_dir, budget, ClusterField(call.cluster_by))
    spreads: dict[int, _Spread | str] = {}
    for model, task, ((_, of_task),) in by_task((other, metric) for metric in metrics):
        ours = samples.read(baseline, model, task, keys_of(of_task)).values
        theirs = samples.read(other, of_task[0].candidate_model, task, keys_of(of_task)).values if len(jobs) > 1 else None
        for metric in of_task:
            budget.spend()
            key = MetricKey(metric.metric, metric.filter)
            spread = _spread(ours.get(key, NO_VALUES), None if theirs is None else theirs.get(key, NO_VALUES))
            spreads[id(metric)] = spread if isinstance(spread, str) or spread.is_finite else _NOT_FINITE
    samples.require_clusters()
    response = PlanComparisonResponse(metrics=[_plan(metric, spreads[id(metric)], call) for metric in metrics])
    require_size(response.ByteSize(), len(metrics), 1, is_exact=True)
    return response


class _Spread(NamedTuple):
    """How the differences of samples vary."""

    samples: int
    """How many there are."""
    variance: float
    """Of one difference; of values of 0 and 1 the share that differs."""
    is_binary: bool
    answer_variance: float | None
    """Of the difference of two single answers to one sample. None without repeats."""
    repeats: float
    """How often a sample is answered, on average."""
    design_effect: float | None
    note: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether all of it can be computed with: values may be too large for that."""
        figures = (self.variance, self.answer_variance or 0.0, self.design_effect or 0.0)
        return all(map(math.isfinite, figures))


def _spread(ours: SampleValues, theirs: SampleValues | None) -> "_Spread | str":
    """Return how the differences of two jobs vary, or those of one job and an independent one; or why nothing is known."""
    if theirs is None:
        return _spread_of_one(ours)
    pairs = pair(ours, theirs)
    if pairs.count < MIN_SAMPLES:
        return f"too few samples are in both jobs: {pairs.count}, at least {MIN_SAMPLES} are needed"
    is_binary = pairs.are_zero_or_one()
    differing = (pairs.losses + pairs.gains) / pairs.count
    variance = differing if is_binary else float(pairs.differences.var(ddof=1))
    repeats = [float(np.mean(each.repeats.counts)) if each.repeats else 1.0 for each in (ours, theirs)]
    of_answers = answer_variance(pairs, ours, theirs)
    mean_repeats = 2 / (1 / repeats[0] + 1 / repeats[1])
    effect = _design_effect(pairs.differences, pairs, ours, theirs)
    single = None if of_answers is None else of_answers * mean_repeats
    return _Spread(pairs.count, variance, is_binary, single, mean_repeats, effect)


def _spread_of_one(samples: SampleValues) -> "_Spread | str":
    count = len(samples.ids)
    if count < MIN_SAMPLES:
        return f"the job has values of too few samples: {count}, at least {MIN_SAMPLES} are needed"
    pairs = pair(samples, samples)
    mean = float(samples.values.mean())
    is_binary = pairs.are_zero_or_one()
    variance = 2 * mean * (1 - mean) if is_binary else 2 * float(samples.values.var(ddof=1))
    repeats = float(np.mean(samples.repeats.counts)) if samples.repeats else 1.0
    of_answers = answer_variance(pairs, samples, samples)
    effect = _design_effect(samples.values - mean, pairs, samples, samples)
    single = None if of_answers is None else of_answers * repeats
    return _Spread(count, variance, is_binary, single, repeats, effect, _ASSUMES_INDEPENDENCE)


def _design_effect(differences: NDArray[np.float64], pairs: Pairs, ours: SampleValues, theirs: SampleValues) -> float | None:
    if not len(ours.clusters) and not len(theirs.clusters):
        return None
    clusters = clusters_of(pairs, ours, theirs)
    if int(clusters.max()) + 1 < MIN_CLUSTERS:
        return None
    return clustered_t(differences, clusters, DEFAULT_ALPHA).design_effect


def _plan(metric: MetricComparison, spread: "_Spread | str", call: PlanComparisonRequest) -> MetricPlan:
    plan = MetricPlan(model=metric.baseline_model, task=metric.task, metric=metric.metric, filter=metric.filter)
    if isinstance(spread, str):
        plan.note = spread
        return plan
    plan.sample_count, plan.note = spread.samples, spread.note
    for name, value in _figures(spread, call.difference, _design(call)):
        setattr(plan, name, value)
    if spread.design_effect is not None:
        plan.design_effect = spread.design_effect
    if not spread.variance:
        plan.note = "no sample differs, so nothing is known of how they vary"
    elif spread.is_binary and spread.variance < call.difference:
        plan.note = f"only {spread.variance:.4g} of the samples differ, so no difference can be as large"
    return plan


def _figures(spread: _Spread, difference: float, design: Design) -> Iterator[tuple[str, float]]:
    """Yield the fields of a plan that can be said."""
    effect = spread.design_effect or 1.0
    independent = spread.samples / effect
    if spread.is_binary:
        detectable = detectable_share(spread.variance, independent, design)
        needed = required_pairs(spread.variance, difference, design)
    else:
        detectable = sum(design.quantiles) * math.sqrt(spread.variance / independent)
        needed = required_samples(spread.variance, difference, design)
    yield "detectable_difference", detectable
    if not spread.variance or (spread.is_binary and spread.variance < difference):
        return
    needed *= effect
    yield "required_sample_count", _rounded(needed)
    yield "required_task_count", _rounded(needed / spread.samples)
    if spread.answer_variance is not None:
        of_documents = max(0.0, spread.variance - spread.answer_variance / spread.repeats)
        repeats = required_repeats(spread.answer_variance, of_documents, independent, difference, design)
        if repeats is not None:
            yield "required_repeats", _rounded(repeats)


def _design(call: PlanComparisonRequest) -> Design:
    alpha = call.alpha if call.HasField("alpha") else DEFAULT_ALPHA
    return Design(alpha, call.power if call.HasField("power") else DEFAULT_POWER)


def _rounded(number: float) -> int:
    """Round up, to at least 1, and to what a message can hold."""
    return max(1, math.ceil(number)) if number < _LARGEST else _LARGEST
