"""Counts the answers that lm-eval and lmms-eval have not got from the model, in the samples that they left. They carry on
without them, score what they have, and exit with 0: lmms-eval with a mark in the answer's place, both with an empty one."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.files.opening import open_in
from evalrpc.harnesses.bad_answers import NONE_BAD, BadAnswers
from evalrpc.harnesses.failures import strip_colours
from evalrpc.results.layout import samples_by_task, valid_results
from evalrpc.results.metrics import mapping
from evalrpc.v1.results_pb2 import ModelResult

FAILED_ANSWER_MARK: Final = "[LMMS_EVAL_REQUEST_FAILED"
"""The beginning of the text that stands for a missing answer of most of lmms-eval's models."""
_NOT_ASKED_MARK: Final = "[LMMS_EVAL_BUDGET_EXCEEDED]"
"""What stands for the answers that lmms-eval did not ask for any more, to keep to a number of tokens."""
_BLOCKED_MARK: Final = "[SAFETY_BLOCKED:"
"""The beginning of what stands for an answer that Gemini withheld."""

_MEDIA_ERRORS: Final = (
    *("Empty prompt", "Unknown", "conditioning video not found", "doc lookup failed", "No conditioning input"),
    *("Failed to save conditioning frames", "Fallback conditioning failed"),
)
"""What models of lmms-eval that make images or videos say after `[ERROR] `. Other words may be what a model answers."""
_FAILURES: Final = (
    re.compile(rf"{re.escape(FAILED_ANSWER_MARK)}[^]]*(?:\] ?)?", re.DOTALL),
    re.compile(rf"(?={re.escape(_NOT_ASKED_MARK)}|{re.escape(_BLOCKED_MARK)})"),
    re.compile(rf"\[ERROR\] (?=(?:{'|'.join(_MEDIA_ERRORS)})\b)"),
    re.compile(r"\[GENERATION_FAILED\] "),
    re.compile(r"(?=Video .{1,4096} (?:can not load|generate failed), check the source\Z)", re.DOTALL),
)
"""How texts begin that stand for a missing answer, in all of lmms-eval's models."""

CHUNK_BYTES: Final = 1024 * 1024
MAX_SEARCHED_BYTES: Final = 2 * 1024**3
"""How much of a job's samples is looked at: more would take longer than the reading of results may."""

_MAX_SAMPLE_BYTES: Final = 16 * 1024 * 1024
_MAX_LINE_CHARACTERS: Final = 2000
_NO_TEXT: Final = rb"\"text\": \"\""
"""What an answer in JSON has, in a line of JSON, if it has no text."""
_SAID_IN_LOG: Final = re.compile(
    r"(?:\bERROR +\| +lmms_eval\.models\.[\w.]+:\w+:[0-9]+ - "
    r"|\bWARNING +\[(?:lm_eval\.)?models\.\w+:[0-9]+\] (?=Could not parse generations|API returned null content))"
    r"(?P<why>.+)"
)
"""How lines of a log say why an answer is empty: lmms-eval's models go on after an error, and lm-eval's after the answer of a
server that has no content."""
_TEXT: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SIGNS: Final = (
    *(FAILED_ANSWER_MARK.encode(), _NOT_ASKED_MARK.encode(), _BLOCKED_MARK.encode()),
    *(b"[ERROR] ", b"[GENERATION_FAILED] ", b", check the source", _NO_TEXT),
)
"""A part of each of those texts, and of an empty one in JSON."""
_EMPTY: Final = re.compile(rb'resps":[\s\[]*+(?:\]|(?:' + _TEXT + rb'[\s,\[\]]++)*?"(?:\s|\\[nrt]|\\u3000|\\u00a0)*+")')
"""An answer in a line of samples, `resps` or `filtered_resps`, with an empty text in it: then counting is needed."""


