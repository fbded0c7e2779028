"""The samples whose value changed between two jobs: found once, in an order, and read a page at a time."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.struct_pb2 import Struct

from evalrpc.analysis.flip_lists import FlipPlace, Flips, FlipsPart
from evalrpc.analysis.job_samples import JobSamples
from evalrpc.analysis.matching import MAX_NAMED, line_up, require_results
from evalrpc.analysis.sample_fields import HARNESS_CLUSTERS
from evalrpc.analysis.sample_values import NO_VALUES, MetricKey, SampleValues, pair
from evalrpc.errors import FieldViolation, InvalidRequestError, MetricNotFoundError, ReadLimitError, SamplesNotFoundError
from evalrpc.files.read_budget import ReadBudget
from evalrpc.harnesses.base import Harness
from evalrpc.jobs.metric_selectors import Selection, selector_text, selector_words
from evalrpc.protobuf.structs import wire_text
from evalrpc.protobuf.texts import cut
from evalrpc.reading.attempts import output_dir
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.page_bound import PageBound
from evalrpc.reading.row_cutting import bounded_row
from evalrpc.reading.sample_files import open_samples
from evalrpc.reading.sample_filters import sample_id
from evalrpc.reading.sample_pages import MAX_ROW_VALUES
from evalrpc.v1.comparison_pb2 import (
    FLIP_DIRECTION_BETTER,
    FLIP_DIRECTION_WORSE,
    Flip,
    ListFlipsRequest,
    ListFlipsResponse,
    MetricComparison,
)
from evalrpc.v1.jobs_pb2 import JobInfo

MAX_ROW_BYTES: Final = 1024 * 1024
"""Larger rows of a flip, which has two, are cut."""

MAX_DOC_ID_BYTES: Final = 4096
"""The size of a `doc_id` as text. Its row has all of it."""

MAX_LISTED: Final = 500_000
"""The flips in each direction that are listed; all are counted."""


def find_flips(
    call: ListFlipsRequest, jobs: Sequence[JobInfo], harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget
) -> Flips:
    """Find the flips of one metric from the first job to the second. Blocks on the disk; with every row and metric it may raise
    what `ReadBudget.spend` does.

    Raises NoResultsError, MetricNotFoundError, SamplesNotFoundError, InvalidRequestError where there are several metrics,
    FileUnavailableError and FileUnreadableError.
    """
    baseline, candidate = jobs
    for job in jobs:
        require_results(job)
    samples = JobSamples(harnesses, data_dir, budget, HARNESS_CLUSTERS)
    metric = _the_metric(call, baseline, candidate, JobResults(data_dir), samples, budget)
    key = MetricKey(metric.metric, metric.filter)
    sides = ((baseline, metric.baseline_model), (candidate, metric.candidate_model))
    ours, theirs = (
        samples.read(job, model, metric.task, {key}, with_positions=True).values.get(key, NO_VALUES) for job, model in sides
    )
    for job, values in ((baseline, ours), (candidate, theirs)):
        if not len(values.ids):
            raise SamplesNotFoundError(
                f"job {job.job_id} has no value of any sample for {metric.task}/{metric.metric}",
                metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id},
            )
    paths = (samples.path(job, model, metric.task) or "" for job, model in sides)
    return _in_order(ours, theirs, (next(paths), next(paths)), higher_is_better=_is_higher_better(call, metric))


def _the_metric(
    call: ListFlipsRequest, baseline: JobInfo, candidate: JobInfo, results: JobResults, samples: JobSamples, budget: ReadBudget
) -> MetricComparison:
    """Return the only metric that is asked for and has samples in both jobs."""
    selection = Selection([call.metric] if call.HasField("metric") else [])
    selected: list[MetricComparison] = []
    is_known = False
    for metric in line_up(baseline, candidate, results, budget):
        budget.spend()
        if not selection.takes(metric) or call.model not in ("", metric.baseline_model):
            continue
        is_known = True
        ours = samples.path(baseline, metric.baseline_model, metric.task)
        if ours and samples.path(candidate, metric.candidate_model, metric.task) and len(selected) <= MAX_NAMED:
            selected.append(metric)
    asked = selector_words(call.metric) if call.HasField("metric") else "any metric"
    if not is_known:
        raise MetricNotFoundError(
            f"neither job has {asked}{f' of the model {call.model}' if call.model else ''}",
            metadata={"resource_type": "evalrpc.v1.Metric", "resource_name": selector_text(call.metric)[:255]},
        )
    if not selected:
        raise SamplesNotFoundError(
            f"jobs {baseline.job_id} and {candidate.job_id} do not both have samples of {asked}: both must have evaluated the "
            "same task, with `log_samples`",
            metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": baseline.job_id},
        )
    if len(selected) > 1:
        raise InvalidRequestError(violations=[_several(selected)])
    return selected[0]


def _several(metrics: Sequence[MetricComparison]) -> FieldViolation:
    models = dict.fromkeys(metric.baseline_model for metric in metrics)
    names = dict.fromkeys(f"{metric.task}/{metric.metric},{metric.filter}" for metric in metrics)
    field, choices = ("metric", names) if len(names) > 1 else ("model", models)
    more = ", ..." if len(choices) > MAX_NAMED else ""
    return FieldViolation(field, f"must select one of several: {', '.join(islice(choices, MAX_NAMED))}{more}")


def _is_higher_better(call: ListFlipsRequest, metric: MetricComparison) -> bool:
    if call.HasField("higher_is_better"):
        return call.higher_is_better
    return metric.higher_is_better if metric.HasField("higher_is_better") else True


def _in_order(ours: SampleValues, theirs: SampleValues, paths: tuple[str, str], *, higher_is_better: bool) -> Flips:
    pairs = pair(ours, theirs)
    gains = pairs.differences if higher_is_better else -pairs.differences
    flipped = np.flatnonzero((gains > 0) | (gains < 0))  # not what is NaN
    positions = ours.positions[pairs.baseline_places]
    order = flipped[np.lexsort((positions[flipped], -np.abs(gains[flipped]), gains[flipped] > 0))]
    worse_count = int(np.count_nonzero(gains < 0))
    summary = ListFlipsResponse(worse_count=worse_count, better_count=len(order) - worse_count, paired_sample_count=pairs.count)
    order = np.concatenate([order[:worse_count][:MAX_LISTED], order[worse_count:][:MAX_LISTED]])
    return Flips(
        summary,
        paths,
        min(worse_count, MAX_LISTED),
        (
            array("q", positions[order].tobytes()),
            array("q", theirs.positions[pairs.candidate_places][order].tobytes()),
            array("d", pairs.baseline[order].tobytes()),
            array("d", pairs.candidate[order].tobytes()),
        ),
    )


def read_flips(
    part: FlipsPart,
    page_size: int,
    jobs: Sequence[JobInfo],
    harnesses: Mapping[str, Harness],
    data_dir: Path,
    budget: ReadBudget,
) -> ListFlipsResponse:
    """Read a page of flips, from the first of a part on, without a token. It ends early where the budget does.

    Raises ReadLimitError if that is before its first flip, SamplesNotFoundError, FileUnavailableError and FileUnreadableError.
    """
    page = ListFlipsResponse()
    page.CopyFrom(part.summary)
    readers = [_RowReader(job, path, harnesses, data_dir, budget) for job, path in zip(jobs, part.paths, strict=True)]
    bound = PageBound(page_size)
    for index, place in enumerate(part.places):
        try:
            flip, cut_fields = _read_flip(place, readers, is_worse=index < part.worse_count)
        except ReadLimitError:
            if not index:
                raise
            break
        cut_paths = [f"flips[{index}].{path}" for path in cut_fields]
        if not bound.takes(flip, cut_paths):
            break
        page.truncated_fields.extend(cut_paths)
        page.flips.append(flip)
    return page


def _read_flip(place: FlipPlace, readers: Sequence["_RowReader"], *, is_worse: bool) -> tuple[Flip, list[str]]:
    ours, theirs = readers
    found_id, our_row, our_cut = ours.read(place.baseline_position)
    doc_id = cut(found_id, MAX_DOC_ID_BYTES)
    _, their_row, their_cut = theirs.read(place.candidate_position)
    flip = Flip(
        doc_id=doc_id,
        direction=FLIP_DIRECTION_WORSE if is_worse else FLIP_DIRECTION_BETTER,
        baseline_value=place.baseline_value,
        candidate_value=place.candidate_value,
        baseline_sample=our_row,
        candidate_sample=their_row,
    )
    cut_fields = [] if doc_id == found_id else ["doc_id"]
    cut_fields += [f"baseline_sample{path}" for path in our_cut]
    return flip, cut_fields + [f"candidate_sample{path}" for path in their_cut]


class _RowReader:
    """Reads rows of one samples file by the offsets where they begin."""

    def __init__(self, job: JobInfo, path: str, harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget) -> None:
        self._job = job
        self._path = path
        self._harnesses = harnesses
        self._folder = output_dir(data_dir, job)
        self._budget = budget

    def read(self, position: int) -> tuple[str, Struct, list[str]]:
        """Return the id of a row, the row, and the paths of what was cut. Raises SamplesNotFoundError if it is gone."""
        if self._folder is not None:
            with open_samples(self._job, self._folder, self._path, self._harnesses, position, self._budget) as rows:
                for values, _, is_too_large in rows:
                    row, cut_fields = bounded_row(values, MAX_ROW_BYTES, MAX_ROW_VALUES)
                    return wire_text(sample_id(values)), row, [""] if is_too_large else cut_fields
        raise SamplesNotFoundError(
            f"job {self._job.job_id}: a row of its samples is gone since they were compared; begin with the first page",
            metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": self._job.job_id},
        )
