"""Checks whether lmms-eval got any answer from the model: without one it carries on, scores what it has, and exits with 0."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from evalrpc.errors import RunFailedError
from evalrpc.files.errnos import require_no_shortage
from evalrpc.results.metrics import mapping, strings

FAILED_ANSWER_MARK: Final = "[LMMS_EVAL_REQUEST_FAILED"
"""The beginning of the text that stands for a missing answer."""

MAX_WHOLE_BYTES: Final = 1024 * 1024
"""A larger samples file is not read whole."""

STRETCHES: Final = 64
STRETCH_SAMPLES: Final = 8
"""A larger file is sampled: this many samples from the start of each of STRETCHES stretches of equal length."""

_MAX_SAMPLE_BYTES: Final = 16 * 1024 * 1024


class FailedAnswers(NamedTuple):
    """The finding if every answer has failed."""

    first: str
    """The first failed answer."""
    sample_count: int
    """How many samples with answers were checked."""
    is_all: bool
    """Whether those are all there are."""


def failed_answers(paths: Iterable[str]) -> FailedAnswers | None:
    """Check the answers in samples files. None unless there are some, and every one has failed.

    Reads line by line and stops at the first good answer. Samples beyond MAX_WHOLE_BYTES of a file cost no more time.
    Raises RunFailedError with reason RESULTS_INVALID for a file that can't be read.
    """
    first, sample_count, is_all = "", 0, True
    for path in paths:
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - as the results have it
                size_bytes = os.fstat(file.fileno()).st_size
                is_all = is_all and size_bytes <= MAX_WHOLE_BYTES
                for answers in filter(None, map(_answers, _lines(file, size_bytes))):
                    if not all(answer.startswith(FAILED_ANSWER_MARK) for answer in answers):
                        return None
                    first = first or answers[0]
                    sample_count += 1
        except OSError as error:
            require_no_shortage(error)
            raise RunFailedError("RESULTS_INVALID", f"a samples file can't be read: {error.strerror}") from error
    return FailedAnswers(first, sample_count, is_all) if sample_count else None


def _lines(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Yield all lines of a small file; of a large one, the first that begin in each stretch: all of them, if they are long."""
    if size_bytes <= MAX_WHOLE_BYTES:
        yield from iter(lambda: file.readline(_MAX_SAMPLE_BYTES), b"")
        return
    for number in range(STRETCHES):
        position, end = (size_bytes * edge // STRETCHES for edge in (number, number + 1))
        if position:
            file.seek(position - 1)  # the rest of the previous line may be just its newline
            position += len(file.readline(_MAX_SAMPLE_BYTES)) - 1
        for _ in range(STRETCH_SAMPLES):
            if position >= end:
                break
            line = file.readline(_MAX_SAMPLE_BYTES)
            position += len(line)
            yield line


def _answers(line: bytes) -> list[str]:
    """Return the model's answers to one sample; none if the line can't be parsed."""
    try:
        sample = mapping(json.loads(line.decode(errors="replace")))
    except (ValueError, RecursionError):
        return []
    # `resps` is what the model said. It is left out if the filters changed nothing.
    return list(strings(sample.get("resps", sample.get("filtered_resps"))))
