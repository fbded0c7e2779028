"""Holds results to the size that a job can carry. What a job's message lacks is in its results file. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Final, TypeVar

from evalrpc.jobs.size_limits import (
    KIB,
    MAX_METRICS_BYTES,
    MAX_PATHS_BYTES,
    MAX_TASK_RESULTS_BYTES,
    MAX_WARNING_BYTES,
    MAX_WARNINGS,
    RESERVED_TASK_RESULTS_BYTES,
)
from evalrpc.protobuf.texts import cut
from evalrpc.protobuf.wire_format import field_size
from evalrpc.results.merging import Results
from evalrpc.results.metrics import MAX_EXTRA_BYTES
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult

_MAX_VERSIONS_BYTES: Final = 16 * KIB
_MAX_ENTRY_HEAD_BYTES: Final = 32
"""What an entry of `JobInfo.results` takes besides the model's name and the lists: tags, lengths, `metric_count`, the flag."""

_EntryT = TypeVar("_EntryT", Metric, TaskResult)


def add_artifact_names(results: Results, output_dir: Path) -> None:
    """Make the results of an attempt what clients are promised: with the names that ReadArtifact takes, a value of each metric,
    and their number. May be done again. There may be so many metrics that a copy of them would take much memory."""
    for result in results.values():
        _complete(result, output_dir)


def bounded(results: Results, room_bytes: int) -> Results:
    """Return as much of the results as a message has room for: the first metrics, tasks and samples in the order of models.

    A model that lacks some has `metrics_truncated` set.
    """
    kept = _without_lists(results)
    paths_left = _Budget(MAX_PATHS_BYTES - sum(map(field_size, map(_entry_bytes, kept, kept.values()))))
    for model, result in kept.items():
        _add_samples(result, results[model], paths_left)
    metrics_left = _Budget(min(MAX_METRICS_BYTES, room_bytes - MAX_PATHS_BYTES - RESERVED_TASK_RESULTS_BYTES))
    for model, result in kept.items():
        result.metrics.extend(metrics_left.first(results[model].metrics))
    tasks_left = _Budget(min(MAX_TASK_RESULTS_BYTES, room_bytes - MAX_PATHS_BYTES - metrics_left.spent_bytes))
    for model, result in kept.items():
        result.tasks.extend(tasks_left.first(results[model].tasks))
        result.metrics_truncated = _lacks_some(result, results[model])
    return kept


def lacks_some(results: Mapping[str, ModelResult]) -> bool:
    """Return whether these results lack some that the results file has."""
    return any(result.metrics_truncated for result in results.values())


def _lacks_some(result: ModelResult, whole: ModelResult) -> bool:
    if result.results != whole.results:
        return True
    return any(len(getattr(result, name)) < len(getattr(whole, name)) for name in ("metrics", "tasks", "samples"))


class _Budget:
    """Bytes to spend on the first entries of several lists. Once one does not fit, none after it is taken."""

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes
        self._is_full = False
        self.spent_bytes = 0

    def takes(self, size_bytes: int) -> bool:
        """Spend bytes, if they are there."""
        self._is_full = self._is_full or size_bytes > self._left_bytes
        if not self._is_full:
            self._left_bytes -= size_bytes
            self.spent_bytes += size_bytes
        return not self._is_full

    def first(self, entries: Iterable[_EntryT]) -> Iterator[_EntryT]:
        """Yield those from the front that fit."""
        return takewhile(lambda entry: self.takes(field_size(entry.ByteSize())), entries)


def _complete(result: ModelResult, output_dir: Path) -> None:
    result.results_artifact = _artifact_name(result.results, output_dir)
    result.sample_artifacts[:] = [_artifact_name(path, output_dir) for path in result.samples]
    for task in result.tasks:
        task.results_artifact = _artifact_name(task.results, output_dir)
    for metric in result.metrics:
        if not metric.HasField("value"):
            metric.value = 0.0  # of a plugin that was built before the field had a presence
    result.metric_count = len(result.metrics)


def _artifact_name(path: str, output_dir: Path) -> str:
    """Return the name of a file for ReadArtifact; empty if it is not below the output folder."""
    file = PurePath(path)
    if not path or ".." in file.parts or not file.is_relative_to(output_dir) or file == output_dir:
        return ""
    return file.relative_to(output_dir).as_posix()


def _without_lists(results: Results) -> dict[str, ModelResult]:
    """Return the results without metrics, tasks and samples, and of each model only what there is room for."""
    left = _Budget(MAX_PATHS_BYTES - sum(len(model.encode()) + _MAX_ENTRY_HEAD_BYTES for model in results))
    warnings_left = _Budget(MAX_WARNINGS * MAX_WARNING_BYTES)
    return {model: _head(results[model], left, warnings_left) for model in sorted(results)}


def _head(result: ModelResult, left: _Budget, warnings_left: _Budget) -> ModelResult:
    head = ModelResult(metric_count=result.metric_count)
    paths = ModelResult(results=result.results, results_artifact=result.results_artifact)
    versions = ModelResult(harness_versions=_first_versions(result.harness_versions))
    has_time = result.HasField("total_evaluation_time")
    rest = ModelResult(
        total_evaluation_time=result.total_evaluation_time if has_time else None,
        extra=result.extra if result.HasField("extra") and result.extra.ByteSize() <= MAX_EXTRA_BYTES else None,
    )
    warnings = ModelResult(warnings=_first_warnings(result.warnings, warnings_left))
    for part in (paths, versions, warnings, rest):
        if left.takes(part.ByteSize()):
            head.MergeFrom(part)
    return head


def _first_versions(versions: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    left = _Budget(_MAX_VERSIONS_BYTES)
    for package in sorted(versions):
        if left.takes(_MAX_ENTRY_HEAD_BYTES + len(package.encode()) + len(versions[package].encode())):
            kept[package] = versions[package]
    return kept


def _first_warnings(warnings: Sequence[str], left: _Budget) -> Iterator[str]:
    texts = (cut(warning, MAX_WARNING_BYTES) for warning in warnings[:MAX_WARNINGS])
    return takewhile(lambda text: left.takes(field_size(len(text.encode()))), texts)


def _add_samples(result: ModelResult, whole: ModelResult, left: _Budget) -> None:
    for path, name in zip(whole.samples, whole.sample_artifacts, strict=True):
        if not left.takes(field_size(len(path.encode())) + field_size(len(name.encode()))):
            return
        result.samples.append(path)
        result.sample_artifacts.append(name)


def _entry_bytes(model: str, head: ModelResult) -> int:
    return len(model.encode()) + _MAX_ENTRY_HEAD_BYTES + head.ByteSize()
