"""Keys of questions, and what is known of a body: small ones are parsed, large ones are not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.engines.gateway.contract import Engine
from evalrpc.engines.gateway.questions import SMALL_BYTES, BadBodyError, Question, is_passed, is_question

PATH = "/v1/chat/completions"
LONG = "x" * SMALL_BYTES
TINY = Engine("tiny")


def question(body: object, engine: Engine = TINY, target: str = PATH, prefix: str = "p") -> Question:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Question(target, data, engine, prefix)


def test_a_key_depends_on_weights_path_and_body_and_on_nothing_else() -> None:
    body = {"model": "a", "prompt": "b"}
    keys = {
        question(body).key,
        question(body, prefix="q").key,
        question(body, target="/v1/completions").key,
        question(body, target=f"{PATH}?x=1").key,
        question(body | {"prompt": "c"}).key,
        question(body | {"prompt": LONG}).key,
    }
    assert len(keys) == 6
    assert question({"prompt": "b", "model": "a"}).key == question(body).key
    assert question(body, Engine("tiny", model="m")).key == question(body | {"model": "z"}, Engine("tiny", model="m")).key
    assert question(body, Engine("tiny", key="one")).key == question(body, Engine("tiny", key="two")).key


def test_the_prefix_and_the_path_do_not_run_into_each_other() -> None:
    assert question({}, target="/v1/ab", prefix="p").key != question({}, target="b", prefix="p\0/v1/a").key


@pytest.mark.parametrize("filling", ["", LONG])
@pytest.mark.parametrize(
    "body",
    [
        {"model": "mine", "prompt": "p"},
        {"prompt": 'the "model": "mine" is', "model": "mine"},
        {"messages": [{"role": "model", "content": "x"}], "model": "mine"},
        {"tools": [{"model": "nested"}], "model": "mine"},
        {"model": "mine", "tools": [{"model": "theirs"}]},
        {"model": 'with "quotes" \\ and é'},
        {'x"model': "y", "model": "mine"},
        {"model": "theirs"},
    ],
)
def test_the_model_is_renamed_and_nothing_else(body: dict[str, Any], filling: str) -> None:
    whole = {"filling": filling} | body | {"more": filling}
    sent = question(whole, Engine("tiny", model="theirs"))
    assert json.loads(sent.body) == whole | {"model": "theirs"}


def test_bodies_stay_as_they_are_where_nothing_is_renamed() -> None:
    for body in (
        b'{ "model" : "theirs" }',
        b"no json",
        b"[1]",
        b"\xff",
        b"[" * 30_000,
        b'{"model": "theirs", "x": "' + b"y" * SMALL_BYTES + b'"}',
    ):
        assert question(body, Engine("tiny", model="theirs")).body == body
        assert question(body).body == body


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"[" * 100_000])
def test_for_an_engine_with_a_key_a_body_is_an_object(body: bytes) -> None:
    with pytest.raises(BadBodyError, match="no JSON object"):
        question(body, Engine("tiny", key="secret"))


def test_no_trick_hides_another_model_from_an_engine_with_a_key() -> None:
    for body in (
        b'{"model": "a", "model": "b"}',
        b'{"\\u006dodel": "b"}',
        b'{"x": "' + b"y" * SMALL_BYTES + b'", "\\u006dodel": "b"}',
    ):
        sent = question(body, Engine("tiny", key="secret", model="allowed"))
        assert json.loads(sent.body)["model"] == "allowed"
        assert b'"b"' not in sent.body


@pytest.mark.parametrize("filling", ["", LONG])
def test_streams_are_recognised(filling: str) -> None:
    assert question({"messages": filling, "stream": True}).is_stream
    assert question({"stream": True, "messages": filling}).is_stream
    assert not question({"messages": filling, "stream": False}).is_stream
    assert not question({"messages": filling + '"stream": true'}).is_stream


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"echo": True, "logprobs": 1, "max_tokens": 1}, True),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, True),
        ({"logprobs": True, "top_logprobs": 5, "max_tokens": 1}, True),
        ({"prompt_logprobs": 1, "max_completion_tokens": 1}, True),
        ({"logprobs": 0, "max_tokens": 1}, True),
        ({"logprobs": None, "echo": False, "max_tokens": 1}, False),
        ({"logprobs": 1, "max_tokens": 16}, False),
        ({"max_tokens": 1}, False),
        ({"echo": True, "max_tokens": True}, False),
    ],
)
def test_log_likelihoods_are_recognised(body: dict[str, Any], expected: bool) -> None:
    assert question(body).is_log_likelihood is expected
    assert question(body | {"prompt": LONG}).is_log_likelihood is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [({"temperature": 0}, True), ({"temperature": 0.0}, True), ({"seed": 0}, True), ({"top_k": 1}, True)]
    + [
        (body, False)
        for body in ({}, {"temperature": 0.1}, {"seed": None}, {"seed": True}, {"top_k": 2}, {"temperature": None})
    ],
)
def test_what_an_engine_would_answer_alike_is_recognised(body: dict[str, Any], expected: bool) -> None:
    assert question(body).is_repeatable is expected


@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), max_size=5),
    st.text(),
)
def test_any_object_keeps_its_meaning(fields: dict[str, Any], name: str) -> None:
    fields = {"model": "mine"} | fields
    renamed = question(fields, Engine("tiny", model=name))
    assert json.loads(renamed.body) == (fields | {"model": name} if name else fields)
    shuffled = dict(reversed(fields.items()))
    assert question(shuffled, Engine("tiny", model=name)).key == renamed.key


def test_questions_are_told_from_what_is_asked_beside_them() -> None:
    assert is_question(b"POST", "/v1/chat/completions")
    assert not is_question(b"GET", "/v1/chat/completions")
    assert not is_question(b"POST", "/v1/models")
    assert is_passed(b"GET", "/v1/models")
    assert is_passed(b"HEAD", "/health")
    assert is_passed(b"GET", "/v1/models/tiny")
    assert not is_passed(b"POST", "/v1/models/tiny")
    assert not is_passed(b"POST", "/health")
