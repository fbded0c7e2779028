"""Reads inspect-ai's logs, one JSON file per task, in place.

    output_dir/2026-02-14T10-30-45-00-00_TASK_ID.json     status, results, samples, every event

The outcome of a run precedes the samples. There may be very many of those, so they are read only on request. A scorer counts as
a filter: `accuracy` of the scorer `match` is the metric `accuracy` with the filter `match`.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.errors import RunFailedError
from evalrpc.files.opening import open_in, scan_folder
from evalrpc.harnesses.bad_answers import NONE_BAD, BadAnswers
from evalrpc.harnesses.base import SampleRow
from evalrpc.harnesses.failures import find_failure, shorten
from evalrpc.harnesses.inspect_ai.json_stream import elements, members
from evalrpc.protobuf.structs import wire_text
from evalrpc.results.layout import require_utf8, valid_results
from evalrpc.results.metrics import mapping, model_result, number
from evalrpc.v1.results_pb2 import ModelResult

SUCCESS: Final = "success"
"""The status of a log whose task has been evaluated."""
ERROR: Final = "error"
"""That of a log whose task ended for an error, or for its failed samples."""

_LOG_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}-[0-9]{2}-[0-9]{2}.*\.(?:json|eval)", re.DOTALL)
_HEADER: Final = frozenset({"status", "eval", "plan", "results", "stats", "error"})
_SAMPLES: Final = "samples"
_SAMPLE_IDS: Final = "sample_ids"
"""The list of all sample ids, in `eval.dataset`."""
_TAIL_BYTES: Final = 256
_CHUNK_BYTES: Final = 256 * 1024
_MAX_READ_BYTES: Final = 256 * 1024 * 1024
"""The largest log whose answers are looked at where nothing says that a sample has failed: it is read within seconds."""
_BAD_SAMPLE: Final = re.compile(rb'"completion":\s*+"(?:\s|\\[nrt])*+"|"error":\s*+\{\s*+"message"')
"""What stands in a log if an answer is empty or a sample failed. Only the samples themselves tell for certain."""
_NOT_IN_SAMPLES: Final = frozenset({"events", "events_data"})
"""What happened within a sample. It makes up most of a log and stays there."""
_MEANS: Final = ("accuracy", "mean")
"""Metrics that are means of the samples' values."""
_ERRORS: Final = ("stderr", "bootstrap_stderr")
"""What is their standard error, where it stands beside them."""
_VALUES: Final = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""The values of inspect-ai's letters: correct, partial, incorrect, no answer."""
_WORDS: Final = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""Those of other texts, in any case, as inspect-ai takes them."""
_CONFIG: Final = ("task_args", "task_attribs", "scorers", "model_roles", "sandbox")
"""Members of a log's `eval` that define the task. The model, the limit and the like belong to the run."""
_DATASET: Final = ("name", "location", "samples", "shuffled")
_CONNECTION: Final = frozenset(
    {"max_connections", "adaptive_connections", "max_retries", "timeout", "attempt_timeout", "batch", "cache"}
)
"""Generation options of a plan that only concern the connection to the model."""


@dataclass(frozen=True)
class Log:
    """A log without its samples."""

    path: Path
    names: frozenset[str]
    """The names of the task."""
    status: str
    error: str
    header: Mapping[str, object]
    """Its members without the samples."""
    samples_offset: int | None
    """The offset of the first sample. None: it has no samples."""

    @property
    def spec(self) -> Mapping[str, object]:
        """What was to be evaluated."""
        return mapping(self.header.get("eval"))

    @property
    def results(self) -> Mapping[str, object]:
        """The outcome."""
        return mapping(self.header.get("results"))


def read_logs(folder: Path) -> list[Log]:
    """Read the logs of a folder, oldest first. Links are not followed. Raises RunFailedError with reason RESULTS_INVALID."""
    return [_read_log(path) for path in _log_paths(folder)]


def read_finished_log(folder: Path, name: str) -> Log | None:
    """Read a log of a folder by its file name; None for another file, and for one that can't be read, perhaps because it is
    still being written."""
    if _LOG_NAME.fullmatch(name):
        with suppress(RunFailedError):
            return _read_log(folder / name)
    return None


