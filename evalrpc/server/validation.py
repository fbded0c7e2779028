"""Find every bad field of a request, with its path. What a particular harness can't accept, it reports itself."""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from evalrpc.config import ModelServer
from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.harnesses.base import Harness, ParallelHarness, TaskArgsHarness
from evalrpc.jobs import lifecycle
from evalrpc.jobs.defaults import executor_of, gpus_by_field, gpus_field, gpus_needed
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.label_selectors import parse_selector
from evalrpc.jobs.paths import allowed_output_dir
from evalrpc.jobs.size_limits import MAX_ARGS_BYTES, MAX_SERVED_ARGS_BYTES, MAX_SUBMIT_SUITE_BYTES, MAX_TASK_NAMES_BYTES
from evalrpc.printable import first_unprintable, printable
from evalrpc.protobuf.texts import MAX_NAME_LENGTH
from evalrpc.server import served_use
from evalrpc.server.argument_values import argument_fields
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, Correction, FlipDirection, ListFlipsRequest, PlanComparisonRequest
from evalrpc.v1.files_pb2 import ReadLogRequest
from evalrpc.v1.history_pb2 import GetHistoryRequest
from evalrpc.v1.jobs_pb2 import (
    CacheMode,
    EvaluateRequest,
    GpuMode,
    JobFilter,
    JobView,
    SubmitJobRequest,
    UpdateJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from evalrpc.v1.results_pb2 import MetricSelector
from evalrpc.v1.suites_pb2 import (
    CancelSuiteRunRequest,
    GetSuiteRunRequest,
    ListSuiteRunsRequest,
    SubmitSuiteRequest,
    SuiteRunView,
    WatchSuiteRunRequest,
)

MAX_ARG_VALUES: Final = 100_000
"""Values of all fields with arguments together: each element of a list and of a struct is one."""
MAX_MODEL_LENGTH: Final = 1024
MAX_OUTPUT_DIR_BYTES: Final = 4096
MAX_TASKS: Final = 1000
MAX_STATUSES: Final = 64
MAX_LABELS: Final = 64
MAX_SELECTORS: Final = 100
MAX_NESTING: Final = 16
MAX_ATTEMPTS: Final = 10
MAX_PRIORITY: Final = 1000
MAX_REASON_LENGTH: Final = 1000
_SECONDS_PER_DAY: Final = 24 * 3600
MAX_TIMEOUT_SECONDS: Final = 366 * _SECONDS_PER_DAY
MAX_CANDIDATES: Final = 16
MAX_PATHS: Final = 100
MIN_ALPHA: Final = 0.001
MAX_ALPHA: Final = 0.5
MIN_POWER: Final = 0.5
MAX_POWER: Final = 0.999
MIN_HEARTBEAT_SECONDS: Final = 0.1
_MAX_PATH_KEY: Final = 64  # characters of a key in the path of a field
UPDATABLE: Final = frozenset({"labels", "priority"})
"""What UpdateJob can change of a job."""
MIN_DIFFERENCE: Final = 1e-12
MAX_DIFFERENCE: Final = 1e12
"""What a comparison is planned for. What is beyond can't be computed with."""
_YEAR_2200_SECONDS: Final = 7_258_118_400

_BATCH_SIZE = re.compile(r"auto(:[1-9][0-9]{0,5})?|[1-9][0-9]{0,5}")
_DEVICE = re.compile(r"[a-z]{2,16}(:[0-9]{1,3})?")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,63}")
_JOB_ID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_PART = re.compile(r"[.\[]")  # what each part of a field's path begins with
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_NO_ENGINES: Final[Mapping[str, ModelServer]] = MappingProxyType({})

_Violations = Iterator[FieldViolation]


def require(violations: Iterable[FieldViolation]) -> None:
    """Raise InvalidRequestError with all violations, if there are any."""
    found = tuple(violations)
    if found:
        raise InvalidRequestError(violations=found)


def is_job_id(job_id: str) -> bool:
    """Return whether this can be the id of a job."""
    return _JOB_ID.fullmatch(job_id) is not None


def require_job_id(job_id: str) -> str:
    """Return the id in its canonical form. Raises InvalidRequestError unless it is a UUID."""
    require(_job_id("job_id", job_id))
    return job_id.lower()


