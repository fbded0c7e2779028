"""Merges the results of several harness runs into those of one job. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from evalrpc.protobuf.bounds import MAX_DURATION_NS, duration_of_ns
from evalrpc.protobuf.texts import MAX_NAME_LENGTH, bounded_name
from evalrpc.results.layout import require_bytes, require_models
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult

_MAX_MODEL_LENGTH: Final = 1024
"""That of `EvaluateRequest.model`, which is the name where no folder gives another."""

Results = Mapping[str, ModelResult]
"""Results by model, as in `JobInfo.results`."""

_Entries = dict[tuple[str, ...], Any]
"""What is unique by name: metrics, tasks, samples and versions, keyed by the field of ModelResult and the name."""


class MergedResults:
    """The results of all parts added so far. The cost of adding one depends on its own size only."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._size_bytes = 0
        self._results: Results | None = {}

    def add(self, part: Results) -> None:
        """Add the results of a run. If several parts have the same task, the last one counts.

        Names are bounded. Raises RunFailedError with reason RESULTS_INVALID, and adds nothing, if the total is more than is
        kept of a job.
        """
        if not part:
            return
        named = {self._name(name, part): _with_bounded_names(result) for name, result in part.items()}
        models = {name: self._models.get(name) or _Model() for name in named}
        entries = {name: models[name].entries_of(result) for name, result in named.items()}
        size_bytes = self._size_bytes + sum(models[name].growth_bytes(entries[name]) for name in named)
        require_models(len(self._models.keys() | models.keys()))
        require_bytes(size_bytes, "the results of all tasks so far")
        for name, result in named.items():
            models[name].add(entries[name], result)
        self._models |= models
        self._size_bytes = size_bytes
        self._results = None

    def results(self) -> Results:
        """Return the results by model, in an object that is never modified: later additions make a new one."""
        if self._results is None:
            self._results = {name: model.result() for name, model in self._models.items()}
        return self._results

    def _name(self, name: str, part: Results) -> str:
        """Return the name the model already has: a request has one model, which lm-eval may rename in every run."""
        if len(part) == 1 and len(self._models) == 1:
            return next(iter(self._models))
        return name if len(name) <= _MAX_MODEL_LENGTH else bounded_name(name)


class _Model:
    """The results of several runs for one model."""

    def __init__(self) -> None:
        self._entries: _Entries = {}
        self._rest: ModelResult | None = None

    def growth_bytes(self, entries: _Entries) -> int:
        """Return by how much a message grows if these entries replace those of the same name."""
        replaced = {key: self._entries[key] for key in entries if key in self._entries}
        return _message(entries).ByteSize() - _message(replaced).ByteSize()

    def add(self, entries: _Entries, result: ModelResult) -> None:
        """Add a result and its entries."""
        self._entries |= entries
        if self._rest is None:
            time = result.total_evaluation_time if result.HasField("total_evaluation_time") else None
            extra = result.extra if result.HasField("extra") else None
            self._rest = ModelResult(results=result.results, total_evaluation_time=time, extra=extra)
        else:
            time, extra = _sum(self._rest, result), _common(self._rest.extra, result.extra)
            self._rest = ModelResult(results=self._rest.results, total_evaluation_time=time, extra=extra)

    def result(self) -> ModelResult:
        """Return the merged result, sorted."""
        result = _message(self._entries)
        result.MergeFrom(self._rest or ModelResult())
        return result

    def entries_of(self, result: ModelResult) -> _Entries:
        """Return the entries that a result would add."""
        entries: _Entries = {("metrics", each.task, each.metric, each.filter): each for each in result.metrics}
        entries |= {("tasks", task.task): self._with_file(task, result) for task in result.tasks}
        entries |= {("samples", path): path for path in result.samples}
        entries |= {("warnings", warning): warning for warning in result.warnings}
        return entries | {("harness_versions", name): (name, version) for name, version in result.harness_versions.items()}

    def _with_file(self, task: TaskResult, result: ModelResult) -> TaskResult:
        """Return a task with its aggregate file, unless that is the model's first one."""
        if self._rest is None:
            return task
        own = TaskResult(results=result.results)
        own.MergeFrom(task)
        return own


def _with_bounded_names(result: ModelResult) -> ModelResult:
    """Return the result with names that a selector can name and that fit into any page."""
    if all(map(_has_short_names, result.metrics)) and all(len(task.task) <= MAX_NAME_LENGTH for task in result.tasks):
        return result
    renamed = ModelResult()
    renamed.CopyFrom(result)
    for metric in renamed.metrics:
        metric.task, metric.metric, metric.filter = map(bounded_name, (metric.task, metric.metric, metric.filter))
    for task in renamed.tasks:
        task.task = bounded_name(task.task)
        task.subtasks[:] = map(bounded_name, task.subtasks)
    return renamed


def _has_short_names(metric: Metric) -> bool:
    return max(len(metric.task), len(metric.metric), len(metric.filter)) <= MAX_NAME_LENGTH


def _message(entries: _Entries) -> ModelResult:
    fields: defaultdict[str, Any] = defaultdict(list)
    for key in sorted(entries):
        fields[key[0]].append(entries[key])
    versions = dict(fields.pop("harness_versions", ()))
    return ModelResult(**fields, harness_versions=versions)


def _sum(result: ModelResult, other: ModelResult) -> Duration | None:
    times = [each.total_evaluation_time for each in (result, other) if each.HasField("total_evaluation_time")]
    return duration_of_ns(min(sum(time.ToNanoseconds() for time in times), MAX_DURATION_NS)) if times else None


def _common(struct: Struct, other: Struct) -> Struct | None:
    """Return the entries that are the same in both."""
    same = {key: value for key, value in struct.fields.items() if other.fields.get(key) == value}
    return Struct(fields=same) if same else None
