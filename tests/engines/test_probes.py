"""What an engine is asked before jobs rely on its answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_stub import Asked, completion, engine_stub

from evalrpc.config import EngineSettings
from evalrpc.engines.chat_template import rendered_chat
from evalrpc.engines.definition import EngineDefinition
from evalrpc.engines.probes import Findings, probe
from evalrpc.v1.jobs_pb2 import ServedModel

LIMIT = 64
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n    <{{ message['role'] }}>{{ message['content'] }}</>\n{% endfor %}\n"
)
RENDERED = "<s>    <user>The capital of France is</>\n"


class Sound:
    """An engine that does all right: it counts a word as a token, and a chat as long as its template renders it."""

    def __init__(self, **answers: Callable[[dict[str, Any]], object]) -> None:
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    def __call__(self, asked: Asked) -> None:
        if asked.method == "GET":
            asked.answer({"data": [{"id": "tiny", "max_model_len": LIMIT}]})
            return
        fields = asked.fields
        self.asked.append(fields)
        if fields["model"] != "tiny" and "name" not in self.answers:
            asked.answer({"error": "no such model"}, 404)
            return
        kind = "chat" if "messages" in fields else "text"
        text = fields["messages"][0]["content"] if kind == "chat" else fields["prompt"]
        if kind in self.answers and (answer := self.answers[kind](fields)) is not None:
            asked.answer(answer)
        elif len(text.split()) > LIMIT and "long" not in self.answers:
            asked.answer({"error": "too long"}, 400)
        else:
            asked.answer(self._right(kind, text, fields))

    @staticmethod
    def _right(kind: str, text: str, fields: dict[str, Any]) -> dict[str, Any]:
        tokens = len(text.split()) + (kind == "chat")
        if kind == "chat":
            return {**completion("Paris", prompt_tokens=tokens), "model": "tiny"}
        logprobs = {"token_logprobs": [None, -1.0]} if fields.get("echo") else None
        return {
            "choices": [{"text": "Paris", "logprobs": logprobs}],
            "usage": {"prompt_tokens": tokens},
            "model": fields["model"],
        }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}}))
    return tmp_path


def found(engine: Sound, model: Path | str, *api: str) -> Findings:
    definition = EngineDefinition(EngineSettings("stub", ("x", "{model}", "{port}"), model_name="tiny", api=api or ("chat",)))
    with engine_stub(engine) as stub:
        return probe(stub.server_port, definition, ServedModel(model=str(model)))


def test_a_sound_engine_has_neither_problems_nor_warnings(model: Path) -> None:
    engine = Sound()
    assert found(engine, model, "chat", "completions", "log-probabilities") == Findings()
    assert {fields["temperature"] for fields in engine.asked} == {0}


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"chat": lambda _: {"choices": []}}, "its answer has no message"),
        ({"text": lambda fields: {"choices": [{"text": ""}]} if fields.get("echo") else None}, "leaves out the log-prob"),
    ],
)
def test_what_makes_answers_worthless_is_a_problem(model: Path, answers: dict[str, Any], problem: str) -> None:
    assert problem in found(Sound(**answers), model, "chat", "completions", "log-probabilities").problem


def numbered() -> Callable[[dict[str, Any]], object]:
    numbers = iter(range(100))
    return lambda _: completion(f"answer {next(numbers)}")


def changed_from(count: int) -> Callable[[dict[str, Any]], object]:
    """Answer otherwise from the question of this number on."""
    numbers = iter(range(100))
    return lambda _: completion("Paris" if next(numbers) < count else "London")


@pytest.mark.parametrize(
    ("answers", "api", "warning"),
    [
        ({"chat": changed_from(5)}, ("chat",), "when that was asked 4 times at once ('Paris', 'London')"),
        ({"name": lambda _: None}, ("chat",), "it answers for any name of a model"),
        ({"name": lambda _: None}, ("completions",), "it answers for any name of a model"),
        ({"chat": numbered()}, ("chat",), "gave two answers to the same greedy question ('answer 0', 'answer 1')"),
        ({"chat": lambda _: completion("")}, ("chat",), "its greedy answer to a simple question is empty"),
        ({"chat": lambda _: {**completion(), "model": "other"}}, ("chat",), "says that other has answered"),
        ({"chat": lambda _: completion(prompt_tokens=30)}, ("chat", "completions"), "has 30 tokens, and 6 by the latter"),
        ({"long": lambda _: None}, ("chat",), f"longer than the {LIMIT} tokens"),
        ({"long": lambda _: None}, ("completions",), f"longer than the {LIMIT} tokens"),
    ],
)
def test_what_may_be_meant_is_a_warning(model: Path, answers: dict[str, Any], api: tuple[str, ...], warning: str) -> None:
    problem, warnings = found(Sound(**answers), model, *api)
    assert problem == ""
    assert any(warning in each for each in warnings), warnings


def test_an_answer_of_reasoning_alone_is_not_empty(model: Path) -> None:
    message = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    answer = {"choices": [{"message": message, "finish_reason": "length"}]}
    assert found(Sound(chat=lambda fields: answer if fields["max_tokens"] > 1 else None), model) == Findings()


def test_the_length_of_the_context_is_that_of_the_folder_where_the_engine_does_not_say_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 8}}))
    engine = Sound(long=lambda _: None)
    with engine_stub(lambda asked: asked.answer({}, 404) if asked.method == "GET" else engine(asked)) as stub:
        definition = EngineDefinition(EngineSettings("stub", ("x",), model_name="tiny"))
        (warning,) = probe(stub.server_port, definition, ServedModel(model=str(tmp_path))).warnings
    assert "longer than the 8 tokens" in warning


def test_a_chat_is_rendered_as_transformers_does(model: Path) -> None:
    assert rendered_chat(model) == RENDERED
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert rendered_chat(model) == "The capital of France is!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ nothing.here }}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
    ],
)
def test_a_template_that_can_not_be_rendered_says_nothing(model: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr("evalrpc.engines.chat_template._SECONDS", 1)
    (model / "chat_template.jinja").write_text(template)
    assert rendered_chat(model) == ""


def test_a_folder_without_a_template_says_nothing(tmp_path: Path) -> None:
    assert rendered_chat(tmp_path) == ""