def require_page_size(page_size: int, default: int, maximum: int) -> int:
    """Return the page size to use. Raises InvalidRequestError if it is negative."""
    require(_not_negative("page_size", page_size))
    return min(page_size or default, maximum)


def submission(
    call: SubmitJobRequest,
    harnesses: Mapping[str, Harness],
    gpu_counts: Sequence[int],
    output_root: Path | None,
    max_gpus: int | None = None,
    engines: Mapping[str, ModelServer] = _NO_ENGINES,
) -> _Violations:
    """Yield what is wrong with a SubmitJobRequest, in which the defaults are filled in. `gpu_counts`: how many GPUs each node
    has, since a job runs on one; `max_gpus`: how many the caller may hold, None for any number; `engines`: what may serve a
    model, endpoints too."""
    if not call.HasField("request"):
        yield FieldViolation("request", "is required")
    else:
        for field, description in _request(call.request, harnesses, gpu_counts, output_root, engines):
            yield FieldViolation(f"request.{field}", description)
        wanted = gpus_needed(call.request)
        if max_gpus is not None and max_gpus < wanted <= max(gpu_counts, default=0):
            yield FieldViolation(
                f"request.{gpus_field(call.request)}", f"asks for {wanted}, and your quota is {max_gpus} at once"
            )
    if call.request_id and not _REQUEST_ID.fullmatch(call.request_id):
        yield FieldViolation("request_id", "must be 1 to 128 printable ASCII characters without spaces")
    yield from _priority(call.priority)
    yield from _labels("labels", call.labels)
    if call.HasField("timeout"):
        yield from _duration("timeout", call.timeout, 0.001, MAX_TIMEOUT_SECONDS)
    if not 0 <= call.max_attempts <= MAX_ATTEMPTS:
        yield FieldViolation("max_attempts", f"must be from 1 to {MAX_ATTEMPTS}, or 0 for 1")
    yield from _text("supersede_key", call.supersede_key, MAX_NAME_LENGTH)
    if call.cache and call.cache not in CacheMode.values():
        yield FieldViolation("cache", f"{call.cache} is no mode that this server knows: CACHE_MODE_ALLOW, or leave it out")


def watch(call: WatchJobRequest | WatchJobsRequest | WatchSuiteRunRequest) -> _Violations:
    """Yield what is wrong with the options of a watch."""
    yield from _not_negative("after_revision", call.after_revision)
    yield from _heartbeat(call.heartbeat_interval)


def log(call: ReadLogRequest) -> _Violations:
    """Yield what is wrong with a ReadLogRequest, besides its `job_id`."""
    yield from offsets(offset=call.offset, attempt=call.attempt)
    yield from _heartbeat(call.heartbeat_interval)
    for field in ("follow", "preparation"):
        if call.engine and getattr(call, field):
            yield FieldViolation(field, "must be false with `engine`, whose log is read as it is now")


def engine_id(engine_id: str) -> _Violations:
    """Yield a violation for what can't be the id of an engine."""
    if not engine_id:
        yield FieldViolation("engine_id", "is required: ListEngines has the ids")
    yield from _text("engine_id", engine_id, MAX_NAME_LENGTH)


def _statuses(field: str, statuses: Sequence[int]) -> _Violations:
    if len(statuses) > MAX_STATUSES:
        yield FieldViolation(field, f"has {len(statuses)} values; at most {MAX_STATUSES} are allowed")
        return
    for index, status in enumerate(statuses):
        if status not in lifecycle.LIVE | lifecycle.TERMINAL:
            yield FieldViolation(f"{field}[{index}]", f"{status} is no status that a job can have")


