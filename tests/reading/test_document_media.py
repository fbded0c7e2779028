"""What harnesses say of their documents, asked through a real executor."""

import base64
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from evalrpc.executors.base import CommandOutput
from evalrpc.harnesses.base import Command, MediaLimits
from evalrpc.reading.document_media import DocumentMedia
from evalrpc.v1.jobs_pb2 import EvaluateRequest

REQUEST = EvaluateRequest(harness="mine", model="m")
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


class Harness:
    """A harness whose documents show what a test says."""

    name = "mine"

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None  # the rest of a harness

    def media_command(self, request: EvaluateRequest, task: str, doc_ids: Sequence[int], limits: MediaLimits) -> Command:
        return Command((json.dumps([request.model, task, list(doc_ids), limits.max_bytes]),))


class Answers:
    """An executor that gives these answers, and remembers what it was asked."""

    def __init__(self, *answers: object) -> None:
        self.asked: list[Sequence[Any]] = []
        self._answers = iter(answers)

    def run_to_end(self, command: Command, timeout_seconds: float) -> CommandOutput:
        self.asked.append(json.loads(command.argv[0]))
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return CommandOutput(f"some words\n{text}\n".encode(), b"Traceback\nKeyError: 'key-of-operator'\n")


def documents(executor: Answers) -> DocumentMedia:
    return DocumentMedia({"mine": Harness()}, executor, lambda text: text.replace("key-of-operator", "***"))  # type: ignore[dict-item,arg-type]


def test_some_documents_are_asked_for_at_once_and_remembered() -> None:
    shown = {str(number): [{"data": PNG}, {"path": f"{number}.mp4"}, {"problem": "no"}, {}, "x"] for number in range(3, 6)}
    executor = Answers({"documents": {**shown, "x": [], "7": "y"}, "has_media": True}, {"documents": {"6": []}})
    media = documents(executor)
    first = media.media_of(REQUEST, "t", 3)
    assert [each.source for each in first] == [f"document[{place}]" for place in range(5)]
    assert (first[0].data, first[1].path, first[2].problem) == (b"\x89PNG\r\n\x1a\n", "3.mp4", "no")
    assert first[3].problem
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda number: media.media_of(REQUEST, "t", number)[1].path, (5, 4, 3))) == [
            "5.mp4",
            "4.mp4",
            "3.mp4",
        ]
    assert media.media_of(REQUEST, "t", 6) == []
    assert [asked[2][0] for asked in executor.asked] == [3, 6]


def test_a_task_that_shows_nothing_is_asked_once() -> None:
    executor = Answers({"documents": {}, "has_media": False})
    media = documents(executor)
    assert [list(media.media_of(REQUEST, "t", number)) for number in range(3)] == [[], [], []]
    assert len(executor.asked) == 1


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    executor = Answers(*({"documents": {"1": []}} for _ in range(2)))
    media = documents(executor)
    for _ in range(2):
        media.media_of(REQUEST, "t", 1)
        media.forget_unused()
        media.forget_unused()
    assert len(executor.asked) == 2


@pytest.mark.parametrize("answer", ["no JSON", "[]", "{", OSError("no descriptor left"), TimeoutError("it takes longer")])
def test_a_harness_that_fails_is_a_problem_without_its_secrets(answer: object) -> None:
    (medium,) = documents(Answers(answer)).media_of(REQUEST, "t", 1)
    assert medium.problem.startswith("mine can't show it: ")
    assert "key-of-operator" not in medium.problem


@pytest.mark.parametrize("answer", [{}, {"documents": 5}, {"documents": {"1": None}}, {"documents": {"2": []}}])
def test_an_answer_about_something_else_is_a_problem(answer: Mapping[str, object]) -> None:
    (medium,) = documents(Answers(answer)).media_of(REQUEST, "t", 1)
    assert "does not say" in medium.problem


@pytest.mark.parametrize("sample_id", ["x", "", "-1", "1.5", "²", "1" * 13])
def test_only_numbers_are_documents(sample_id: str) -> None:
    assert not documents(Answers()).can_tell(REQUEST, sample_id)


def test_a_harness_without_that_is_not_asked() -> None:
    assert documents(Answers()).can_tell(REQUEST, "7")
    assert not documents(Answers()).can_tell(EvaluateRequest(harness="other"), "7")
