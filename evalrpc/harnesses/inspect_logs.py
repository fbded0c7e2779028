"""inspect-ai's logs, one JSON file per task, become a verdict and files in the layout that `evalrpc.results` reads.

    output_dir/2026-02-14T10-30-45-00-00_TASK_ID.json     inspect-ai's own: status, results, samples, every event
    output_dir/20260214_103045_results.json               from it: the metrics of all tasks
    output_dir/20260214_103045_samples_TASK.jsonl         from it: the samples of one task, without their events

A scorer counts as a filter: `accuracy` of the scorer `match` is the metric `accuracy` with the filter `match`.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, takewhile
from pathlib import Path
from typing import Final, TextIO

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.failures import find_failure, shorten
from evalrpc.harnesses.json_stream import members
from evalrpc.metrics import mapping, model_result
from evalrpc.v1.job_pb2 import ModelResult

_LOG_NAME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2})-([0-9]{2})-([0-9]{2}).*\.json", re.DOTALL)
_HEADER: Final = frozenset({"status", "eval", "plan", "results", "stats", "error"})
_SAMPLES: Final = "samples"
_NOT_IN_SAMPLES: Final = frozenset({"events", "events_data"})
"""What happened within a sample, which is most of a log and stands there."""
_MEANS: Final = ("accuracy", "mean")
"""The metrics that are means of the samples' values, and that `stderr` beside them is the standard error of."""
_VALUES: Final = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""What inspect-ai counts its letters as: correct, partial, incorrect, no answer."""
_CONFIG: Final = ("task_args", "task_attribs", "scorers", "model_roles", "sandbox")
"""What of a log's `eval` makes the task what it is. The model, the limit and the like are of the run."""
_DATASET: Final = ("name", "location", "samples", "shuffled")
_CONNECTION: Final = frozenset(
    {"max_connections", "adaptive_connections", "max_retries", "timeout", "attempt_timeout", "batch", "cache"}
)
"""What of a plan's generation options is about the way to the model."""


@dataclass(frozen=True)
class Log:
    """What a log says, apart from its samples."""

    path: Path
    stamp: str
    """When the task began, as 20260214_103045."""
    names: frozenset[str]
    """The names that the task goes by."""
    status: str
    error: str
    header: Mapping[str, object]
    """Its members but for the samples."""

    @property
    def spec(self) -> Mapping[str, object]:
        """What was to be evaluated."""
        return mapping(self.header.get("eval"))

    @property
    def results(self) -> Mapping[str, object]:
        """What came of it."""
        return mapping(self.header.get("results"))


def read_logs(folder: Path) -> list[Log]:
    """Read the logs of a folder, oldest first. Links are not followed. Raises RunFailedError with reason RESULTS_INVALID."""
    return [_read_log(path, stamp, _members(path)) for path, stamp in _log_files(folder)]


def read_headers(folder: Path) -> list[Log]:
    """Read the logs of a folder only as far as to their samples, which come last, and pass over those that can't be read: they
    may just be being written. Raises RunFailedError where the folder itself can't be read."""
    logs = []
    for path, stamp in _log_files(folder):
        with suppress(RunFailedError):
            logs.append(_read_log(path, stamp, takewhile(lambda member: member[0] != _SAMPLES, _members(path))))
    return logs


def result_of_logs(logs: Mapping[str, Log]) -> ModelResult:
    """Return the metrics of logs, which are given by task, and their paths, without samples."""
    result = model_result(_aggregate(logs))
    result.results = str(next(iter(logs.values())).path)
    for task in result.tasks:
        path = str(logs[task.task].path)
        task.results = path if path != result.results else ""
    return result


def write_results(folder: Path, logs: Mapping[str, Log]) -> None:
    """Write the metrics and samples of the logs, which are given by task. Raises RunFailedError with reason RESULTS_INVALID."""
    stamp = max(log.stamp for log in logs.values())
    try:
        for task, log in logs.items():
            _write_samples(folder / f"{stamp}_samples_{task}.jsonl", log)
        with _replacing(folder / f"{stamp}_results.json") as file:
            json.dump(_aggregate(logs), file)
    except OSError as error:
        raise _invalid(f"what is in the logs can't be written beside them: {error.strerror}") from error


