"""Find every bad field of a request, with its path. What a particular harness can't accept, it reports itself."""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from evalrpc.config import DEFAULT_HARNESS
from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.harnesses.base import Harness
from evalrpc.jobs import lifecycle
from evalrpc.jobs.defaults import gpus_needed
from evalrpc.jobs.paths import allowed_output_dir
from evalrpc.jobs.size_limits import MAX_ARGS_BYTES, MAX_TASK_NAMES_BYTES
from evalrpc.protobuf.texts import MAX_NAME_LENGTH
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, Correction
from evalrpc.v1.history_pb2 import GetHistoryRequest
from evalrpc.v1.jobs_pb2 import CacheMode, EvaluateRequest, JobFilter, SubmitJobRequest
from evalrpc.v1.results_pb2 import MetricSelector

MAX_ARG_VALUES: Final = 100_000
"""Values of `model_args` and `gen_kwargs` together: each element of a list and of a struct is one."""
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
MAX_TIMEOUT_SECONDS: Final = 366 * 24 * 3600
MAX_CANDIDATES: Final = 16
MIN_ALPHA: Final = 0.001
MAX_ALPHA: Final = 0.5
MIN_HEARTBEAT_SECONDS: Final = 0.1
_MAX_PATH_KEY: Final = 64  # characters of a key in the path of a field
_YEAR_2200_SECONDS: Final = 7_258_118_400

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # a value may have tabs and line breaks
_BATCH_SIZE = re.compile(r"auto(:[1-9][0-9]{0,5})?|[1-9][0-9]{0,5}")
_DEVICE = re.compile(r"[a-z]{2,16}(:[0-9]{1,3})?")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,63}")
_JOB_ID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_PART = re.compile(r"[.\[]")  # what each part of a field's path begins with
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_Violations = Iterator[FieldViolation]


def require(violations: Iterable[FieldViolation]) -> None:
    """Raise InvalidRequestError with all violations, if there are any."""
    found = tuple(violations)
    if found:
        raise InvalidRequestError(violations=found)


def require_job_id(job_id: str) -> str:
    """Return the id in its canonical form. Raises InvalidRequestError unless it is a UUID."""
    require(_job_id("job_id", job_id))
    return job_id.lower()


def require_page_size(page_size: int, default: int, maximum: int) -> int:
    """Return the page size to use. Raises InvalidRequestError if it is negative."""
    require(_not_negative("page_size", page_size))
    return min(page_size or default, maximum)


def submission(
    call: SubmitJobRequest, harnesses: Mapping[str, Harness], gpu_counts: Sequence[int], output_root: Path | None
) -> _Violations:
    """Yield what is wrong with a SubmitJobRequest. `gpu_counts`: how many GPUs each node has, since a job runs on one."""
    if not call.HasField("request"):
        yield FieldViolation("request", "is required")
    else:
        for field, description in _request(call.request, harnesses, gpu_counts, output_root):
            yield FieldViolation(f"request.{field}", description)
    if call.request_id and not _REQUEST_ID.fullmatch(call.request_id):
        yield FieldViolation("request_id", "must be 1 to 128 printable ASCII characters without spaces")
    if abs(call.priority) > MAX_PRIORITY:
        yield FieldViolation("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    yield from _labels("labels", call.labels)
    if call.HasField("timeout"):
        yield from _duration("timeout", call.timeout, 0.001, MAX_TIMEOUT_SECONDS)
    if not 0 <= call.max_attempts <= MAX_ATTEMPTS:
        yield FieldViolation("max_attempts", f"must be from 1 to {MAX_ATTEMPTS}, or 0 for 1")
    yield from _text("supersede_key", call.supersede_key, MAX_NAME_LENGTH)
    if call.cache and call.cache not in CacheMode.values():
        yield FieldViolation("cache", f"{call.cache} is no mode that this server knows: CACHE_MODE_ALLOW, or leave it out")


def watch(after_revision: int, heartbeat_interval: Duration | None) -> _Violations:
    """Yield what is wrong with the options of a watch."""
    yield from _not_negative("after_revision", after_revision)
    if heartbeat_interval is not None:
        yield from _duration("heartbeat_interval", heartbeat_interval, MIN_HEARTBEAT_SECONDS, MAX_TIMEOUT_SECONDS)


def job_filter(jobs: JobFilter) -> _Violations:
    """Yield what is wrong with a filter."""
    if len(jobs.statuses) > MAX_STATUSES:
        yield FieldViolation("filter.statuses", f"has {len(jobs.statuses)} values; at most {MAX_STATUSES} are allowed")
    else:
        for index, status in enumerate(jobs.statuses):
            if status not in lifecycle.LIVE | lifecycle.TERMINAL:
                yield FieldViolation(f"filter.statuses[{index}]", f"{status} is no status that a job can have")
    yield from _labels("filter.labels", jobs.labels)
    for name, values in (("models", jobs.models), ("tasks", jobs.tasks), ("harnesses", jobs.harnesses)):
        if len(values) > MAX_TASKS:
            yield FieldViolation(f"filter.{name}", f"has {len(values)} values; at most {MAX_TASKS} are allowed")
    for name, time in (("created_after", jobs.created_after), ("created_before", jobs.created_before)):
        if not (0 <= time.seconds < _YEAR_2200_SECONDS and 0 <= time.nanos < 10**9):
            yield FieldViolation(f"filter.{name}", "must be a time from 1970 to 2200")


def history(call: GetHistoryRequest) -> _Violations:
    """Yield what is wrong with a GetHistoryRequest."""
    yield from job_filter(call.filter)
    yield from metric_selectors("metrics", call.metrics)
    if call.step_label and not _LABEL.fullmatch(call.step_label):
        yield FieldViolation("step_label", f"{_quote(call.step_label)} must be 1 to 63 characters of A-Z a-z 0-9 _ . / -")


def offsets(**fields: int) -> _Violations:
    """Yield a violation for each negative number."""
    for field, number in fields.items():
        yield from _not_negative(field, number)


def harness_name(name: str, harnesses: Mapping[str, Harness]) -> _Violations:
    """Yield a violation if there is no such harness."""
    if name not in harnesses:
        known = ", ".join(sorted(harnesses))
        yield FieldViolation("harness", f"this server has no harness {_quote(name)}; it has: {known}")


def comparison(call: CompareJobsRequest) -> _Violations:
    """Yield what is wrong with a CompareJobsRequest."""
    yield from _job_id("baseline_job_id", call.baseline_job_id)
    yield from _candidates(call)
    if call.HasField("alpha") and not MIN_ALPHA <= call.alpha <= MAX_ALPHA:
        yield FieldViolation("alpha", f"must be from {MIN_ALPHA} to {MAX_ALPHA}, and is {call.alpha:g}")
    yield from _tolerance("tolerance", call.tolerance)
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
    if not _JOB_ID.fullmatch(job_id):
        problem = "must be a UUID such as 0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c" if job_id else "is required"
        yield FieldViolation(field, problem)


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
    request: EvaluateRequest, harnesses: Mapping[str, Harness], gpu_counts: Sequence[int], output_root: Path | None
) -> _Violations:
    found = list(_well_formed(request, gpu_counts, output_root))
    yield from found
    named = _NamedFields(violation.field for violation in found)
    yield from (violation for violation in _harness(request, harnesses) if violation.field not in named)


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
    yield from _name("model", request.model, MAX_MODEL_LENGTH)
    yield from _tasks(request)
    yield from _all_arguments({"model_args": request.model_args, "gen_kwargs": request.gen_kwargs})
    yield from _not_negative("num_fewshot", request.num_fewshot)
    if request.batch_size and not _BATCH_SIZE.fullmatch(request.batch_size):
        yield FieldViolation("batch_size", "must be a positive number, `auto`, or `auto:N`")
    if request.device and not _DEVICE.fullmatch(request.device):
        yield FieldViolation("device", "must be a torch device such as `cuda`, `cuda:0` or `cpu`")
    yield from _limit(request)
    yield from _gpus(request, gpu_counts)
    yield from _output_dir(request.output_dir, output_root)


