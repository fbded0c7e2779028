"""Answers that a run has not got from its model. Some harnesses go on without them, score what they have, and exit with 0."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.failures import shorten
from evalrpc.v1.jobs_pb2 import EvaluateRequest
from evalrpc.v1.results_pb2 import ModelResult


@dataclass(frozen=True)
class BadAnswers:
    """How many of the answers to one task are none."""

    failed: int
    """For these an error stands instead."""
    empty: int
    """These have no text, or white space alone."""
    total: int
    first: str = ""
    """Why the first of them failed, or, if none did, why some are empty; empty if that is not known."""

    @property
    def count(self) -> int:
        """How many are bad."""
        return self.failed + self.empty

    def describe(self, of: str) -> str:
        """Say it in one line; `of` names the answers, such as `samples of task mmlu`."""
        empty = f"{self.empty} of {self.total} {of} {'are' if self.total > 1 else 'is'} empty"
        if not self.failed:
            return shorten(f"{empty}: {self.first}" if self.first else empty)
        more = f", and {self.empty} more are empty" if self.empty else ""
        return shorten(f"{self.failed} of {self.total} {of} failed{more}: {self.first or 'the harness does not say why'}")


NONE_BAD = BadAnswers(0, 0, 0)
"""Every answer is good, or none is known."""


def require_answers(found: Mapping[str, BadAnswers], request: EvaluateRequest) -> list[str]:
    """Return a warning for everything of which some answers are bad; its key names the answers.

    Raises RunFailedError with reason ALL_REQUESTS_FAILED where no answer is good and some failed, or TOO_MANY_BAD_ANSWERS where
    more are bad than the request allows. Empty answers alone may be what the model says, so that a request has to exclude them,
    unless something says why they are empty.
    """
    bad = {of: answers for of, answers in found.items() if answers.count > 0}
    unanswered = (of for of, answers in bad.items() if answers.count == answers.total and (answers.failed or answers.first))
    _require(bad, unanswered, "ALL_REQUESTS_FAILED")
    if request.HasField("max_bad_answer_ratio"):
        bound = request.max_bad_answer_ratio
        too_many = (of for of, answers in bad.items() if answers.count > bound * answers.total)
        _require(bad, too_many, "TOO_MANY_BAD_ANSWERS")
    return [answers.describe(of) for of, answers in bad.items()]


def unscored(results: Iterable[ModelResult]) -> Iterator[str]:
    """Yield a warning if some values are of no sample: harnesses write them all the same, as NaN or 0."""
    of_none = {
        f"{metric.task}/{metric.metric},{metric.filter}"
        for result in results
        for metric in result.metrics
        if metric.HasField("sample_count") and not metric.sample_count
    }
    if of_none:
        yield shorten(f"values of no sample, which say nothing: {', '.join(sorted(of_none))}")


def warn(results: Mapping[str, ModelResult], warnings: Iterable[str]) -> None:
    """Say of every model what is doubtful about its results."""
    for warning in warnings:
        for result in results.values():
            result.warnings.append(warning)


def _require(bad: Mapping[str, BadAnswers], unfit: Iterable[str], reason: str) -> None:
    for of in unfit:
        raise RunFailedError(reason, bad[of].describe(of))