def _log_files(folder: Path) -> list[tuple[Path, str]]:
    """Return the paths of the logs and when their tasks began, oldest first."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _invalid(f"the output folder can't be read: {error.strerror}") from error
    return [(folder / match[0], _stamp(match)) for match in map(_LOG_NAME.fullmatch, names) if match]


def _stamp(match: re.Match[str]) -> str:
    year, month, day, hour, minute, second = match.groups()
    return f"{year}{month}{day}_{hour}{minute}{second}"


def _read_log(path: Path, stamp: str, log_members: Iterable[tuple[str, object]]) -> Log:
    header = {key: value for key, value in log_members if key in _HEADER}
    task = mapping(header.get("eval"))
    names = (task.get(key) for key in ("task", "task_registry_name"))
    return Log(
        path=path,
        stamp=stamp,
        names=frozenset(name for name in names if isinstance(name, str)),
        status=str(header.get("status")),
        error=_error(mapping(header.get("error"))),
        header=header,
    )


def _members(path: Path) -> Iterator[tuple[str, object]]:
    try:
        yield from members(path, _SAMPLES)
    except OSError as error:
        raise _invalid(f"{path.name} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{path.name} is not valid JSON: {error}") from error


def _error(error: Mapping[str, object]) -> str:
    """Return the exception as Python names it, else the message, which may be only its repr."""
    traceback = str(error.get("traceback") or "")
    return find_failure(traceback.splitlines()) or shorten(str(error.get("message") or ""))


def _aggregate(logs: Mapping[str, Log]) -> Mapping[str, object]:
    """Put the logs into the shape that `evalrpc.metrics` reads."""
    return {
        "results": {task: dict(_row(log.results)) for task, log in logs.items()},
        "configs": {task: _config(log) for task, log in logs.items()},
        "versions": {task: log.spec.get("task_version") for task, log in logs.items()},
        "n-samples": {task: _sizes(log) for task, log in logs.items()},
        "total_evaluation_time_seconds": _seconds(logs.values()),
        **{f"{name}_version": version for log in logs.values() for name, version in mapping(log.spec.get("packages")).items()},
        "revision": next((log.spec.get("revision") for log in logs.values()), None),
        "usage": {task: mapping(log.header.get("stats")).get("model_usage") for task, log in logs.items()},
        "logs": {task: log.path.name for task, log in logs.items()},
    }


def _config(log: Log) -> Mapping[str, object]:
    """Return what makes the task what it is."""
    dataset = mapping(log.spec.get("dataset"))
    run = mapping(log.spec.get("config"))
    plan = mapping(log.header.get("plan"))
    options = mapping(plan.get("config"))
    return {
        **{key: log.spec.get(key) for key in _CONFIG},
        "dataset": {key: dataset.get(key) for key in _DATASET},
        "epochs": [run.get("epochs"), run.get("epochs_reducer")],
        "plan": {**plan, "config": {key: option for key, option in options.items() if key not in _CONNECTION}},
    }


def _sizes(log: Log) -> Mapping[str, object]:
    original = mapping(log.spec.get("dataset")).get("samples")
    return {"original": original, "effective": log.results.get("completed_samples")}


def _seconds(logs: Iterable[Log]) -> float | None:
    """Return the time from the first start to the last end: several tasks may run at once."""
    stats = [mapping(log.header.get("stats")) for log in logs]
    starts, ends = ([time for each in stats if (time := _time(each.get(key)))] for key in ("started_at", "completed_at"))
    return (max(ends) - min(starts)).total_seconds() if starts and ends else None


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _row(results: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the metrics as `evalrpc.results` has them: `metric,filter` and `metric_stderr,filter`."""
    for score in _scores(results):
        values = {key: mapping(metric).get("value") for key, metric in mapping(score.get("metrics")).items()}
        scorer = _scorer(score)
        means = [mean for mean in _MEANS if mean in values]
        error = values.pop("stderr", None) if means else None
        # A comma would end the metric's name.
        yield from ((f"{name.replace(',', ';')},{scorer}", value) for name, value in values.items())
        yield from ((f"{mean}_stderr,{scorer}", error) for mean in means if error is not None)


def _scores(results: Mapping[str, object]) -> list[Mapping[str, object]]:
    scores = results.get("scores")
    return [mapping(score) for score in scores] if isinstance(scores, list) else []


def _scorer(score: Mapping[str, object]) -> str:
    return "/".join(str(name) for name in (score.get("name"), score.get("reducer")) if name)


def _write_samples(path: Path, log: Log) -> None:
    samples = (mapping(value) for key, value in _members(log.path) if key == _SAMPLES)
    first = next(samples, None)
    if first is None:
        return
    with _replacing(path) as file:
        for sample in chain((first,), samples):
            file.write(json.dumps(_sample_row(sample, log.results)) + "\n")


def _sample_row(sample: Mapping[str, object], results: Mapping[str, object]) -> Mapping[str, object]:
    """Return a sample under inspect-ai's own names, and id, answer and metrics under those that all harnesses share."""
    rest = {key: value for key, value in sample.items() if key not in _NOT_IN_SAMPLES}
    answer = mapping(sample.get("output")).get("completion")
    metrics = dict(_sample_metrics(mapping(sample.get("scores")), results))
    return {"doc_id": sample.get("id"), "filtered_resps": answer, "metrics": metrics, **rest}


def _sample_metrics(scores: Mapping[str, object], results: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Yield the sample's part in every metric that is a mean. A scorer of several values has them in a table."""
    for score in _scores(results):
        name, scorer = str(score.get("name")), str(score.get("scorer"))
        value = mapping(scores.get(name)).get("value", mapping(mapping(scores.get(scorer)).get("value")).get(name))
        if isinstance(value, str):
            value = _VALUES.get(value)
        if isinstance(value, int | float):
            yield from ((f"{mean},{_scorer(score)}", value) for mean in _MEANS if mean in mapping(score.get("metrics")))


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Write a file that appears whole or not at all, in the place of whatever has its name."""
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="ascii") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _invalid(message: str) -> RunFailedError:
    return RunFailedError("RESULTS_INVALID", message)
