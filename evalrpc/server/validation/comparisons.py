"""What is wrong with calls that compare jobs, plan to, or follow metrics over many of them."""

from typing import Final

from evalrpc.errors import FieldViolation
from evalrpc.protobuf.texts import MAX_NAME_LENGTH
from evalrpc.server.validation import fields
from evalrpc.server.validation.evaluations import MAX_MODEL_LENGTH
from evalrpc.server.validation.fields import Violations
from evalrpc.server.validation.jobs import job_filter
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, Correction, FlipDirection, ListFlipsRequest, PlanComparisonRequest
from evalrpc.v1.history_pb2 import GetHistoryRequest

MAX_CANDIDATES: Final = 16
MIN_ALPHA: Final = 0.001
MAX_ALPHA: Final = 0.5
MIN_POWER: Final = 0.5
MAX_POWER: Final = 0.999
MIN_DIFFERENCE: Final = 1e-12
MAX_DIFFERENCE: Final = 1e12
"""What a comparison is planned for. What is beyond can't be computed with."""

_OF_ITSELF: Final = "is the baseline: a job can't be compared with itself"


def comparison(call: CompareJobsRequest) -> Violations:
    """Yield what is wrong with a CompareJobsRequest."""
    yield from fields.job_id("baseline_job_id", call.baseline_job_id)
    yield from _candidates(call)
    if call.HasField("alpha"):
        yield from fields.within("alpha", call.alpha, MIN_ALPHA, MAX_ALPHA)
    yield from fields.tolerance("tolerance", call.tolerance)
    yield from fields.text("cluster_by", call.cluster_by, MAX_NAME_LENGTH)
    if call.HasField("max_bad_answer_ratio"):
        yield from fields.within("max_bad_answer_ratio", call.max_bad_answer_ratio, 0, 1)
    if call.correction not in Correction.values():
        yield FieldViolation("correction", f"{call.correction} is no correction that this server knows")
    yield from fields.at_most("metrics", call.metrics, fields.MAX_SELECTORS)
    yield from fields.at_most("metric_thresholds", call.metric_thresholds, fields.MAX_SELECTORS)
    for index, selector in enumerate(call.metrics[: fields.MAX_SELECTORS]):
        yield from fields.metric_selector(f"metrics[{index}]", selector)
    for index, threshold in enumerate(call.metric_thresholds[: fields.MAX_SELECTORS]):
        field = f"metric_thresholds[{index}]"
        yield from fields.metric_selector(f"{field}.selector", threshold.selector)
        yield from fields.tolerance(f"{field}.tolerance", threshold.tolerance)
        if not (threshold.HasField("tolerance") or threshold.HasField("higher_is_better")):
            yield FieldViolation(field, "must set `tolerance` or `higher_is_better`")


def _candidates(call: CompareJobsRequest) -> Violations:
    job_ids = call.candidate_job_ids
    if not 1 <= len(job_ids) <= MAX_CANDIDATES:
        yield FieldViolation("candidate_job_ids", f"has {len(job_ids)} jobs; from 1 to {MAX_CANDIDATES} are allowed")
        return
    baseline, seen = call.baseline_job_id.lower(), set[str]()
    for index, job_id in enumerate(map(str.lower, job_ids)):
        field = f"candidate_job_ids[{index}]"
        yield from fields.job_id(field, job_id)
        if job_id and job_id == baseline:
            yield FieldViolation(field, _OF_ITSELF)
        elif job_id and job_id in seen:
            yield FieldViolation(field, f"{fields.quote(job_id)} is there twice")
        seen.add(job_id)


def plan(call: PlanComparisonRequest) -> Violations:
    """Yield what is wrong with a PlanComparisonRequest."""
    yield from fields.within("difference", call.difference, MIN_DIFFERENCE, MAX_DIFFERENCE)
    if call.HasField("alpha"):
        yield from fields.within("alpha", call.alpha, MIN_ALPHA, MAX_ALPHA)
    if call.HasField("power"):
        yield from fields.within("power", call.power, MIN_POWER, MAX_POWER)
    if call.HasField("differing_ratio"):
        yield from _plan_from_ratio(call)
    else:
        yield from _plan_from_jobs(call)


def _plan_from_ratio(call: PlanComparisonRequest) -> Violations:
    ratio = call.differing_ratio
    if not 0 < ratio <= 1:
        yield FieldViolation("differing_ratio", f"must be above 0 and at most 1, and is {ratio:g}")
    elif ratio < call.difference:
        yield FieldViolation("differing_ratio", f"must be at least `difference`: if {ratio:g} differ, no difference is larger")
    if call.baseline_job_id:
        yield FieldViolation("baseline_job_id", "must be empty with `differing_ratio`: give either one or the other")
    for field in ("candidate_job_id", "metrics", "cluster_by"):
        if getattr(call, field):
            yield FieldViolation(field, "takes a `baseline_job_id`")


def _plan_from_jobs(call: PlanComparisonRequest) -> Violations:
    if not call.baseline_job_id:
        yield FieldViolation("baseline_job_id", "is required without `differing_ratio`")
    elif call.candidate_job_id:
        yield from _two_jobs(call.baseline_job_id, call.candidate_job_id)
    else:
        yield from fields.job_id("baseline_job_id", call.baseline_job_id)
    yield from fields.metric_selectors("metrics", call.metrics)
    yield from fields.text("cluster_by", call.cluster_by, MAX_NAME_LENGTH)


def flips(call: ListFlipsRequest) -> Violations:
    """Yield what is wrong with a ListFlipsRequest."""
    yield from _two_jobs(call.baseline_job_id, call.candidate_job_id)
    if call.HasField("metric"):
        yield from fields.metric_selector("metric", call.metric)
    yield from fields.text("model", call.model, MAX_MODEL_LENGTH)
    if call.direction not in FlipDirection.values():
        yield FieldViolation("direction", f"{call.direction} is no direction that this server knows; leave it out")
    yield from fields.not_negative("page_size", call.page_size)


def _two_jobs(baseline_job_id: str, candidate_job_id: str) -> Violations:
    yield from fields.job_id("baseline_job_id", baseline_job_id)
    yield from fields.job_id("candidate_job_id", candidate_job_id)
    if candidate_job_id and candidate_job_id.lower() == baseline_job_id.lower():
        yield FieldViolation("candidate_job_id", _OF_ITSELF)


def history(call: GetHistoryRequest) -> Violations:
    """Yield what is wrong with a GetHistoryRequest."""
    yield from job_filter(call.filter)
    yield from fields.metric_selectors("metrics", call.metrics)
    yield from fields.label_key("step_label", call.step_label)
    yield from fields.label_key("trends.run_label", call.trends.run_label)
    if call.trends.HasField("alpha"):
        yield from fields.within("trends.alpha", call.trends.alpha, MIN_ALPHA, MAX_ALPHA)
    yield from fields.tolerance("trends.tolerance", call.trends.tolerance)
    yield from fields.not_negative("page_size", call.page_size)
