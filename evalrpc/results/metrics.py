"""Turns a harness's aggregate document into typed metrics. Pure: whatever the document holds, the outcome is a message.

lm-eval and lmms-eval write this format, and every other harness here provides it:

    results             {TASK: {"METRIC,FILTER": value, "METRIC_stderr,FILTER": value}}, groups among the tasks
    groups              the same, for groups only
    group_subtasks      {GROUP: [TASK]}
    configs             {TASK: configuration}
    versions, n-shot, n-samples, higher_is_better, task_hashes     {TASK: ...}
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Final

from google.protobuf.duration_pb2 import Duration

from evalrpc.protobuf.bounds import count, duration_of_seconds
from evalrpc.protobuf.structs import bounded_struct, wire_text
from evalrpc.v1.results_pb2 import Metric, ModelResult, TaskResult

MAX_EXTRA_BYTES: Final = 4 * 1024
MAX_EXTRA_ENTRY_BYTES: Final = 512
MAX_TASK_EXTRA_BYTES: Final = 512

_DERIVED_NAME = re.compile(r"(.+)_stderr(?:_clt|_clustered)?", re.DOTALL)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_NO_METRICS: Final = frozenset({"alias", "name", " ", "samples", "sample_len", "sample_count"})
"""Row entries that are no metrics: names of the task, and counts."""
_STAND_IN: Final = "bypass"
"""The metric that lm-eval writes, as 999, where it was asked for none."""
_NUMBER: Final = r"[+-]?(?:(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:e[+-]?[0-9]{1,4})?|nan|inf|infinity)"
_SCALAR: Final = r"(?:(?:np|numpy|torch|jnp|tf)\.[a-z]{1,10}[0-9]{0,3}|float(?:16|32|64)|int(?:32|64)|array|tensor|decimal)"
"""How decimals and scalars of array libraries print themselves, and arrays of one."""
_OPTION: Final = r", *[a-z_]{1,20}=(?:\([0-9, ]{0,20}\)|[^(),]{1,100})"
_NUMBER_TEXT: Final = re.compile(
    rf"(?P<plain>{_NUMBER})|{_SCALAR}\(\s*[\[\s]{{0,8}}'?(?P<inside>{_NUMBER})'?[\]\s]{{0,8}}(?:{_OPTION})*\)",
    re.IGNORECASE | re.ASCII,
)
_TRUTH: Final = {
    text: is_true for word, is_true in (("True", True), ("False", False)) for text in (word, f"np.{word}_", f"tensor({word})")
}
"""How truth is written as text, as JSON writers do with that of NumPy and PyTorch."""
_MAX_DEPTH: Final = 4
"""Of the brackets around a number."""
_VERSION_SUFFIX: Final = "_version"
_TABLES: Final = frozenset(
    {
        *("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples", "higher_is_better"),
        *("task_hashes", "total_evaluation_time_seconds", "samples"),
    }
)
_MAX_WORD_LENGTH: Final = 200


def model_result(document: Mapping[str, object]) -> ModelResult:
    """Return all that the document says about a model, without file paths."""
    tables = _Tables(document)
    rows = rows_of(document)
    metrics = (metric for task, row in rows.items() for metric in _task_metrics(task, mapping(row), tables))
    names = rows.keys() | tables.groups
    return ModelResult(
        metrics=sorted(metrics, key=lambda metric: (metric.task, metric.metric, metric.filter)),
        tasks=[_task_result(task, mapping(rows.get(task)), tables) for task in sorted(names)],
        harness_versions=dict(_versions(document)),
        total_evaluation_time=_duration(document.get("total_evaluation_time_seconds")),
        extra=bounded_struct(_unknown(document), MAX_EXTRA_BYTES, MAX_EXTRA_ENTRY_BYTES),
    )


def rows_of(document: Mapping[str, object]) -> Mapping[str, object]:
    """Return the rows of all tasks and groups."""
    return {**mapping(document.get("groups")), **mapping(document.get("results"))}


def mapping(value: object) -> Mapping[str, object]:
    """Return the value if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def strings(value: object) -> Iterator[str]:
    """Yield the strings in nested lists."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending.extend(reversed(item))


class _Tables:
    """What the document says about tasks outside their rows."""

    def __init__(self, document: Mapping[str, object]) -> None:
        self.directions = mapping(document.get("higher_is_better"))
        self.sizes = mapping(document.get("n-samples"))
        self.versions = mapping(document.get("versions"))
        self.shots = mapping(document.get("n-shot"))
        self.hashes = mapping(document.get("task_hashes"))
        self.configs = mapping(document.get("configs"))
        # lm-eval mixes the model's arguments and the config file's path into `metadata`.
        self.not_of_configs = {*mapping(mapping(document.get("config")).get("model_args")), "config_source"}
        self.subtasks = {group: list(strings(tasks)) for group, tasks in mapping(document.get("group_subtasks")).items()}
        # lmms-eval lists every task as a group without subtasks.
        self.groups = mapping(document.get("groups")).keys() | {group for group, tasks in self.subtasks.items() if tasks}


def _task_metrics(task: str, row: Mapping[str, object], tables: _Tables) -> Iterator[Metric]:
    directions = mapping(tables.directions.get(task))
    counts = mapping(row.get("sample_count"))
    size = mapping(tables.sizes.get(task)).get("effective")
    for key, value in _values(row):
        metric, comma, answer_filter = key.partition(",")
        direction = directions.get(metric)
        yield Metric(
            task=wire_text(task),
            metric=wire_text(metric),
            filter=wire_text(answer_filter),
            value=value,
            standard_error=number(row.get(f"{metric}_stderr{comma}{answer_filter}")),
            higher_is_better=direction if isinstance(direction, bool) else None,
            sample_count=_count(counts.get(key, size)),
            is_group=task in tables.groups,
        )


def _values(row: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a row with their keys: numbers that are not the standard error of another one."""
    for key, cell in row.items():
        value = number(cell)
        is_metric = key not in _NO_METRICS and key.partition(",")[0] != _STAND_IN
        if value is not None and is_metric and _is_error_of(key, row) is None:
            yield key, value


