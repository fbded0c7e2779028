"""Reads an output directory into a results map: a model's name to its files and metrics.

The layout is that of lmms-eval, which the `command` harness shares, or that of lm-eval:

    output_dir/MODEL/20260214_103045_results.json
    output_dir/MODEL/20260214_103045_samples_TASK.jsonl

    output_dir/MODEL/results_2026-02-14T10-30-45.274536.json
    output_dir/MODEL/samples_TASK_2026-02-14T10-30-45.274536.jsonl

The files may also be in `output_dir` itself. The latest timestamp in a folder counts. Links are never followed, so nothing
outside the directory is read, and only regular files are. Whatever a harness has written there, the outcome is a result or a
RunFailedError.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.errors import RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import open_in, scan_folder
from evalrpc.printable import printable
from evalrpc.protobuf.bounds import json_integer
from evalrpc.protobuf.structs import wire_text
from evalrpc.results.metrics import mapping, model_result, rows_of, strings
from evalrpc.v1.results_pb2 import ModelResult

_STAMP: Final = r"(?P<stamp>[0-9]{8}_[0-9]{6})"
_ISO_STAMP: Final = r"(?P<stamp>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}-[0-9]{2}-[0-9]{2}(?:\.[0-9]{6})?)"
_TASK: Final = r"(?P<task>.+)"
_RESULTS_NAMES: Final = (re.compile(rf"{_STAMP}_results\.json"), re.compile(rf"results_{_ISO_STAMP}\.json"))
_SAMPLES_NAMES: Final = (
    re.compile(rf"{_STAMP}_samples_{_TASK}\.jsonl", re.DOTALL),
    re.compile(rf"samples_{_TASK}_{_ISO_STAMP}\.jsonl", re.DOTALL),
)
_LOOKS_LIKE_RESULTS: Final = re.compile(r"results[^/]*\.jsonl?\Z")
_MAX_LOOKED_AT: Final = 20  # folders
_MAX_SHOWN: Final = 100
MAX_RESULTS_BYTES: Final = 128 * 1024 * 1024
"""The size of a results file."""
MAX_KEPT_BYTES: Final = 32 * 1024 * 1024
"""The size of a job's metrics, in memory while a run ends, which takes several times as much."""
MAX_MODELS: Final = 64
"""How many models a job may have results of."""


def read_results(output_dir: Path, model: str) -> dict[str, ModelResult]:
    """Read the latest results of every model folder; files in `output_dir` itself go under the name `model`.

    What loses no results fails no run: other folders and files of any name, and, with a warning, samples whose name is not
    UTF-8, and folders that can't be read or whose name is not UTF-8, if others have results.

    Raises RunFailedError with reason RESULTS_INVALID for a results file that can't be read, or for more than is kept of a job;
    OSError for a temporary resource shortage of the server.
    """
    files, folders = _names(output_dir)
    found = {model: _read_folder(output_dir, "", files)}
    lost: dict[str, RunFailedError] = {}  # by what is said of them
    for name in folders:
        try:
            files = _names(output_dir, name).files
        except RunFailedError as error:
            lost["a folder below the output folder can't be read"] = error
            continue
        if not is_utf8(name) and _matches(_RESULTS_NAMES, files):
            lost["the name of a folder with results is not UTF-8"] = _not_utf8(name)
            continue
        found[name] = _read_folder(output_dir, name, files) or found.get(name)
    results = {name: result for name, result in found.items() if result is not None}
    if lost and not results:
        raise next(iter(lost.values()))
    for result in results.values():
        result.warnings.extend(f"results may be missing: {what}" for what in lost)
    require_size(results)
    return results


def unread_results(output_dir: Path) -> str:
    """Return the name of a file that looks like results, where `read_results` found none; empty if there is none. Some versions
    of harnesses wrote `results.json`, and some programs have a folder for each part of a model's name."""
    found = [""]  # folders; those that are looked at add theirs
    for folder in islice(found, _MAX_LOOKED_AT):
        with suppress(RunFailedError):
            files, folders = _names(output_dir, folder)
            prefix = f"{folder}/" if folder else ""
            if name := next(filter(_LOOKS_LIKE_RESULTS.search, files), ""):
                return printable(f"{prefix}{name}")[:_MAX_SHOWN]
            found += [f"{prefix}{name}" for name in folders[:_MAX_LOOKED_AT]]
    return ""


def require_size(results: Mapping[str, ModelResult]) -> None:
    """Raise RunFailedError with reason RESULTS_INVALID for more than the server keeps of a job."""
    metrics = sum(len(result.metrics) for result in results.values())
    require_models(len(results))
    require_bytes(sum(result.ByteSize() for result in results.values()), f"{metrics} metrics of {len(results)} models")


def require_models(count: int) -> None:
    """Do the same for results of so many models."""
    if count > MAX_MODELS:
        raise _invalid(f"there are results of {count} models; at most {MAX_MODELS} are kept")


def require_bytes(size_bytes: int, what: str) -> None:
    """Do the same for results of a known size; `what` describes them."""
    if size_bytes > MAX_KEPT_BYTES:
        raise _invalid(f"{what} take {size_bytes} bytes; at most {MAX_KEPT_BYTES} are kept")


