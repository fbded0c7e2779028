"""Counts the answers that a harness has not got from the model, in the samples that it left. lm-eval and lmms-eval carry on
without them, score what they have, and exit with 0: lmms-eval with a mark in the answer's place, both with an empty one, or a
log-probability that is not a number. Programs of the operator's may have the error there."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from evalrpc.files.opening import open_in
from evalrpc.harnesses.bad_answers import NONE_BAD, BadAnswers, require_answers
from evalrpc.harnesses.failures import strip_colours
from evalrpc.results.layout import samples_by_task, valid_results
from evalrpc.results.metrics import mapping, number
from evalrpc.v1.jobs_pb2 import EvaluateRequest
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
    re.compile(r'(?:Error: )?(?=can only concatenate str \(not "NoneType"\) to str)'),
)
"""How texts begin that stand for a missing answer, in all of lmms-eval's models."""

_NO_NUMBER: Final = "no log-probability: it is NaN, as float16 may make it, or the server sent none, where lm-eval takes 0"
"""Why such an answer is none. Of several such, the first is taken for the largest, and so for the model's choice."""
_SUM_OF_NONE: Final = "0"
"""What lm-eval writes for the sum of no log-probabilities. That of some is a fraction, such as `0.0`."""
_TRUTH: Final = (True, False, "True", "False")
"""What follows a log-probability: whether the text is the most probable one."""
_NO_CONTENT: Final = "None"
"""What lmms-eval writes for an answer that has no content."""
_WITHOUT_CONTENT: Final = "the server sent no content, perhaps since the model's reasoning took all tokens"
_ANSWERS: Final = ("resps", "filtered_resps", "answer")
"""Where a sample has the model's answer. The first one is what it said; it is left out where a filter changed nothing."""

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
    *(b"[ERROR] ", b"[GENERATION_FAILED] ", b", check the source", _NO_TEXT, b"NaN"),
    b"can only concatenate str (not ",
)
"""A part of each of those texts, of an empty one in JSON, and of a number that is none."""
_NONE: Final = (
    rb'":[\s\[]*+(?:\]|"None"|(?:'
    + _TEXT
    + rb'[\s,\[\]]++)*?"(?:(?:\s|\\[nrt]|\\u3000|\\u00a0)*+"|(?:nan|0)",\s*+"(?:True|False)"))'
)
"""What follows where an answer, or one in a list of them, may be empty, or no log-probability of lm-eval's."""
EMPTY: Final = (re.compile(rb"resps" + _NONE),)
"""An answer in a line of samples, `resps` or `filtered_resps`, with a text in it that may be empty: then counting is needed."""
EMPTY_OR_ERROR: Final = (*EMPTY, re.compile(rb'"answer' + _NONE), re.compile(rb'"error":\s*+(?:"[^"]|\{\s*+")'))
"""The same in the samples of a program that may say `answer` and `error`. Each begins with a text, and so is found fast."""


class AnswersOfRun:
    """Counts the bad answers to each task of a run. `why_empty` is what its log says of those that are empty, and `suspicious`
    what a line has in which one may be bad."""

    def __init__(self, output_dir: Path, why_empty: str = "", suspicious: Sequence[re.Pattern[bytes]] = EMPTY) -> None:
        self._output_dir = output_dir
        self._why_empty = why_empty
        self._suspicious = suspicious
        self._left_bytes = MAX_SEARCHED_BYTES
        self.unread = 0
        """Of how many tasks the answers were not looked at, since the samples are too large."""

    def warnings(self, results: Mapping[str, ModelResult], request: EvaluateRequest) -> Iterator[str]:
        """Yield a warning for each task to which some answers are bad. Raises RunFailedError if they are too many, and what
        `by_task` does."""
        yield from require_answers(self.by_task(results), request)
        if self.unread:
            yield f"whether answers failed is not known of {self.unread} tasks: their samples are too large"

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
            if not _may_be_bad(file, self._suspicious):
                return NONE_BAD
            file.seek(0)
            found = _count(_samples(file))
            return replace(found, first=self._why_empty or found.first) if found.empty and not found.failed else found


