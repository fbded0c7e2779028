"""Answers that a run has not got from its model. Some harnesses go on without them, score what they have, and exit with 0."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.failures import shorten
from evalrpc.v1.jobs_pb2 import EvaluateRequest


@dataclass(frozen=True)
class FailedAnswers:
    """How many of the answers to one task, or to all, have failed."""

    count: int
    total: int
    first: str
    """Why the first of them failed; empty if none did."""

    def describe(self, of: str) -> str:
        """Say it in one line; `of` names the answers, such as `samples of task mmlu`."""
        return shorten(f"{self.count} of {self.total} {of} failed: {self.first or 'the harness does not say why'}")


def require_answers(found: Mapping[str, FailedAnswers], request: EvaluateRequest) -> list[str]:
    """Return a warning for everything of which some answers failed; its key names the answers.

    Raises RunFailedError with reason ALL_REQUESTS_FAILED where all have, or TOO_MANY_BAD_ANSWERS where more have than the
    request allows.
    """
    failed = {of: answers for of, answers in found.items() if answers.count > 0}
    _require(failed, (of for of, answers in failed.items() if answers.count == answers.total), "ALL_REQUESTS_FAILED")
    if request.HasField("max_bad_answer_ratio"):
        bound = request.max_bad_answer_ratio
        too_many = (of for of, answers in failed.items() if answers.count > bound * answers.total)
        _require(failed, too_many, "TOO_MANY_BAD_ANSWERS")
    return [answers.describe(of) for of, answers in failed.items()]


def _require(failed: Mapping[str, FailedAnswers], bad: Iterable[str], reason: str) -> None:
    for of in bad:
        raise RunFailedError(reason, failed[of].describe(of))