def job_filter(jobs: JobFilter) -> _Violations:
    """Yield what is wrong with a filter."""
    yield from _statuses("filter.statuses", jobs.statuses)
    yield from _labels("filter.labels", jobs.labels)
    for name, values in (
        ("models", jobs.models),
        ("tasks", jobs.tasks),
        ("harnesses", jobs.harnesses),
        ("owners", jobs.owners),
        ("suite_run_ids", jobs.suite_run_ids),
    ):
        if len(values) > MAX_TASKS:
            yield FieldViolation(f"filter.{name}", f"has {len(values)} values; at most {MAX_TASKS} are allowed")
    for index, suite_run_id in enumerate(jobs.suite_run_ids[:MAX_TASKS]):
        yield from _job_id(f"filter.suite_run_ids[{index}]", suite_run_id)
    for name, time in (("created_after", jobs.created_after), ("created_before", jobs.created_before)):
        if not (0 <= time.seconds < _YEAR_2200_SECONDS and 0 <= time.nanos < 10**9):
            yield FieldViolation(f"filter.{name}", "must be a time from 1970 to 2200")
    yield from _parsed("filter.label_selector", jobs.label_selector, parse_selector)
    yield from _parsed("filter.job_id_prefix", jobs.job_id_prefix, canonical_prefix)


def view(chosen: JobView.ValueType) -> _Violations:
    """Yield a violation unless this server knows the view."""
    if chosen not in JobView.values():
        yield FieldViolation("view", f"{chosen} is no view that this server knows: set JOB_VIEW_BASIC, or JOB_VIEW_FULL")


def update(call: UpdateJobRequest) -> _Violations:
    """Yield what is wrong with an UpdateJobRequest. Fields that it does not change don't matter."""
    yield from _job_id("job_id", call.job_id)
    yield from _update_mask(call)
    changed = updated_fields(call)
    if "labels" in changed:
        yield from _labels("labels", call.labels)
    if "priority" in changed:
        yield from _priority(call.priority)
    if call.HasField("expected_revision"):
        yield from _not_negative("expected_revision", call.expected_revision)


def updated_fields(call: UpdateJobRequest) -> Set[str]:
    """Return the fields that an UpdateJobRequest changes: those that the mask names, or, without one, those that are set."""
    if "*" in call.update_mask.paths:
        return UPDATABLE
    if call.update_mask.paths:
        return UPDATABLE.intersection(call.update_mask.paths)
    return {name for name in UPDATABLE if getattr(call, name)}


def history(call: GetHistoryRequest) -> _Violations:
    """Yield what is wrong with a GetHistoryRequest."""
    yield from job_filter(call.filter)
    yield from metric_selectors("metrics", call.metrics)
    yield from _label_key("step_label", call.step_label)
    yield from _label_key("trends.run_label", call.trends.run_label)
    if call.trends.HasField("alpha"):
        yield from _within("trends.alpha", call.trends.alpha, MIN_ALPHA, MAX_ALPHA)
    yield from _tolerance("trends.tolerance", call.trends.tolerance)


def _label_key(field: str, key: str) -> _Violations:
    if key and not _LABEL.fullmatch(key):
        yield FieldViolation(field, f"{_quote(key)} must be 1 to 63 characters of A-Z a-z 0-9 _ . / -")


def offsets(**fields: int) -> _Violations:
    """Yield a violation for each negative number."""
    for field, number in fields.items():
        yield from _not_negative(field, number)


def harness_name(name: str, harnesses: Mapping[str, Harness]) -> _Violations:
    """Yield a violation if there is no such harness, or the name is empty because the server has no default."""
    if name not in harnesses:
        known = ", ".join(sorted(harnesses))
        problem = f"this server has no harness {_quote(name)}; it has" if name else "must name one of this server's harnesses"
        yield FieldViolation("harness", f"{problem}: {known}")


def comparison(call: CompareJobsRequest) -> _Violations:
    """Yield what is wrong with a CompareJobsRequest."""
    yield from _job_id("baseline_job_id", call.baseline_job_id)
    yield from _candidates(call)
    if call.HasField("alpha"):
        yield from _within("alpha", call.alpha, MIN_ALPHA, MAX_ALPHA)
    yield from _tolerance("tolerance", call.tolerance)
    yield from _text("cluster_by", call.cluster_by, MAX_NAME_LENGTH)
    if call.HasField("max_bad_answer_ratio"):
        yield from _within("max_bad_answer_ratio", call.max_bad_answer_ratio, 0, 1)
    if call.correction not in Correction.values():
        yield FieldViolation("correction", f"{call.correction} is no correction that this server knows")
    for name, values in (("metrics", call.metrics), ("metric_thresholds", call.metric_thresholds)):
        if len(values) > MAX_SELECTORS:
            yield FieldViolation(name, f"has {len(values)} values; at most {MAX_SELECTORS} are allowed")
    for index, selector in enumerate(call.metrics[:MAX_SELECTORS]):
        yield from _selector(f"metrics[{index}]", selector)
    for index, threshold in enumerate(call.metric_thresholds[:MAX_SELECTORS]):
        field = f"metric_thresholds[{index}]"
        yield from _selector(f"{field}.selector", threshold.selector)
        yield from _tolerance(f"{field}.tolerance", threshold.tolerance)
        if not (threshold.HasField("tolerance") or threshold.HasField("higher_is_better")):
            yield FieldViolation(field, "must set `tolerance` or `higher_is_better`")