def result_of_logs(logs: Mapping[str, Log]) -> ModelResult:
    """Return the metrics and the paths of the logs, which are given by task.

    Raises RunFailedError with reason RESULTS_INVALID for a path that no message can carry.
    """
    result = model_result(_aggregate(logs))
    paths = {task: require_utf8(str(log.path)) for task, log in logs.items()}
    result.results = next(iter(paths.values()))
    for task in result.tasks:
        path = paths[task.task]
        task.results = path if path != result.results else ""
    result.samples.extend(sorted({paths[task] for task, log in logs.items() if log.samples_offset is not None}))
    return result


def bad_samples(log: Log) -> BadAnswers:
    """Return how many samples failed, and how many have an empty answer. inspect-ai may go on without them to success.

    Reads samples only where some may be bad, or where nothing was scored. Raises RunFailedError with reason RESULTS_INVALID.
    """
    counts = _counted(log)
    is_scored = counts is not None or bool(log.results.get("scores"))
    if is_scored and not (counts and counts.failed) and not _may_be_bad(log):
        return NONE_BAD
    seen = failures = empty = 0
    first = ""
    for error, is_empty in _sample_answers(log):
        seen += 1
        failures += error is not None
        first = first or error or ""
        empty += is_empty and error is None
    if counts is not None:
        failed = max(counts.failed, failures)  # some versions count those as completed that were scored all the same
        return BadAnswers(failed, empty, counts.total, first if failed else "")
    return BadAnswers(failures, empty, seen, first)


def is_empty(log: Log) -> bool:
    """Return whether a log has no scores, no samples, and no count of samples."""
    return not log.results.get("scores") and not log.results.get("total_samples") and log.samples_offset is None


def _counted(log: Log) -> BadAnswers | None:
    """Return how many samples failed by the log's own counts; None if it has none."""
    total, completed = log.results.get("total_samples"), log.results.get("completed_samples")
    if not isinstance(total, int) or not isinstance(completed, int) or total <= 0:
        return None
    return BadAnswers(0 if log.results.get("early_stopping") else max(0, total - completed), 0, total)


def read_samples(file: BinaryIO, offset: int) -> Iterator[SampleRow]:
    """Yield the samples of a log, without their events, from an offset on. See SampleReader."""
    header, begin = _read_header(file)
    if begin is None:
        return
    results = mapping(header.get("results"))
    cluster_field = _cluster_field(results)
    for sample, end in elements(file, offset or begin):
        yield SampleRow(_sample_row(mapping(sample), results, cluster_field), end)


def _may_be_bad(log: Log) -> bool:
    """Return whether a sample may have failed or have an empty answer. The log is only searched; one that is too large to read
    is not."""
    if log.samples_offset is None:
        return False
    with valid_results(log.path.name), open_in(log.path.parent, log.path.name) as file:
        if file.seek(0, os.SEEK_END) > _MAX_READ_BYTES:
            return False
        file.seek(log.samples_offset)
        kept = b""
        while chunk := file.read(_CHUNK_BYTES):
            if _BAD_SAMPLE.search(kept + chunk):
                return True
            kept = chunk[-_TAIL_BYTES:]
    return False


def _sample_answers(log: Log) -> Iterator[tuple[str | None, bool]]:
    """Yield the error of each sample, None for one without, and whether its answer is empty: a text that calls no tool."""
    if log.samples_offset is None:
        return
    with valid_results(log.path.name), open_in(log.path.parent, log.path.name) as file:
        for sample, _ in elements(file, log.samples_offset):
            error, output = mapping(sample).get("error"), mapping(mapping(sample).get("output"))
            answer = output.get("completion")
            is_empty = isinstance(answer, str) and not answer.strip() and not _calls_tool(output)
            yield (_error(mapping(error)) or "an error without a message" if error else None), is_empty


def _calls_tool(output: Mapping[str, object]) -> bool:
    choices = output.get("choices")
    messages = [mapping(mapping(choice).get("message")) for choice in choices] if isinstance(choices, list) else []
    return any(message.get("tool_calls") for message in messages)


