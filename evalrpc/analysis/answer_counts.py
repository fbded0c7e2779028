"""How many answers of a task are no answers: failed, empty, or cut off. A score of these says nothing about the model."""

from collections.abc import Mapping
from typing import Final

from evalrpc.harnesses.sample_answers import NoContent, answer_of, error_of, failure, is_empty, texts
from evalrpc.v1.comparison_pb2 import AnswerCounts

_CUT_OFF: Final = frozenset({"length", "max_tokens", "model_length"})
"""Reasons to stop, as APIs and inspect-ai name them."""


class AnswerCounter:
    """Counts the answers in the rows of one task. A row for each filter has the same answer, so one filter's rows count."""

    def __init__(self) -> None:
        self._total = self._failed = self._empty = self._truncated = 0
        self._filter: object = None
        self._no_content = NoContent()

    def take(self, row: Mapping[str, object]) -> None:
        """Count the answer in a row, if it has one."""
        if (answer_filter := row.get("filter")) is not None:
            if self._filter is None:
                self._filter = answer_filter
            elif answer_filter != self._filter:
                return
        has_failed = error_of(row) is not None
        answer = answer_of(row)
        if answer is None and not has_failed:
            return
        self._total += 1
        self._no_content.look_at(row)
        while isinstance(answer, list) and len(answer) == 1:  # as harnesses write the one answer that there mostly is
            answer = answer[0]
        if has_failed or _is_failed(answer):
            self._failed += 1
        elif _is_empty(answer):
            self._empty += 1
        elif _is_cut_off(row):
            self._truncated += 1

    def counts(self) -> AnswerCounts | None:
        """Return the counts; None if no row has an answer."""
        if not self._total:
            return None
        return AnswerCounts(
            total_count=self._total,
            failed_count=self._failed,
            empty_count=self._empty + self._no_content.count,
            truncated_count=self._truncated,
        )


def bad_ratio(counts: AnswerCounts) -> float:
    """Return the share of answers that are bad."""
    bad = counts.failed_count + counts.empty_count + counts.truncated_count
    return bad / counts.total_count if counts.total_count else 0.0


def _is_failed(answer: object) -> bool:
    return failure(next(texts(answer), None)) is not None


def _is_empty(answer: object) -> bool:
    """Return whether there is nothing but white space in an answer, or in nested lists of answers."""
    if isinstance(answer, list):
        return all(map(_is_empty, answer))
    return answer is None or (isinstance(answer, str) and is_empty(answer))


def _is_cut_off(row: Mapping[str, object]) -> bool:
    reason = row.get("stop_reason", row.get("finish_reason"))
    if reason is None and isinstance(output := row.get("output"), dict):
        choices = output.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        reason = first.get("stop_reason") if isinstance(first, dict) else None
    return (isinstance(reason, str) and reason in _CUT_OFF) or isinstance(row.get("limit"), dict)
