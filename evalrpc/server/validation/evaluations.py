"""What is wrong with an EvaluateRequest. What a particular harness can't accept, it reports itself."""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from evalrpc.config import ModelServer
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.base import Harness, ParallelHarness, TaskArgsHarness
from evalrpc.jobs.defaults import executor_of, gpus_by_field, gpus_field, gpus_needed
from evalrpc.jobs.paths import allowed_output_dir
from evalrpc.jobs.size_limits import MAX_TASK_NAMES_BYTES
from evalrpc.protobuf.texts import MAX_NAME_LENGTH
from evalrpc.server import served_use
from evalrpc.server.argument_values import argument_fields
from evalrpc.server.validation import fields
from evalrpc.server.validation.arguments import all_arguments
from evalrpc.server.validation.fields import Violations, quote
from evalrpc.v1.jobs_pb2 import EvaluateRequest, GpuMode

MAX_MODEL_LENGTH: Final = 1024
MAX_OUTPUT_DIR_BYTES: Final = 4096
MAX_TASKS: Final = 1000

_BATCH_SIZE = re.compile(r"auto(:[1-9][0-9]{0,5})?|[1-9][0-9]{0,5}")
_DEVICE = re.compile(r"[a-z]{2,16}(:[0-9]{1,3})?")
_PART = re.compile(r"[.\[]")  # what each part of a field's path begins with


def evaluation(
    request: EvaluateRequest,
    harnesses: Mapping[str, Harness],
    gpu_counts: Sequence[int],
    output_root: Path | None,
    engines: Mapping[str, ModelServer],
) -> Violations:
    """Yield what is wrong with the request of a submission, whose arguments these are. What is said of a field that was named
    already, by itself or as a part or the whole of another, is left out."""
    harness = harnesses.get(request.harness)
    found: list[FieldViolation] = []
    for judged in (
        _well_formed(request, gpu_counts, output_root),
        _model(request, harness, engines),
        _task_args(request, harness),
        _harness(request, harnesses, engines),
    ):
        named = _NamedFields(violation.field for violation in found) if found else ()
        found += [violation for violation in judged if violation.field not in named]
    yield from found


class _NamedFields:
    """Fields already reported, of which there may be many. A field is among them if it, a part of it or something that contains
    it was reported."""

    def __init__(self, named: Iterable[str]) -> None:
        self._fields = set(named)
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


def _well_formed(request: EvaluateRequest, gpu_counts: Sequence[int], output_root: Path | None) -> Violations:
    yield from _tasks(request)
    yield from all_arguments(argument_fields(request))
    yield from fields.not_negative("num_fewshot", request.num_fewshot)
    if request.batch_size and not _BATCH_SIZE.fullmatch(request.batch_size):
        yield FieldViolation("batch_size", "must be a positive number, `auto`, or `auto:N`")
    if request.device and not _DEVICE.fullmatch(request.device):
        yield FieldViolation("device", "must be a torch device such as `cuda`, `cuda:0` or `cpu`")
    yield from _limit(request)
    yield from _gpus(request, gpu_counts)
    yield from _output_dir(request.output_dir, output_root)
    if request.gpu_mode not in GpuMode.values():
        yield FieldViolation("gpu_mode", f"{request.gpu_mode} is no mode that this server knows; leave it out")
    if request.HasField("max_bad_answer_ratio"):
        yield from fields.within("max_bad_answer_ratio", request.max_bad_answer_ratio, 0, 1)


def _model(request: EvaluateRequest, harness: Harness | None, engines: Mapping[str, ModelServer]) -> Violations:
    if request.HasField("judge_model"):
        yield from served_use.judge_violations(request, engines, harness)
    if request.HasField("served_model"):
        yield from served_use.violations(request, engines, harness)
    else:
        yield from fields.name("model", request.model, MAX_MODEL_LENGTH)


