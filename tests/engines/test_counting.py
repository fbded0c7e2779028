"""What answers say of themselves."""

import json
from typing import Any

import pytest

from evalrpc.engines.gateway.counting import Facts, UnusableAnswerError, read_answer, read_stream

USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


def choice(finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant"} | message}


def response(status: str, *output: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    details = {"reason": reason} if reason else None
    usage = {"input_tokens": 3, "output_tokens": 2}
    return {
        "object": "response",
        "status": status,
        "error": None,
        "incomplete_details": details,
        "output": list(output),
        "usage": usage,
    }


TEXT = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
NO_TEXT = {"type": "message", "content": [{"type": "output_text", "text": ""}]}


@pytest.mark.parametrize(
    ("document", "facts"),
    [
        ({"choices": [choice(content="hi")]} | USAGE, Facts(False, False, 3, 2)),
        ({"choices": [choice("length", content="hi")]} | USAGE, Facts(True, False, 3, 2)),
        ({"choices": [choice("length", content=None, reasoning_content="hm")]}, Facts(True, True)),
        ({"choices": [choice(content="")]}, Facts(False, True)),
        ({"choices": [choice(content=None, tool_calls=[{"id": "x"}])]}, Facts()),
        ({"choices": [choice(content=None, refusal="no")]}, Facts()),
        ({"choices": [choice(content="hi"), choice("length", content="")]}, Facts(True, True)),
        ({"choices": [{"text": "hi", "finish_reason": "length"}]} | USAGE, Facts(True, False, 3, 2)),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, Facts(False, True)),
        ({"object": "list", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 3}}, Facts(False, False, 3, 0)),
        (response("completed", TEXT), Facts(False, False, 3, 2)),
        (response("completed", NO_TEXT), Facts(False, True, 3, 2)),
        (response("completed", {"type": "function_call", "name": "f"}), Facts(False, False, 3, 2)),
        (response("incomplete", {"type": "reasoning", "summary": []}, reason="max_output_tokens"), Facts(True, True, 3, 2)),
        ({"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "max_tokens"}, Facts(True, False)),
        ({"type": "message", "content": [], "stop_reason": "end_turn"}, Facts(False, True)),
        ({"type": "message", "content": [{"type": "tool_use"}], "stop_reason": "tool_use"}, Facts()),
        ({"choices": "nonsense", "usage": ["nonsense"]}, Facts()),
        ({"choices": [None, 3], "usage": {"prompt_tokens": -1, "completion_tokens": 1e9}}, Facts()),
        ({}, Facts()),
    ],
)
def test_an_answer_is_counted(document: dict[str, Any], facts: Facts) -> None:
    assert read_answer(json.dumps(document).encode()) == facts


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"error": {"message": "x"}}',
        b'{"error": "x"}',
        b'{"type": "error"}',
    ],
)
def test_what_is_no_answer_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(UnusableAnswerError):
        read_answer(body)


def events(*documents: dict[str, Any] | str, end: str = "\n\n") -> bytes:
    texts = (document if isinstance(document, str) else json.dumps(document) for document in documents)
    return "".join(f"event: x{end[: len(end) // 2]}data: {text}{end}" for text in texts).encode()


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize(
    ("documents", "facts"),
    [
        (
            [delta(role="assistant"), delta(content="hi"), delta("stop"), {"choices": []} | USAGE, "[DONE]"],
            Facts(False, False, 3, 2),
        ),
        ([delta(content="hi"), delta("length"), "[DONE]"], Facts(True, False)),
        ([delta(content=""), delta("stop"), "[DONE]"], Facts(False, True)),
        ([delta(tool_calls=[{"index": 0}]), delta("tool_calls"), "[DONE]"], Facts()),
        (
            [
                {"type": "response.output_text.delta", "delta": "hi"},
                {"type": "response.completed", "response": response("completed", TEXT)},
            ],
            Facts(False, False, 3, 2),
        ),
        (
            [
                {"type": "response.output_text.delta", "delta": "hi"},
                {"type": "response.incomplete", "response": response("incomplete", TEXT, reason="max_output_tokens")},
            ],
            Facts(True, False, 3, 2),
        ),
        (
            [
                {"type": "message_start", "message": {"type": "message", "content": [], "usage": {"input_tokens": 3}}},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
                {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 2}},
                {"type": "message_stop"},
            ],
            Facts(True, False, 3, 2),
        ),
    ],
)
def test_a_stream_is_counted(documents: list[dict[str, Any] | str], facts: Facts, end: str) -> None:
    assert read_stream(events(*documents, end=end)) == facts


@pytest.mark.parametrize(
    "body",
    [
        b"",
        events(delta(content="hi")),
        events(delta(content="hi"), {"error": {"message": "x"}}, "[DONE]"),
        events({"type": "response.failed"}, "[DONE]"),
        events("nonsense", "[DONE]"),
        events("[DONE]")[:-6],
    ],
)
def test_a_stream_without_a_good_end_is_said_to_have_none(body: bytes) -> None:
    with pytest.raises(UnusableAnswerError):
        read_stream(body)