class AnswersOfRun:
    """Counts the bad answers to each task of a run. `why_empty` is what its log says of those that are empty."""

    def __init__(self, output_dir: Path, why_empty: str = "") -> None:
        self._output_dir = output_dir
        self._why_empty = why_empty
        self._left_bytes = MAX_SEARCHED_BYTES
        self.unread = 0
        """Of how many tasks the answers were not looked at, since the samples are too large."""

    def by_task(self, results: Mapping[str, ModelResult]) -> dict[str, BadAnswers]:
        """Return the counts by a text that names the answers. Raises RunFailedError with reason RESULTS_INVALID for a samples
        file that can't be read."""
        return {
            f"answers to task {task}" + (f" of {model}" if len(results) > 1 else ""): self.count(path)
            for model, result in results.items()
            for task, path in samples_by_task(result).items()
        }

    def count(self, path: str) -> BadAnswers:
        """Count the answers in a samples file, and those that failed or are empty.

        A file without one that is bad is only searched, at the speed of the disk. Any other is parsed, line by line. Raises
        RunFailedError with reason RESULTS_INVALID for a file that can't be read.
        """
        with valid_results("a samples file"), open_in(self._output_dir, path) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            if size_bytes > self._left_bytes:
                self.unread += 1
                return NONE_BAD
            self._left_bytes -= size_bytes
            if not _may_be_bad(file):
                return NONE_BAD
            file.seek(0)
            found = _count(_answers(file))
            return replace(found, first=self._why_empty) if found.empty and not found.failed else found


def _may_be_bad(file: BinaryIO) -> bool:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES) + file.readline(_MAX_SAMPLE_BYTES):  # whole lines
        if any(sign in chunk for sign in _SIGNS) or _EMPTY.search(chunk):
            return True
    return False


def _count(answers: Iterable[str | None]) -> BadAnswers:
    failed = empty = total = 0
    first = ""
    for answer in answers:
        total += 1
        if is_empty(answer):
            empty += 1
        elif answer is not None and (why := failure(answer)) is not None:
            failed += 1
            first = first or why
    return BadAnswers(failed, empty, total, first)


def is_empty(answer: str | None) -> bool:
    """Return whether an answer has no text, nor an image or a video: models that make those answer with a table of them."""
    if answer is None or not answer.strip():
        return True
    if not answer.startswith('{"text": ""'):
        return False
    with suppress(ValueError, RecursionError):
        return not any(mapping(json.loads(answer)).values())
    return False


def reason_in_log(log_tail: Iterable[str]) -> str:
    """Return why answers are empty, by the first line of the log's end that says so; empty if none does."""
    lines = (strip_colours(line)[-_MAX_LINE_CHARACTERS:] for line in log_tail)
    return next((match["why"] for line in lines if (match := _SAID_IN_LOG.search(line))), "")


def failure(answer: str) -> str | None:
    """Return why there is no answer, if the text stands for a missing one; None for an answer."""
    begin = next((match for pattern in _FAILURES if (match := pattern.match(answer))), None)
    return None if begin is None else answer[begin.end() :] or answer


def _answers(file: BinaryIO) -> Iterator[str | None]:
    """Yield the model's answers; None for what it left out of a list. A line that can't be parsed has none. A row for each
    filter has the same answer, so one filter's rows count."""
    first_filter: object = None
    for line in iter(partial(file.readline, _MAX_SAMPLE_BYTES), b""):
        try:
            sample = mapping(json.loads(line.decode(errors="replace")))
        except (ValueError, RecursionError):
            continue
        answer_filter = sample.get("filter")
        first_filter = answer_filter if first_filter is None else first_filter
        # `resps` is what the model said. It is left out if the filters changed nothing.
        answer = sample.get("resps", sample.get("filtered_resps"))
        if answer is not None and answer_filter == first_filter:
            yield from _texts(answer)


def _texts(answer: object) -> Iterator[str | None]:
    """Yield the texts in an answer, or in nested lists of answers."""
    waiting = [answer]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list) and part:
            waiting.extend(reversed(part))
        elif isinstance(part, str) or part is None or part == []:
            yield part if isinstance(part, str) else None