def plan(call: PlanComparisonRequest) -> _Violations:
    """Yield what is wrong with a PlanComparisonRequest."""
    yield from _within("difference", call.difference, MIN_DIFFERENCE, MAX_DIFFERENCE)
    if call.HasField("alpha"):
        yield from _within("alpha", call.alpha, MIN_ALPHA, MAX_ALPHA)
    if call.HasField("power"):
        yield from _within("power", call.power, MIN_POWER, MAX_POWER)
    if call.HasField("differing_ratio"):
        yield from _plan_from_ratio(call)
    else:
        yield from _plan_from_jobs(call)


def flips(call: ListFlipsRequest) -> _Violations:
    """Yield what is wrong with a ListFlipsRequest."""
    yield from _two_jobs(call.baseline_job_id, call.candidate_job_id)
    if call.HasField("metric"):
        yield from _selector("metric", call.metric)
    yield from _text("model", call.model, MAX_MODEL_LENGTH)
    if call.direction not in FlipDirection.values():
        yield FieldViolation("direction", f"{call.direction} is no direction that this server knows; leave it out")


def suite_request(request: EvaluateRequest) -> _Violations:
    """Yield what is wrong with what a suite says of a request."""
    yield from _tasks(request)
    yield from _not_negative("num_fewshot", request.num_fewshot)
    yield from _limit(request)
    yield from _all_arguments({"gen_kwargs": request.gen_kwargs, "task_args": request.task_args})


def suite_submission(call: SubmitSuiteRequest) -> _Violations:
    """Yield what is wrong with the parts of a SubmitSuiteRequest that its jobs don't have."""
    if call.request_id and not _REQUEST_ID.fullmatch(call.request_id):
        yield FieldViolation("request_id", "must be 1 to 128 printable ASCII characters without spaces")
    if (size_bytes := call.ByteSize()) > MAX_SUBMIT_SUITE_BYTES:
        yield FieldViolation("request", f"the message has {size_bytes} bytes; at most {MAX_SUBMIT_SUITE_BYTES} are allowed")
    if call.baseline_suite_run_id:
        yield from _job_id("baseline_suite_run_id", call.baseline_suite_run_id)


def suite_run(call: GetSuiteRunRequest) -> _Violations:
    """Yield what is wrong with a GetSuiteRunRequest."""
    yield from _job_id("suite_run_id", call.suite_run_id)
    if call.view not in SuiteRunView.values():
        known = "set SUITE_RUN_VIEW_BASIC, or SUITE_RUN_VIEW_DECISION"
        yield FieldViolation("view", f"{call.view} is no view that this server knows: {known}")
    if not call.baseline_suite_run_id:
        return
    yield from _job_id("baseline_suite_run_id", call.baseline_suite_run_id)
    if call.view != SuiteRunView.SUITE_RUN_VIEW_DECISION:
        yield FieldViolation("baseline_suite_run_id", "takes the view SUITE_RUN_VIEW_DECISION")
    if call.baseline_suite_run_id.lower() == call.suite_run_id.lower():
        yield FieldViolation("baseline_suite_run_id", "is the run itself, which can't be compared with itself")


def suite_runs(call: ListSuiteRunsRequest) -> _Violations:
    """Yield what is wrong with a ListSuiteRunsRequest."""
    if len(call.suites) > MAX_TASKS:
        yield FieldViolation("suites", f"has {len(call.suites)} values; at most {MAX_TASKS} are allowed")
    yield from _statuses("statuses", call.statuses)
    yield from _parsed("label_selector", call.label_selector, parse_selector)
    yield from _parsed("suite_run_id_prefix", call.suite_run_id_prefix, canonical_prefix)
    yield from _not_negative("page_size", call.page_size)