def _may_be_bad(file: BinaryIO, suspicious: Sequence[re.Pattern[bytes]]) -> bool:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES) + file.readline(_MAX_SAMPLE_BYTES):  # whole lines
        if any(sign in chunk for sign in _SIGNS) or any(pattern.search(chunk) for pattern in suspicious):
            return True
    return False


def _count(samples: Iterable[Mapping[str, object]]) -> BadAnswers:
    failed = empty = total = 0
    first = ""
    no_content = NoContent()
    for sample in samples:
        no_content.look_at(sample)
        for why, is_without_text in _answers(sample):
            total += 1
            failed += why is not None
            empty += why is None and is_without_text
            first = first or why or ""
    if no_content.count and not failed:
        first = _WITHOUT_CONTENT
    return BadAnswers(failed, empty + no_content.count, total, first)


class NoContent:
    """Counts the answers of lmms-eval's samples that are the text `None`, unless some samples of the task expect that."""

    def __init__(self) -> None:
        self._count = self._expecting = self._samples = 0

    def look_at(self, sample: Mapping[str, object]) -> None:
        """Count in a sample."""
        if "token_counts" not in sample:  # of another harness
            return
        self._samples += 1
        self._expecting += sample.get("target") == _NO_CONTENT
        answer = answer_of(sample)
        self._count += answer == _NO_CONTENT if isinstance(answer, str) else [*texts(answer)].count(_NO_CONTENT)

    @property
    def count(self) -> int:
        """How many there are so far. Where all samples expect `None`, they have no target."""
        return 0 if 0 < self._expecting < self._samples else self._count


def is_empty(answer: object) -> bool:
    """Return whether an answer has no text, nor an image or a video: models that make those answer with a table of them."""
    if not isinstance(answer, str):
        return answer is None
    if not answer.strip():
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


def failure(answer: object) -> str | None:
    """Return why there is no answer, where a text stands for a missing one, or a log-probability is no number; else None."""
    if not isinstance(answer, str):
        return _NO_NUMBER if isinstance(answer, float) and math.isnan(answer) else None
    begin = next((match for pattern in _FAILURES if (match := pattern.match(answer))), None)
    return None if begin is None else answer[begin.end() :] or answer


def error_of(sample: Mapping[str, object]) -> str | None:
    """Return why a sample has no answer, where it says so itself; None where it does not."""
    error = sample.get("error")
    if not error or not isinstance(error, str | dict):
        return None
    return error if isinstance(error, str) else str(error.get("message") or "an error without a message")


def _samples(file: BinaryIO) -> Iterator[Mapping[str, object]]:
    """Yield the samples that can be parsed. A row for each filter has the same answer, so one filter's rows count."""
    first_filter: object = None
    for line in iter(partial(file.readline, _MAX_SAMPLE_BYTES), b""):
        try:
            sample = mapping(json.loads(line.decode(errors="replace")))
        except (ValueError, RecursionError):
            continue
        answer_filter = sample.get("filter")
        first_filter = answer_filter if first_filter is None else first_filter
        if answer_filter == first_filter:
            yield sample


def _answers(sample: Mapping[str, object]) -> Iterator[tuple[str | None, bool]]:
    """Yield why each of the model's answers failed, None for one that did not, and whether it is empty."""
    if (why := error_of(sample)) is not None:
        yield why, False
    elif (answer := answer_of(sample)) is not None:
        yield from ((failure(text), is_empty(text)) for text in texts(answer))


def answer_of(sample: Mapping[str, object]) -> object:
    """Return what the model answered, a text or nested lists of such; None where the sample does not say."""
    return next((sample[name] for name in _ANSWERS if name in sample), None)


def texts(answer: object) -> Iterator[str | float | None]:
    """Yield the texts in an answer, or in nested lists of answers, and of each log-probability the number; None for what the
    model left out of a list."""
    waiting = [answer]
    while waiting:
        part = waiting.pop()
        if isinstance(part, float):
            yield part
        elif isinstance(part, list) and len(part) == 2 and part[1] in _TRUTH and (value := number(part[0])) is not None:
            yield math.nan if part[0] == _SUM_OF_NONE else value
        elif isinstance(part, list) and part:
            waiting.extend(reversed(part))
        elif isinstance(part, str) or part is None or part == []:
            yield part if isinstance(part, str) else None
