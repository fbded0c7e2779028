"""Counts the answers that lmms-eval has not got from the model: it carries on without them, scores what it has, and exits with
0."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.files.opening import open_in
from evalrpc.harnesses.failed_answers import FailedAnswers
from evalrpc.results.layout import valid_results
from evalrpc.results.metrics import mapping, strings

FAILED_ANSWER_MARK: Final = "[LMMS_EVAL_REQUEST_FAILED"
"""The beginning of the text that stands for a missing answer."""

CHUNK_BYTES: Final = 1024 * 1024

_MAX_SAMPLE_BYTES: Final = 16 * 1024 * 1024


def failed_answers(output_dir: Path, paths: Sequence[str]) -> FailedAnswers:
    """Count the answers in samples files of an output folder, and those that have failed.

    Files without a failed answer are only searched, at the speed of the disk. Otherwise all are parsed, line by line. Raises
    RunFailedError with reason RESULTS_INVALID for a file that can't be read.
    """
    with valid_results("a samples file"):
        if not any(_has_mark(output_dir, path) for path in paths):
            return FailedAnswers(0, 0, "")
        return _count(answer for path in paths for answer in _answers(output_dir, path))


def _has_mark(output_dir: Path, path: str) -> bool:
    mark, end = FAILED_ANSWER_MARK.encode(), b""
    with open_in(output_dir, path) as file:
        for chunk in iter(partial(file.read, CHUNK_BYTES), b""):
            if mark in end + chunk:
                return True
            end = chunk[1 - len(mark) :]
    return False


def _count(answers: Iterable[str]) -> FailedAnswers:
    count = total = 0
    first = ""
    for answer in answers:
        total += 1
        if answer.startswith(FAILED_ANSWER_MARK):
            count += 1
            first = first or answer
    return FailedAnswers(count, total, first.partition("] ")[2] or first)


def _answers(output_dir: Path, path: str) -> Iterator[str]:
    """Yield the model's answers in a samples file. A line that can't be parsed has none."""
    with open_in(output_dir, path) as file:
        for line in _lines(file):
            try:
                sample = mapping(json.loads(line.decode(errors="replace")))
            except (ValueError, RecursionError):
                continue
            # `resps` is what the model said. It is left out if the filters changed nothing.
            yield from strings(sample.get("resps", sample.get("filtered_resps")))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.readline, _MAX_SAMPLE_BYTES), b"")