def _is_error_of(key: str, row: Mapping[str, object]) -> str | None:
    """Return the key of the metric whose standard error, of any kind, this is; None if there is none."""
    metric, comma, answer_filter = key.partition(",")
    match = _DERIVED_NAME.fullmatch(metric)
    of = f"{match[1]}{comma}{answer_filter}" if match else ""
    return of if match and of in row else None


def _task_result(task: str, row: Mapping[str, object], tables: _Tables) -> TaskResult:
    size = mapping(tables.sizes.get(task))
    return TaskResult(
        task=wire_text(task),
        is_group=task in tables.groups,
        subtasks=map(wire_text, tables.subtasks.get(task, ())),
        version=_word(tables.versions.get(task)),
        config_hash=_config_hash(tables.configs.get(task), tables.not_of_configs),
        samples_hash=_word(tables.hashes.get(task)),
        num_fewshot=_count(tables.shots.get(task, mapping(tables.configs.get(task)).get("num_fewshot"))),
        original_sample_count=_count(size.get("original")),
        effective_sample_count=_count(size.get("effective", row.get("sample_len"))),
        extra=bounded_struct(_unknown_cells(row), MAX_TASK_EXTRA_BYTES, MAX_TASK_EXTRA_BYTES),
    )


def _unknown_cells(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the cells that are neither metrics nor their plain standard errors."""
    metrics = {key for key, _ in _values(row)}
    for key, cell in row.items():
        plain_error = "_stderr," in f"{key}," and _is_error_of(key, row) in metrics
        is_left_out = plain_error or key in _NO_METRICS or key.partition(",")[0] == _STAND_IN
        if key not in metrics and not is_left_out and cell != "N/A":
            yield key, cell


def _config_hash(config: object, left_out: Set[str]) -> str:
    """Hash a task's configuration, without the `left_out` entries of its metadata."""
    if not mapping(config):
        return ""
    metadata = {key: value for key, value in mapping(mapping(config).get("metadata")).items() if key not in left_out}
    try:
        text = json.dumps({**mapping(config), "metadata": metadata}, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return ""
    return hashlib.sha256(_ADDRESS.sub("", text).encode()).hexdigest()


def _versions(document: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for key, value in document.items():
        if key.endswith(_VERSION_SUFFIX) and len(key) <= _MAX_WORD_LENGTH and (version := _word(value)):
            yield wire_text(key.removesuffix(_VERSION_SUFFIX)), version


def _unknown(document: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    return ((key, value) for key, value in document.items() if key not in _TABLES and not key.endswith(_VERSION_SUFFIX))


def number(value: object) -> float | None:
    """Return a number, also one that is written as text, as JSON writers do with scalars of NumPy and PyTorch (`0.5`,
    `np.float64(0.5)`, `tensor(0.5, device='cuda:0')`), arrays of one (`[0.5]`, `tensor([0.5])`) and lists of those
    (`[np.float64(0.5)]`); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        match = _NUMBER_TEXT.fullmatch(_without_brackets(value))
        if match is None:
            return None
        value = match["plain"] or match["inside"]
    try:
        return float(value)
    except OverflowError:
        return None


def sample_value(cell: object) -> float | None:
    """Return the value of a sample, a number or truth, either of which may be written as text; None for anything else, and for
    NaN, which stands for a sample that was not scored."""
    if isinstance(cell, str):
        cell = _TRUTH.get(cell, number(cell))
    return cell if isinstance(cell, int | float) and cell == cell else None  # NaN is not equal to itself


def _without_brackets(text: str) -> str:
    """Return what stands in the brackets of a list."""
    for _ in range(_MAX_DEPTH):
        text = text.strip()
        if not (text.startswith("[") and text.endswith("]")):
            break
        text = text[1:-1]
    return text.strip()


def _count(value: object) -> int | None:
    """Return a whole, non-negative number, which may be written as text; None for anything else."""
    return count(number(value) if isinstance(value, str) else value)


def _duration(value: object) -> Duration | None:
    """Parse seconds, which lm-eval writes as text."""
    seconds = number(value)
    return None if seconds is None else duration_of_seconds(seconds)


def _word(value: object) -> str:
    """Return a version or a digest, which may be a number, as text; empty for anything else."""
    text = value if isinstance(value, str) else json.dumps(value) if number(value) is not None else ""
    return wire_text(text) if text != "N/A" and len(text) <= _MAX_WORD_LENGTH else ""
