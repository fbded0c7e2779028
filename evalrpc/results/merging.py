"""Merges the results of several harness runs into those of one job. Pure."""

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
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

_Entries = dict[tuple[str, ...], bytes]
"""What is unique by name: metrics, tasks, samples, warnings and versions, keyed by the field of ModelResult and the name. Each
as a serialised ModelResult that has nothing else: for many messages, protobuf would take memory that it never gives back."""


class MergedResults:
    """The results of all parts added so far. The cost of adding one depends on its own size only.

    A first part that is in order, as those of MergedResults are, is kept as it is: it may have very many metrics.
    """

    def __init__(self) -> None:
        self._only: Results = {}
        self._models: dict[str, _Model] = {}
        self._size_bytes = 0
        self._results: Results | None = {}

    def add(self, part: Results) -> None:
        """Add the results of a run, which nobody may modify from then on. If several parts have the same task, the last one
        counts.

        Names are bounded. Raises RunFailedError with reason RESULTS_INVALID, and adds nothing, if the total is more than is
        kept of a job.
        """
        if not part:
            return
        named = {self._name(name, part): _with_bounded_names(result) for name, result in part.items()}
        if not self._only and not self._models and all(map(_is_in_order, named.values())):
            _require_bounded(named, sum(result.ByteSize() for result in named.values()))
            self._only = self._results = named
            return
        if self._only:
            only, self._only = self._only, {}
            self._add(only)
        self._add(named)

    def _add(self, named: Results) -> None:
        models = {name: self._models.get(name) or _Model() for name in named}
        entries = {name: models[name].entries_of(result) for name, result in named.items()}
        size_bytes = self._size_bytes + sum(models[name].growth_bytes(entries[name]) for name in named)
        _require_bounded(self._models.keys() | models.keys(), size_bytes)
        for name, result in named.items():
            models[name].add(entries[name], result)
        self._models |= models
        self._size_bytes = size_bytes
        self._results = None

    def results(self) -> Results:
        """Return the results by model. Later additions make a new object. Whoever has it may add what parts don't have."""
        if self._results is None:
            self._results = {name: model.result() for name, model in self._models.items()}
        return self._results

    def _name(self, name: str, part: Results) -> str:
        """Return the name the model already has: a request has one model, which lm-eval may rename in every run."""
        known = self._only or self._models
        if len(part) == 1 and len(known) == 1:
            return next(iter(known))
        return name if len(name) <= _MAX_MODEL_LENGTH else bounded_name(name)


class _Model:
    """The results of several runs for one model."""

    def __init__(self) -> None:
        self._entries: _Entries = {}
        self._rest: ModelResult | None = None

    def growth_bytes(self, entries: _Entries) -> int:
        """Return by how much a message grows if these entries replace those of the same name."""
        return sum(len(entry) - len(self._entries.get(key, b"")) for key, entry in entries.items())

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
        result = ModelResult.FromString(b"".join(self._entries[key] for key in sorted(self._entries)))
        result.MergeFrom(self._rest or ModelResult())
        return result

    def entries_of(self, result: ModelResult) -> _Entries:
        """Return the entries that a result would add."""
        entries: _Entries = {("metrics", *_name_of(each)): _entry(metrics=[each]) for each in result.metrics}
        entries |= {("tasks", task.task): _entry(tasks=[self._with_file(task, result)]) for task in result.tasks}
        entries |= {("samples", path): _entry(samples=[path]) for path in result.samples}
        entries |= {("warnings", warning): _entry(warnings=[warning]) for warning in result.warnings}
        versions = result.harness_versions.items()
        return entries | {("harness_versions", name): _entry(harness_versions={name: version}) for name, version in versions}

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


def _entry(**fields: Any) -> bytes:
    return ModelResult(**fields).SerializeToString()


def _name_of(metric: Metric) -> tuple[str, str, str]:
    return metric.task, metric.metric, metric.filter


def _is_in_order(result: ModelResult) -> bool:
    """Tell whether a result is as `_Model.result` makes it: sorted, each once, and nothing besides."""
    names: tuple[Iterable[Any], ...] = (
        map(_name_of, result.metrics),
        (task.task for task in result.tasks),
        result.samples,
        result.warnings,
    )
    has_more = result.metric_count or result.metrics_truncated or result.results_artifact or result.sample_artifacts
    return not has_more and all(before < after for each in names for before, after in pairwise(each))


def _require_bounded(models: Collection[str], size_bytes: int) -> None:
    require_models(len(models))
    require_bytes(size_bytes, "the results of all tasks so far")


def _sum(result: ModelResult, other: ModelResult) -> Duration | None:
    times = [each.total_evaluation_time for each in (result, other) if each.HasField("total_evaluation_time")]
    return duration_of_ns(min(sum(time.ToNanoseconds() for time in times), MAX_DURATION_NS)) if times else None


def _common(struct: Struct, other: Struct) -> Struct | None:
    """Return the entries that are the same in both."""
    same = {key: value for key, value in struct.fields.items() if other.fields.get(key) == value}
    return Struct(fields=same) if same else None
