"""What an answer of OpenAI's API says of itself: whether it was cut off, whether it is empty, how many tokens it took."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

_TOOL_FIELDS: Final = ("tool_calls", "function_call", "refusal", "audio")
"""What a message of a chat may have instead of text."""

_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "message_stop"})
"""The types of the events that end a stream which has no `[DONE]`."""


class Facts(NamedTuple):
    """What is counted of one answer. With several choices it is truncated, or empty, if one of them is."""

    truncated: bool = False
    empty: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class UnusableAnswerError(ValueError):
    """An answer with the status 200 that is none: no JSON, or an error."""


def read_answer(body: bytes) -> Facts:
    """Return the facts of a whole answer. Raises UnusableAnswerError."""
    return _facts(_parsed(body))


def read_stream(body: bytes) -> Facts:
    """Return the facts of a whole stream of server-sent events. Raises UnusableAnswerError, also if its end is missing."""
    texts = list(_data_of_events(body))
    events = [_parsed(text) for text in texts if text != b"[DONE]"]
    if b"[DONE]" not in texts and not any(event.get("type") in _LAST_EVENTS for event in events):
        raise UnusableAnswerError("the stream has no end")
    parts = [_facts(_unwrapped(event)) for event in events]
    return Facts(
        truncated=any(part.truncated for part in parts),
        empty=bool(parts) and not any(_has_text(event) for event in events),
        prompt_tokens=max((part.prompt_tokens for part in parts), default=0),
        completion_tokens=max((part.completion_tokens for part in parts), default=0),
    )


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswerError(f"the answer is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise UnusableAnswerError("the answer is no JSON object")
    if document.get("error") or document.get("type") in ("error", "response.failed"):
        raise UnusableAnswerError("the answer is an error")
    return document


def _facts(document: dict[str, Any]) -> Facts:
    choices = _objects(document.get("choices"))
    usage = _object(document.get("usage"))
    return Facts(
        truncated=any(choice.get("finish_reason") == "length" for choice in choices)
        or document.get("stop_reason", _object(document.get("delta")).get("stop_reason")) == "max_tokens"
        or _object(document.get("incomplete_details")).get("reason") == "max_output_tokens",
        empty=any(not _choice_has_text(choice) for choice in choices)
        or (_is_listed(document) and not any(_item_has_text(item) for item in _items(document))),
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
    )


def _unwrapped(event: dict[str, Any]) -> dict[str, Any]:
    """Return the object of an event that has the fields of an answer: `response` and `message` wrap theirs."""
    return _object(event.get("response")) or _object(event.get("message")) or event


def _has_text(event: dict[str, Any]) -> bool:
    choices = _objects(event.get("choices"))
    if choices:
        return any(_choice_has_text(choice) for choice in choices)
    delta = event.get("delta")  # a text in `/responses`, an object in `/messages`
    return bool(delta) if isinstance(delta, str) else any(_object(delta).get(name) for name in ("text", "partial_json"))


def _choice_has_text(choice: dict[str, Any]) -> bool:
    message = _object(choice.get("message") or choice.get("delta"))
    return bool(choice.get("text") or message.get("content") or any(message.get(name) for name in _TOOL_FIELDS))


def _is_listed(document: dict[str, Any]) -> bool:
    """Return whether an answer lists its parts, as those of `/responses` and `/messages` do."""
    return isinstance(document.get("output"), list) or (document.get("type") == "message" and "content" in document)


def _items(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in _objects(document.get("output")) or _objects(document.get("content")):
        parts = _objects(item.get("content"))
        yield from parts or [item]


def _item_has_text(item: dict[str, Any]) -> bool:
    kind = str(item.get("type", ""))
    return bool(item.get("text") or item.get("refusal")) or kind.endswith(("_call", "tool_use"))


def _data_of_events(body: bytes) -> Iterator[bytes]:
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def _count(usage: dict[str, Any], *names: str) -> int:
    counts: Iterable[Any] = (usage.get(name) for name in names)
    return next((count for count in counts if type(count) is int and count >= 0), 0)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