def _log_paths(folder: Path) -> list[Path]:
    """Return the paths of the logs, oldest first."""
    with valid_results("the output folder"), scan_folder(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    return [folder / name for name in names if _LOG_NAME.fullmatch(name)]


def _read_log(path: Path) -> Log:
    with valid_results(path.name), open_in(path.parent, path.name) as file:
        header, samples_offset = _read_header(file)
    task = mapping(header.get("eval"))
    names = (task.get(key) for key in ("task", "task_registry_name"))
    return Log(
        path=path,
        names=frozenset(name for name in names if isinstance(name, str)),
        status=wire_text(str(header.get("status"))),
        error=_error(mapping(header.get("error"))),
        header=header,
        samples_offset=samples_offset,
    )


def _read_header(file: BinaryIO) -> tuple[Mapping[str, object], int | None]:
    """Return a log's outcome members and the offset of its samples. Reads up to the samples, or further if some of those
    members come later, and the last bytes. Raises ValueError, RecursionError and OSError."""
    header: dict[str, object] = {}
    samples_offset: int | None = None
    for name, value, begin in members(file, _SAMPLES, left_out=_SAMPLE_IDS):
        if name in _HEADER:
            header[name] = value
        elif name == _SAMPLES and isinstance(value, dict):
            samples_offset = begin if samples_offset is None else samples_offset
            if _is_complete(header):
                _require_end(file)
                break
    return header, samples_offset


def _is_complete(header: Mapping[str, object]) -> bool:
    return {"status", "eval"} <= header.keys() and (header["status"] != SUCCESS or "results" in header)


def _require_end(file: BinaryIO) -> None:
    """Raise ValueError if the last bytes of a log show that it is cut off."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    if not file.read().rstrip().endswith(b"}"):
        raise ValueError("it is cut off")


def _error(error: Mapping[str, object]) -> str:
    """Return the exception from the traceback, else the message, which may be only its repr."""
    traceback = str(error.get("traceback") or "")
    return find_failure(traceback.splitlines()) or shorten(str(error.get("message") or ""))


def _aggregate(logs: Mapping[str, Log]) -> Mapping[str, object]:
    """Convert the logs to the format that `evalrpc.results.metrics` reads."""
    return {
        "results": {task: {**dict(_row(log.results)), "sample_count": _sample_counts(log)} for task, log in logs.items()},
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
    """Return what defines the task."""
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
    """Return how many samples there are, and how many were evaluated: those that were completed, and those with a score, which
    may be more if some failed in a part of their epochs. One that is repeated counts once."""
    original = mapping(log.spec.get("dataset")).get("samples")
    completed = log.results.get("completed_samples")
    with_score = [_scored(log, score, "scored_samples", "unscored_samples") for _, score in _scores(log.results)]
    known = [count for count in (_ceil_per_epoch(log, completed), *with_score) if count is not None]
    return {"original": original, "effective": max(known) if isinstance(completed, int) else None}


def _scored(log: Log, score: Mapping[str, object], *names: str) -> int | None:
    """Return the sum of a score's counts of these names, each sample once; None if it lacks one. Where epochs are not reduced,
    inspect-ai counts a sample as often as it is repeated."""
    counts = [count for name in names if isinstance(count := score.get(name), int)]
    if len(counts) < len(names):
        return None
    bound = _ceil_per_epoch(log, log.results.get("total_samples"))
    return min(sum(counts), bound) if bound else sum(counts)


def _ceil_per_epoch(log: Log, count: object) -> int | None:
    epochs = mapping(log.spec.get("config")).get("epochs")
    if not isinstance(count, int):
        return None
    return -(-count // epochs) if isinstance(epochs, int) and epochs > 0 else count


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
    """Yield the metrics as `evalrpc.results.metrics` reads them: `metric,filter` and `metric_stderr,filter`."""
    for scorer, score in _scores(results):
        values = {key: mapping(metric).get("value") for key, metric in mapping(score.get("metrics")).items()}
        means = [mean for mean in _MEANS if mean in values]
        errors = [values.pop(name) for name in _ERRORS if name in values] if means else []
        # A comma would end the metric's name.
        yield from ((f"{name.replace(',', ';')},{scorer}", value) for name, value in values.items())
        yield from ((f"{mean}_stderr,{scorer}", error) for mean in means for error in errors[:1])


def _sample_counts(log: Log) -> Mapping[str, object]:
    """Return by metric how many samples were scored, where the log says so: a scorer may abstain."""
    return {
        f"{name.replace(',', ';')},{scorer}": count
        for scorer, score in _scores(log.results)
        if (count := _scored(log, score, "scored_samples")) is not None
        for name in mapping(score.get("metrics"))
    }


def _scores(results: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    """Return the scores, each with the name that tells it from the others. A scorer with several values has one for each, by a
    name that another scorer's value may have too."""
    listed = results.get("scores")
    scores = [mapping(score) for score in listed] if isinstance(listed, list) else []
    scorers: defaultdict[str, set[str]] = defaultdict(set)
    for score in scores:
        scorers[str(score.get("name"))].add(str(score.get("scorer")))
    names = [_name(score, is_unique=len(scorers[str(score.get("name"))]) == 1) for score in scores]
    return list(zip(_numbered(names), scores, strict=True))


def _numbered(names: Sequence[str]) -> Iterator[str]:
    """Yield the names, those that are still the same from the second on with a number: no score is lost."""
    seen = Counter[str]()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}/{seen[name]}"