def _task_args(request: EvaluateRequest, harness: Harness | None) -> Violations:
    if request.task_args.fields and harness is not None and not isinstance(harness, TaskArgsHarness):
        yield FieldViolation("task_args", f"harness {harness.name} takes none: leave it out")


def _harness(request: EvaluateRequest, harnesses: Mapping[str, Harness], engines: Mapping[str, ModelServer]) -> Violations:
    harness = harnesses.get(request.harness)
    if harness is None:
        yield from harness_name(request.harness, harnesses)
    elif request.HasField("served_model"):
        yield from served_use.violations_when_pointed(request, harness, engines)
    else:
        yield from harness.violations(request)
        if request.gpu_mode and not isinstance(harness, ParallelHarness):
            yield FieldViolation("gpu_mode", f"harness {harness.name} has only one way to use its GPUs; leave it out")


def harness_name(name: str, harnesses: Mapping[str, Harness]) -> Violations:
    """Yield a violation if there is no such harness, or the name is empty because the server has no default."""
    if name not in harnesses:
        known = ", ".join(sorted(harnesses))
        problem = f"this server has no harness {quote(name)}; it has" if name else "must name one of this server's harnesses"
        yield FieldViolation("harness", f"{problem}: {known}")


def suite_request(request: EvaluateRequest) -> Violations:
    """Yield what is wrong with what a suite says of a request."""
    yield from _tasks(request)
    yield from fields.not_negative("num_fewshot", request.num_fewshot)
    yield from _limit(request)
    yield from all_arguments({"gen_kwargs": request.gen_kwargs, "task_args": request.task_args})


def _tasks(request: EvaluateRequest) -> Violations:
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
        yield from fields.name(field, task, MAX_NAME_LENGTH)
        if "/" in task or "\\" in task or task.lower().endswith((".yaml", ".yml")):
            yield FieldViolation(
                field, "must be the name of a task, not a path: the operator decides which task folders there are"
            )
        if task in seen:
            yield FieldViolation(field, f"{quote(task)} is there twice")
        seen.add(task)


def _limit(request: EvaluateRequest) -> Violations:
    if not request.HasField("limit"):
        return
    limit = request.limit
    if not math.isfinite(limit) or limit <= 0:
        yield FieldViolation("limit", f"must be above 0 and finite, not {limit:.15g}; leave it out to evaluate everything")
    elif limit > 1 and not limit.is_integer():
        yield FieldViolation("limit", f"must be a fraction below 1 or a whole number, not {limit:.15g}")


def _gpus(request: EvaluateRequest, gpu_counts: Sequence[int]) -> Violations:
    field, wanted = gpus_field(request), gpus_needed(request)
    negative = [each for name, count in gpus_by_field(request).items() for each in fields.not_negative(name, count)]
    yield from negative
    if not negative and wanted > (widest := max(gpu_counts, default=0)):
        where = executor_of(request) or "this server"
        has = f"no node of {where} has more than {widest}" if len(gpu_counts) > 1 else f"{where} has {widest}"
        asked = "1 GPU" if wanted == 1 else f"{wanted} GPUs"
        asked += " together with the judge" if request.HasField("judge_model") else ""
        yield FieldViolation(field, f"asks for {asked}, and {has if widest else f'{where} has none: leave it out'}")


def _output_dir(output_dir: str, output_root: Path | None) -> Violations:
    if not output_dir:
        return
    problems = list(fields.text("output_dir", output_dir, MAX_OUTPUT_DIR_BYTES))
    if problems:
        yield from problems
    elif (size_bytes := len(output_dir.encode())) > MAX_OUTPUT_DIR_BYTES:
        yield FieldViolation("output_dir", f"has {size_bytes} bytes; at most {MAX_OUTPUT_DIR_BYTES} are allowed")
    elif output_root is None:
        yield FieldViolation("output_dir", "this server allows none (its operator has set no output_root); leave it empty")
    elif allowed_output_dir(output_root, output_dir) is None:
        yield FieldViolation("output_dir", f"{quote(output_dir)} leads outside the output root of this server")