def suite_run_watch(call: WatchSuiteRunRequest) -> _Violations:
    """Yield what is wrong with a WatchSuiteRunRequest."""
    yield from _job_id("suite_run_id", call.suite_run_id)
    yield from watch(call)


def suite_run_cancel(call: CancelSuiteRunRequest) -> _Violations:
    """Yield what is wrong with a CancelSuiteRunRequest."""
    yield from _job_id("suite_run_id", call.suite_run_id)
    yield from cancel_reason(call.reason)


def metric_selectors(field: str, selectors: Sequence[MetricSelector]) -> _Violations:
    """Yield what is wrong with selectors of metrics."""
    if len(selectors) > MAX_SELECTORS:
        yield FieldViolation(field, f"has {len(selectors)} selectors; at most {MAX_SELECTORS} are allowed")
        return
    for index, selector in enumerate(selectors):
        yield from _selector(f"{field}[{index}]", selector)


def cancel_reason(reason: str) -> _Violations:
    """Yield what is wrong with the reason of a cancel."""
    yield from _text("reason", reason, MAX_REASON_LENGTH)


def _job_id(field: str, job_id: str) -> _Violations:
    if not is_job_id(job_id):
        problem = "must be a UUID such as 0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c" if job_id else "is required"
        yield FieldViolation(field, problem)


def _plan_from_ratio(call: PlanComparisonRequest) -> _Violations:
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


def _plan_from_jobs(call: PlanComparisonRequest) -> _Violations:
    if not call.baseline_job_id:
        yield FieldViolation("baseline_job_id", "is required without `differing_ratio`")
    elif call.candidate_job_id:
        yield from _two_jobs(call.baseline_job_id, call.candidate_job_id)
    else:
        yield from _job_id("baseline_job_id", call.baseline_job_id)
    yield from metric_selectors("metrics", call.metrics)
    yield from _text("cluster_by", call.cluster_by, MAX_NAME_LENGTH)


def _two_jobs(baseline_job_id: str, candidate_job_id: str) -> _Violations:
    yield from _job_id("baseline_job_id", baseline_job_id)
    yield from _job_id("candidate_job_id", candidate_job_id)
    if candidate_job_id and candidate_job_id.lower() == baseline_job_id.lower():
        yield FieldViolation("candidate_job_id", "is the baseline: a job can't be compared with itself")


def _within(field: str, number: float, minimum: float, maximum: float) -> _Violations:
    if not minimum <= number <= maximum:
        yield FieldViolation(field, f"must be from {minimum:.15g} to {maximum:.15g}, and is {number:.15g}")


def _candidates(call: CompareJobsRequest) -> _Violations:
    job_ids = call.candidate_job_ids
    if not 1 <= len(job_ids) <= MAX_CANDIDATES:
        yield FieldViolation("candidate_job_ids", f"has {len(job_ids)} jobs; from 1 to {MAX_CANDIDATES} are allowed")
        return
    seen = {call.baseline_job_id.lower()}
    for index, job_id in enumerate(job_ids):
        field = f"candidate_job_ids[{index}]"
        yield from _job_id(field, job_id)
        if job_id and job_id.lower() in seen:
            yield FieldViolation(field, f"{_quote(job_id)} is there twice: a job can't be compared with itself")
        seen.add(job_id.lower())


def _selector(field: str, selector: MetricSelector) -> _Violations:
    if not (selector.task or selector.metric):
        yield FieldViolation(field, "must name a task or a metric")
    for name in ("task", "metric", "filter"):
        yield from _text(f"{field}.{name}", getattr(selector, name), MAX_NAME_LENGTH)


def _tolerance(field: str, tolerance: float) -> _Violations:
    if not 0 <= tolerance < math.inf:
        yield FieldViolation(field, f"must be finite and not negative, and is {tolerance:g}")


def _request(
    request: EvaluateRequest,
    harnesses: Mapping[str, Harness],
    gpu_counts: Sequence[int],
    output_root: Path | None,
    engines: Mapping[str, ModelServer],
) -> _Violations:
    harness = harnesses.get(request.harness)
    found: list[FieldViolation] = []
    for judged in (
        _well_formed(request, gpu_counts, output_root),
        _model(request, harness, engines),
        _task_args(request, harness),
        _harness(request, harnesses, engines),
    ):
        named = _NamedFields(violation.field for violation in found)
        found += [violation for violation in judged if violation.field not in named]
    yield from found