def _name(score: Mapping[str, object], *, is_unique: bool) -> str:
    name, scorer = score.get("name"), score.get("scorer")
    parts = (None if is_unique or scorer == name else scorer, name, score.get("reducer"))
    return "/".join(str(part) for part in parts if part)


def _cluster_field(results: Mapping[str, object]) -> str | None:
    """Return the member of the samples' metadata by which the task clusters its standard errors, as in
    `stderr(cluster="passage")`; None if it does not."""
    for _, score in _scores(results):
        for metric in mapping(score.get("metrics")).values():
            name = mapping(mapping(metric).get("params")).get("cluster")
            if isinstance(name, str) and name:
                return name
    return None


def _sample_row(sample: Mapping[str, object], results: Mapping[str, object], cluster_field: str | None) -> Mapping[str, object]:
    """Return a sample under inspect-ai's own names, plus id, document, answer, metrics and cluster under the names that all
    harnesses share."""
    rest = {key: value for key, value in sample.items() if key not in _NOT_IN_SAMPLES}
    answer = mapping(sample.get("output")).get("completion")
    metrics = dict(_sample_metrics(mapping(sample.get("scores")), results))
    named = {"doc_id": sample.get("id"), "doc_hash": _document_hash(sample), "filtered_resps": answer, "metrics": metrics}
    row = {**named, **rest}
    if cluster_field is not None:
        row["cluster"] = mapping(sample.get("metadata")).get(cluster_field)
    return row


def _document_hash(sample: Mapping[str, object]) -> str:
    """Return a digest of what a sample asks and expects. inspect-ai numbers samples, and so gives others the same ids."""
    asked = sample.get("input")
    if isinstance(asked, list):  # of messages, which have ids of their own in every run
        asked = [[mapping(message).get(key) for key in ("role", "content")] for message in asked]
    try:
        text = json.dumps([asked, sample.get("choices"), sample.get("target")], sort_keys=True)
    except RecursionError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _sample_metrics(scores: Mapping[str, object], results: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Yield the sample's value for every metric that is a mean. NaN stands for a sample that was not scored."""
    for scorer, score in _scores(results):
        value = _number(_sample_value(scores, str(score.get("name")), str(score.get("scorer"))))
        if value is not None:
            yield from ((f"{mean},{scorer}", value) for mean in _MEANS if mean in mapping(score.get("metrics")))


def _sample_value(scores: Mapping[str, object], name: str, scorer: str) -> object:
    """Return a sample's value of a score. A scorer with several values has them in a table."""
    table = mapping(mapping(scores.get(scorer)).get("value"))
    return table[name] if name in table else mapping(scores.get(name)).get("value")


def _number(value: object) -> float | None:
    """Return the number that inspect-ai takes a sample's value for; None for one that was not scored."""
    if isinstance(value, str):
        value = _VALUES.get(value, _WORDS.get(value.lower(), number(value)))
    return value if isinstance(value, int | float) and not math.isnan(value) else None


def _invalid(message: str) -> RunFailedError:
    return RunFailedError("RESULTS_INVALID", message)