def missing_tasks(result: ModelResult, tasks: Iterable[str], output_dir: Path | None = None) -> list[str]:
    """Return the requested tasks that the result does not cover. `output_dir` is where the result was read from; without it, a
    run could have put a link in the place of that folder since.

    A group is covered if the harness lists it, and a tag if a task has it. A tag may leave only the names of its tasks in the
    results, so nothing counts as missing while there are tasks that nothing of what was requested accounts for.
    """
    path = Path(result.results)
    document = _read_document(output_dir or path.parent, path)
    named = set(tasks)
    rows = rows_of(document).keys()
    groups = mapping(document.get("group_subtasks"))
    tags = _tags(document)
    missing = named - rows - groups.keys() - set().union(*tags.values())
    tagged = {task for task, of_task in tags.items() if of_task & named}
    unnamed = rows - named - groups.keys() - tagged - {name for members in groups.values() for name in strings(members)}
    return [] if unnamed else sorted(missing)


def task_configs(result: ModelResult, output_dir: Path) -> Mapping[str, Mapping[str, object]]:
    """Return the definition of each task, as far as the harness writes it. `output_dir` is where the result was read from.

    Raises RunFailedError with reason RESULTS_INVALID.
    """
    configs = mapping(_read_document(output_dir, Path(result.results)).get("configs"))
    return {task: mapping(config) for task, config in configs.items()}


def samples_task(path: str) -> str | None:
    """Return the task in the name of a samples file; None for any other file."""
    match = _match(_SAMPLES_NAMES, Path(path).name)
    return match["task"] if match else None


def samples_by_task(result: ModelResult) -> dict[str, str]:
    """Return samples files by task: the task in the file's name, or else the tasks whose aggregate file it also is."""
    tasks_in: dict[str, list[str]] = {}
    for task in result.tasks:
        tasks_in.setdefault(task.results or result.results, []).append(task.task)
    by_task: dict[str, str] = {}
    for path in result.samples:
        named = samples_task(path)
        by_task |= dict.fromkeys(tasks_in.get(path, ()) if named is None else (named,), path)
    return by_task


@contextmanager
def valid_results(what: str) -> Iterator[None]:
    """Turn what goes wrong with a file or folder of a run, named by `what`, into a RunFailedError with reason RESULTS_INVALID.

    Raises OSError for a shortage of the server, which says nothing about the run.
    """
    try:
        yield
    except OSError as error:
        require_no_shortage(error)
        raise _invalid(f"{what} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{what} is not valid JSON: {error}") from error


def require_utf8(name: str) -> str:
    """Return a name or path if a message can carry it. Raises RunFailedError with reason RESULTS_INVALID otherwise."""
    if not is_utf8(name):
        raise _not_utf8(name)
    return name


def _not_utf8(name: str) -> RunFailedError:
    shown = printable(os.fsencode(name).decode(errors="backslashreplace"))[:200]
    return _invalid(f"the name '{shown}' is not UTF-8")


def is_utf8(name: str) -> bool:
    """Return whether a message can carry a name."""
    return name == wire_text(name)


class _Names(NamedTuple):
    """What is in a folder, sorted."""

    files: list[str]
    folders: list[str]


def _names(output_dir: Path, below: str = "") -> _Names:
    """List the output folder, or one below it."""
    files: list[str] = []
    folders: list[str] = []
    with valid_results("the output folder"), scan_folder(output_dir, below) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
    return _Names(sorted(files), sorted(folders))


def _read_folder(output_dir: Path, below: str, names: list[str]) -> ModelResult | None:
    dated = [(match["stamp"], match[0]) for match in _matches(_RESULTS_NAMES, names)]
    if not dated:
        return None
    latest, results_name = max(dated)
    samples = [match[0] for match in _matches(_SAMPLES_NAMES, names) if match["stamp"] == latest]
    folder = output_dir / require_utf8(below)
    path = folder / results_name
    result = model_result(_read_document(output_dir, path))
    result.results = require_utf8(str(path))
    result.samples.extend(str(folder / name) for name in samples if is_utf8(name))
    if left_out := len(samples) - len(result.samples):
        result.warnings.append(f"{left_out} files of samples are left out: their names are not UTF-8")
    return result


def _matches(patterns: Iterable[re.Pattern[str]], names: Iterable[str]) -> list[re.Match[str]]:
    return [match for name in names if (match := _match(patterns, name))]


def _match(patterns: Iterable[re.Pattern[str]], name: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.fullmatch(name))), None)


def _read_document(output_dir: Path, path: Path) -> Mapping[str, object]:
    with valid_results(path.name):
        with open_in(output_dir, path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > MAX_RESULTS_BYTES:
                raise _invalid(f"{path.name} is larger than {MAX_RESULTS_BYTES} bytes")
            content = file.read(size_bytes)
        document = json.loads(content, parse_int=json_integer)
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict):
        raise _invalid(f"{path.name} has no table of results")
    return document


def _tags(document: Mapping[str, object]) -> dict[str, set[str]]:
    """Return the tags of each task."""
    configs = mapping(document.get("configs")).items()
    return {task: {tag for key in ("tag", "group") for tag in strings(mapping(config).get(key))} for task, config in configs}


def _invalid(message: str) -> RunFailedError:
    return RunFailedError("RESULTS_INVALID", message)