class _NamedFields:
    """Fields already reported, of which there may be many. A field is among them if it, a part of it or something that contains
    it was reported."""

    def __init__(self, fields: Iterable[str]) -> None:
        self._fields = set(fields)
        self._sorted = sorted(self._fields)

    def __contains__(self, field: str) -> bool:
        ends = (match.start() for match in _PART.finditer(field))
        return (
            field in self._fields
            or any(field[:end] in self._fields for end in ends)
            or any(self._has_one_below(f"{field}{mark}") for mark in ".[")
        )

    def _has_one_below(self, prefix: str) -> bool:
        first = bisect_left(self._sorted, prefix)
        return first < len(self._sorted) and self._sorted[first].startswith(prefix)


def _well_formed(request: EvaluateRequest, gpu_counts: Sequence[int], output_root: Path | None) -> _Violations:
    yield from _tasks(request)
    yield from _all_arguments(argument_fields(request))
    yield from _not_negative("num_fewshot", request.num_fewshot)
    if request.batch_size and not _BATCH_SIZE.fullmatch(request.batch_size):
        yield FieldViolation("batch_size", "must be a positive number, `auto`, or `auto:N`")
    if request.device and not _DEVICE.fullmatch(request.device):
        yield FieldViolation("device", "must be a torch device such as `cuda`, `cuda:0` or `cpu`")
    yield from _limit(request)
    yield from _gpus(request, gpu_counts)
    yield from _output_dir(request.output_dir, output_root)
    if request.gpu_mode not in GpuMode.values():
        yield FieldViolation("gpu_mode", f"{request.gpu_mode} is no mode that this server knows; leave it out")
    if request.HasField("max_bad_answer_ratio") and not 0 <= request.max_bad_answer_ratio <= 1:
        yield FieldViolation("max_bad_answer_ratio", f"must be from 0 to 1, not {request.max_bad_answer_ratio:g}")


def _model(request: EvaluateRequest, harness: Harness | None, engines: Mapping[str, ModelServer]) -> _Violations:
    if request.HasField("judge_model"):
        yield from served_use.judge_violations(request, engines, harness)
    if request.HasField("served_model"):
        yield from served_use.violations(request, engines, harness)
    else:
        yield from _name("model", request.model, MAX_MODEL_LENGTH)


def _task_args(request: EvaluateRequest, harness: Harness | None) -> _Violations:
    if request.task_args.fields and harness is not None and not isinstance(harness, TaskArgsHarness):
        yield FieldViolation("task_args", f"harness {harness.name} takes none: leave it out")


def _harness(request: EvaluateRequest, harnesses: Mapping[str, Harness], engines: Mapping[str, ModelServer]) -> _Violations:
    harness = harnesses.get(request.harness)
    if harness is None:
        yield from harness_name(request.harness, harnesses)
    elif request.HasField("served_model"):
        yield from served_use.violations_when_pointed(request, harness, engines)
    else:
        yield from harness.violations(request)
        if request.gpu_mode and not isinstance(harness, ParallelHarness):
            yield FieldViolation("gpu_mode", f"harness {harness.name} has only one way to use its GPUs; leave it out")


def _tasks(request: EvaluateRequest) -> _Violations:
    if not request.tasks:
        yield FieldViolation("tasks", "at least one task is required")
    if len(request.tasks) > MAX_TASKS:
        yield FieldViolation("tasks", f"has {len(request.tasks)} tasks; at most {MAX_TASKS} are allowed")
        return
    size_bytes = sum(len(task.encode()) for task in request.tasks)
    if size_bytes > MAX_TASK_NAMES_BYTES:
        yield FieldViolation("tasks", f"has names of {size_bytes} bytes; at most {MAX_TASK_NAMES_BYTES} are allowed together")
        return
    seen: set[str] = set()
    for index, task in enumerate(request.tasks):
        field = f"tasks[{index}]"
        yield from _name(field, task, MAX_NAME_LENGTH)
        if "/" in task or "\\" in task or task.lower().endswith((".yaml", ".yml")):
            yield FieldViolation(
                field, "must be the name of a task, not a path: the operator decides which task folders there are"
            )
        if task in seen:
            yield FieldViolation(field, f"{_quote(task)} is there twice")
        seen.add(task)