def _harness(request: EvaluateRequest, harnesses: Mapping[str, Harness]) -> _Violations:
    name = request.harness or DEFAULT_HARNESS
    unknown = list(harness_name(name, harnesses))
    yield from unknown or harnesses[name].violations(request)


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
        yield FieldViolation("limit", f"must be above 0 and finite, not {limit:g}; leave it out to evaluate everything")
    elif limit > 1 and not limit.is_integer():
        yield FieldViolation("limit", f"must be a fraction below 1 or a whole number, not {limit:g}")


def _gpus(request: EvaluateRequest, gpu_counts: Sequence[int]) -> _Violations:
    wanted = gpus_needed(request)
    if wanted < 0:
        yield FieldViolation("num_gpus", f"must not be negative, and is {wanted}")
    elif wanted > (widest := max(gpu_counts, default=0)):
        has = f"no node of this server has more than {widest}" if len(gpu_counts) > 1 else f"this server has {widest}"
        has = has if widest else "this server has none: set it to 0 to run without"
        asked = wanted if request.HasField("num_gpus") else f"{wanted} (the default)"
        yield FieldViolation("num_gpus", f"asks for {asked} GPUs, and {has}")


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
        size_bytes = struct.ByteSize()
        if size_bytes > MAX_ARGS_BYTES:
            yield FieldViolation(field, f"has {size_bytes} bytes when serialised; at most {MAX_ARGS_BYTES} are allowed")
            continue
        checked = _Arguments(field, struct, left)
        yield from checked.violations
        left -= checked.value_count
        if left < 0:
            together = " and ".join(arguments)
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
        if _CONTROL_IN_TEXT.search(key) or (value.HasField("string_value") and _CONTROL_IN_TEXT.search(value.string_value)):
            self.violations.append(FieldViolation(path, "must have no control characters"))
        elif value.HasField("number_value") and not math.isfinite(value.number_value):
            self.violations.append(FieldViolation(path, "must be finite"))


def _fields_of(path: str, struct: Struct) -> Iterator[tuple[str, str, Value]]:
    return ((f"{path}.{key[:_MAX_PATH_KEY]}", key, value) for key, value in struct.fields.items())


def _items_of(path: str, values: ListValue) -> Iterator[tuple[str, str, Value]]:
    return ((f"{path}[{index}]", "", value) for index, value in enumerate(values.values))


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
    elif _CONTROL.search(text):
        yield FieldViolation(field, "must have no control characters")


def _duration(field: str, duration: Duration, minimum_seconds: float, maximum_seconds: float) -> _Violations:
    seconds = duration.seconds + duration.nanos / 1e9
    if not (minimum_seconds <= seconds <= maximum_seconds and 0 <= duration.nanos < 10**9):
        yield FieldViolation(field, f"must be from {minimum_seconds:g} to {maximum_seconds:g} seconds")


def _not_negative(field: str, number: int) -> _Violations:
    if number < 0:
        yield FieldViolation(field, f"must not be negative, and is {number}")


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
