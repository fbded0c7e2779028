"""What is wrong with calls that submit, find, follow and change jobs."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Final

from evalrpc.config import ModelServer
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.base import Harness
from evalrpc.jobs.defaults import gpus_field, gpus_needed
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.label_selectors import parse_selector
from evalrpc.protobuf.texts import MAX_NAME_LENGTH
from evalrpc.server.validation import fields
from evalrpc.server.validation.evaluations import evaluation
from evalrpc.server.validation.fields import Violations
from evalrpc.v1.files_pb2 import ReadLogRequest
from evalrpc.v1.jobs_pb2 import (
    CacheMode,
    JobFilter,
    JobView,
    SubmitJobRequest,
    UpdateJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from evalrpc.v1.suites_pb2 import WatchSuiteRunRequest

MAX_ATTEMPTS: Final = 10
MAX_PRIORITY: Final = 1000
MAX_PATHS: Final = 100
UPDATABLE: Final = frozenset({"labels", "priority"})
"""What UpdateJob can change of a job."""
_YEAR_2200_SECONDS: Final = 7_258_118_400

_NO_ENGINES: Final[Mapping[str, ModelServer]] = MappingProxyType({})


def submission(
    call: SubmitJobRequest,
    harnesses: Mapping[str, Harness],
    gpu_counts: Sequence[int],
    output_root: Path | None,
    max_gpus: int | None = None,
    engines: Mapping[str, ModelServer] = _NO_ENGINES,
) -> Violations:
    """Yield what is wrong with a SubmitJobRequest, in which the defaults are filled in. `gpu_counts`: how many GPUs each node
    has, since a job runs on one; `max_gpus`: how many the caller may hold, None for any number; `engines`: what may serve a
    model, endpoints too."""
    if not call.HasField("request"):
        yield FieldViolation("request", "is required")
    else:
        for field, description in evaluation(call.request, harnesses, gpu_counts, output_root, engines):
            yield FieldViolation(f"request.{field}", description)
        wanted = gpus_needed(call.request)
        if max_gpus is not None and max_gpus < wanted <= max(gpu_counts, default=0):
            yield FieldViolation(
                f"request.{gpus_field(call.request)}", f"asks for {wanted}, and your quota is {max_gpus} at once"
            )
    yield from fields.request_id(call.request_id)
    yield from _priority(call.priority)
    yield from fields.labels("labels", call.labels)
    if call.HasField("timeout"):
        yield from fields.duration("timeout", call.timeout, 0.001, fields.MAX_TIMEOUT_SECONDS)
    if not 0 <= call.max_attempts <= MAX_ATTEMPTS:
        yield FieldViolation("max_attempts", f"must be from 1 to {MAX_ATTEMPTS}, or 0 for 1")
    yield from fields.text("supersede_key", call.supersede_key, MAX_NAME_LENGTH)
    if call.cache and call.cache not in CacheMode.values():
        yield FieldViolation("cache", f"{call.cache} is no mode that this server knows: CACHE_MODE_ALLOW, or leave it out")


def _priority(priority: int) -> Violations:
    if abs(priority) > MAX_PRIORITY:
        yield FieldViolation("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")


def job_filter(jobs: JobFilter) -> Violations:
    """Yield what is wrong with a filter."""
    yield from fields.statuses("filter.statuses", jobs.statuses)
    yield from fields.labels("filter.labels", jobs.labels)
    for name, values in (
        ("models", jobs.models),
        ("tasks", jobs.tasks),
        ("harnesses", jobs.harnesses),
        ("owners", jobs.owners),
        ("suite_run_ids", jobs.suite_run_ids),
    ):
        yield from fields.at_most(f"filter.{name}", values, fields.MAX_FILTER_VALUES)
    for index, suite_run_id in enumerate(jobs.suite_run_ids[: fields.MAX_FILTER_VALUES]):
        yield from fields.job_id(f"filter.suite_run_ids[{index}]", suite_run_id)
    for name, time in (("created_after", jobs.created_after), ("created_before", jobs.created_before)):
        if not (0 <= time.seconds < _YEAR_2200_SECONDS and 0 <= time.nanos < 10**9):
            yield FieldViolation(f"filter.{name}", "must be a time from 1970 to 2200")
    yield from fields.parsed("filter.label_selector", jobs.label_selector, parse_selector)
    yield from fields.parsed("filter.job_id_prefix", jobs.job_id_prefix, canonical_prefix)


def view(chosen: JobView.ValueType) -> Violations:
    """Yield a violation unless this server knows the view."""
    if chosen not in JobView.values():
        yield FieldViolation("view", f"{chosen} is no view that this server knows: set JOB_VIEW_BASIC, or JOB_VIEW_FULL")


def watch(call: WatchJobRequest | WatchJobsRequest | WatchSuiteRunRequest) -> Violations:
    """Yield what is wrong with the options of a watch."""
    yield from fields.not_negative("after_revision", call.after_revision)
    yield from fields.heartbeat(call.heartbeat_interval)


def log(call: ReadLogRequest) -> Violations:
    """Yield what is wrong with a ReadLogRequest, besides its `job_id`."""
    yield from fields.offsets(offset=call.offset, attempt=call.attempt)
    yield from fields.heartbeat(call.heartbeat_interval)
    for field in ("follow", "preparation"):
        if call.engine and getattr(call, field):
            yield FieldViolation(field, "must be false with `engine`, whose log is read as it is now")


def update(call: UpdateJobRequest) -> Violations:
    """Yield what is wrong with an UpdateJobRequest. Fields that it does not change don't matter."""
    yield from fields.job_id("job_id", call.job_id)
    yield from _update_mask(call)
    changed = updated_fields(call)
    if "labels" in changed:
        yield from fields.labels("labels", call.labels)
    if "priority" in changed:
        yield from _priority(call.priority)
    if call.HasField("expected_revision"):
        yield from fields.not_negative("expected_revision", call.expected_revision)


def _update_mask(call: UpdateJobRequest) -> Violations:
    known = ", ".join(sorted(UPDATABLE))
    paths = call.update_mask.paths
    if len(paths) > MAX_PATHS:
        yield FieldViolation("update_mask", f"has {len(paths)} paths; at most {MAX_PATHS} are allowed")
    elif not paths and not updated_fields(call):
        yield FieldViolation("update_mask", f"is required where no field is set, and names what to change: {known}")
    else:
        for index, path in enumerate(paths):
            if path != "*" and path not in UPDATABLE:
                problem = f"{fields.quote(path)} can't be changed; these can: {known}"
                yield FieldViolation(f"update_mask.paths[{index}]", problem)


def updated_fields(call: UpdateJobRequest) -> Set[str]:
    """Return the fields that an UpdateJobRequest changes: those that the mask names, or, without one, those that are set."""
    if "*" in call.update_mask.paths:
        return UPDATABLE
    if call.update_mask.paths:
        return UPDATABLE.intersection(call.update_mask.paths)
    return {name for name in UPDATABLE if getattr(call, name)}