def _limit(request: EvaluateRequest) -> _Violations:
    if not request.HasField("limit"):
        return
    limit = request.limit
    if not math.isfinite(limit) or limit <= 0:
        yield FieldViolation("limit", f"must be above 0 and finite, not {limit:.15g}; leave it out to evaluate everything")
    elif limit > 1 and not limit.is_integer():
        yield FieldViolation("limit", f"must be a fraction below 1 or a whole number, not {limit:.15g}")


def _gpus(request: EvaluateRequest, gpu_counts: Sequence[int]) -> _Violations:
    field, wanted = gpus_field(request), gpus_needed(request)
    negative = {name: count for name, count in gpus_by_field(request).items() if count < 0}
    for name, count in negative.items():
        yield FieldViolation(name, f"must not be negative, and is {count}")
    if not negative and wanted > (widest := max(gpu_counts, default=0)):
        where = executor_of(request) or "this server"
        has = f"no node of {where} has more than {widest}" if len(gpu_counts) > 1 else f"{where} has {widest}"
        asked = "1 GPU" if wanted == 1 else f"{wanted} GPUs"
        asked += " together with the judge" if request.HasField("judge_model") else ""
        yield FieldViolation(field, f"asks for {asked}, and {has if widest else f'{where} has none: leave it out'}")


def _output_dir(output_dir: str, output_root: Path | None) -> _Violations:
    if not output_dir:
        return
    problems = list(_text("output_dir", output_dir, MAX_OUTPUT_DIR_BYTES))
    if problems:
        yield from problems
    elif (size_bytes := len(output_dir.encode())) > MAX_OUTPUT_DIR_BYTES:
        yield FieldViolation("output_dir", f"has {size_bytes} bytes; at most {MAX_OUTPUT_DIR_BYTES} are allowed")
    elif output_root is None:
        yield FieldViolation("output_dir", "this server allows none (its operator has set no output_root); leave it empty")
    elif allowed_output_dir(output_root, output_dir) is None:
        yield FieldViolation("output_dir", f"{_quote(output_dir)} leads outside the output root of this server")


def _all_arguments(arguments: Mapping[str, Struct]) -> _Violations:
    """Yield what is wrong with the arguments of a request, by field."""
    left = MAX_ARG_VALUES
    for field, struct in arguments.items():
        size_bytes, most = struct.ByteSize(), MAX_SERVED_ARGS_BYTES if field.endswith(".args") else MAX_ARGS_BYTES
        if size_bytes > most:
            yield FieldViolation(field, f"has {size_bytes} bytes when serialised; at most {most} are allowed")
            continue
        checked = _Arguments(field, struct, left)
        yield from checked.violations
        left -= checked.value_count
        if left < 0:
            together = " and ".join(name for name, struct in arguments.items() if struct.fields)
            yield FieldViolation(field, f"has too many values: at most {MAX_ARG_VALUES} are allowed in {together} together")
            return


class _Arguments:
    """Looks into all values of a struct, up to a number of them, without recursion."""

    def __init__(self, field: str, struct: Struct, max_values: int) -> None:
        self.violations: list[FieldViolation] = []
        self.value_count = 0
        """How many values there are; more than `max_values` if there are more."""
        is_deep = False
        pending = [iter(_fields_of(field, struct))]  # of the struct or list that a value is in, and of all around it
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
                continue
            path, key, value = found
            self.value_count += 1
            if self.value_count > max_values:
                return
            is_deep = is_deep or len(pending) > MAX_NESTING
            if len(pending) <= MAX_NESTING:
                self._look_at(path, key, value)
                if value.HasField("struct_value"):
                    pending.append(_fields_of(path, value.struct_value))
                elif value.HasField("list_value"):
                    pending.append(_items_of(path, value.list_value))
        if is_deep:  # clients could not decode it in a list of jobs
            self.violations = [FieldViolation(field, f"is nested more than {MAX_NESTING} deep")]

    def _look_at(self, path: str, key: str, value: Value) -> None:
        if (character := first_unprintable(key)) is not None:
            self.violations.append(FieldViolation(printable(path), _unprintable(character)))
        if value.HasField("string_value") and "\0" in value.string_value:  # no program takes it; others are data
            self.violations.append(FieldViolation(printable(path), _unprintable("\\x00")))
        elif value.HasField("number_value") and not math.isfinite(value.number_value):
            self.violations.append(FieldViolation(path, "must be finite"))


def _fields_of(path: str, struct: Struct) -> Iterator[tuple[str, str, Value]]:
    return ((f"{path}.{key[:_MAX_PATH_KEY]}", key, value) for key, value in struct.fields.items())


def _items_of(path: str, values: ListValue) -> Iterator[tuple[str, str, Value]]:
    return ((f"{path}[{index}]", "", value) for index, value in enumerate(values.values))


def _parsed(field: str, text: str, parse: Callable[[str], object]) -> _Violations:
    try:
        parse(text)
    except ValueError as error:
        yield FieldViolation(field, str(error))


def _update_mask(call: UpdateJobRequest) -> _Violations:
    known = ", ".join(sorted(UPDATABLE))
    paths = call.update_mask.paths
    if len(paths) > MAX_PATHS:
        yield FieldViolation("update_mask", f"has {len(paths)} paths; at most {MAX_PATHS} are allowed")
    elif not paths and not updated_fields(call):
        yield FieldViolation("update_mask", f"is required where no field is set, and names what to change: {known}")
    else:
        for index, path in enumerate(paths):
            if path != "*" and path not in UPDATABLE:
                yield FieldViolation(f"update_mask.paths[{index}]", f"{_quote(path)} can't be changed; these can: {known}")


def _priority(priority: int) -> _Violations:
    if abs(priority) > MAX_PRIORITY:
        yield FieldViolation("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")


def _labels(field: str, labels: Mapping[str, str]) -> _Violations:
    if len(labels) > MAX_LABELS:
        yield FieldViolation(field, f"has {len(labels)} labels; at most {MAX_LABELS} are allowed")
        return
    for key, value in labels.items():
        if not _LABEL.fullmatch(key):
            yield FieldViolation(field, f"key {_quote(key)} must be 1 to 63 characters of A-Z a-z 0-9 _ . / -")
        yield from _text(f"{field}[{_quote(key)}]", value, MAX_NAME_LENGTH)


def _name(field: str, name: str, max_length: int) -> _Violations:
    """Yield what is wrong with a name that ends up on a command line."""
    if not name.strip():
        yield FieldViolation(field, "must not be empty")
    elif name.startswith("-"):
        yield FieldViolation(field, f"{_quote(name)} must not begin with `-`")
    yield from _text(field, name, max_length)


def _text(field: str, text: str, max_length: int) -> _Violations:
    if len(text) > max_length:
        yield FieldViolation(field, f"has {len(text)} characters; at most {max_length} are allowed")
    elif (character := first_unprintable(text)) is not None:
        yield FieldViolation(field, _unprintable(character))


def _unprintable(character: str) -> str:
    return f"must have no control or invisible characters, and has {character}"


def _duration(field: str, duration: Duration, minimum_seconds: float, maximum_seconds: float) -> _Violations:
    seconds = duration.seconds + duration.nanos / 1e9
    if not (minimum_seconds <= seconds <= maximum_seconds and 0 <= duration.nanos < 10**9):
        yield FieldViolation(field, f"must be from {_seconds(minimum_seconds)} to {_seconds(maximum_seconds)}")


def _seconds(seconds: float) -> str:
    """Write a bound in words: `100 ms`, `366 days`."""
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    days = seconds / _SECONDS_PER_DAY
    return f"{days:.15g} days" if days.is_integer() else f"{seconds:.15g} seconds"


def _heartbeat(interval: Duration) -> _Violations:
    """Yield what is wrong with the interval of heartbeats; 0 means none."""
    if interval.seconds or interval.nanos:
        yield from _duration("heartbeat_interval", interval, MIN_HEARTBEAT_SECONDS, MAX_TIMEOUT_SECONDS)


def _not_negative(field: str, number: int) -> _Violations:
    if number < 0:
        yield FieldViolation(field, f"must not be negative, and is {number}")


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
