"""What a request asks: which paths pass, which of them are questions to the model, and the key of a question."""

import hashlib
import json
import re
from typing import Any, Final
from urllib.parse import unquote

from evalrpc.engines.gateway.contract import Engine

SMALL_BYTES: Final = 64 << 10
"""Bodies below this are parsed, and have a canonical key. Of larger ones, such as those with images, the bytes count."""

_QUESTIONS: Final = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"),
        *("/v1/rerank", "/v1/score", "/rerank", "/score", "/classify", "/pooling"),
    }
)
"""POST to these asks the model. They are counted and recorded."""

_ASKED_BESIDE: Final = frozenset(
    {
        *((b"GET", path) for path in ("/v1/models", "/health", "/ping", "/version", "/props", "/tokenizer_info", "/metrics")),
        *((b"GET", path) for path in ("/get_model_info", "/model_info", "/server_info", "/get_server_info")),
        *((b"POST", path) for path in ("/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens")),
        *((b"POST", path) for path in ("/v1/responses/input_tokens", "/v1/chat/completions/render")),
    }
)
"""What harnesses ask beside the model. All else is refused: engines have calls that change them for others, vendors such that
list and delete what belongs to the account."""

_CHATS: Final = "/v1/chat/completions"
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_END_BYTES: Final = 4096
_PART: Final = re.compile(r"/t/([0-9]{1,6})(?=/)")
_MODEL: Final = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.)*)"')


class BadBodyError(ValueError):
    """The body of a request can't be sent to this engine."""


class Question:
    """A question to the model."""

    def __init__(self, target: str, body: bytes, engine: Engine, key_prefix: str, part: str = "") -> None:
        """Prepare a request for the engine, and give it its key. `part`: of what it is counted for. Raises BadBodyError."""
        self.part = part
        is_small = len(body) < SMALL_BYTES
        if is_small or engine.key:  # with a key, the operator decides which model is asked, so no trick may hide another one
            self._fields = _parsed(body)
            self.body = _for_engine(body, self._fields, engine)
        else:
            self._fields = None
            self.body = _renamed(body, engine.model)
        digested = _canonical(self._fields) if is_small and self._fields is not None else self.body
        self._target = target
        self._digest = hashlib.sha256(digested).digest()
        self.key = self.key_with(key_prefix)

    def key_with(self, key_prefix: str) -> bytes:
        """Return what the question is recorded by where answers depend on this besides."""
        return hashlib.sha256(f"{key_prefix}\0{self._target}\0".encode() + self._digest).digest()[:20]

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to come piece by piece.

        Of a large body this is known if it stands near one of the ends, where it does. Elsewhere it goes unnoticed, so that the
        client gets all pieces at once.
        """
        if self._fields is not None:
            return self._fields.get("stream") is True
        return b'"stream"' in _ends(self.body) and self._field("stream") is True

    @property
    def is_log_likelihood(self) -> bool:
        """Whether it asks how likely a text is, rather than for one: its answer always ends at the limit of tokens."""
        wanted = (self._field(name) for name in ("echo", "logprobs", "prompt_logprobs"))
        wants = any(value is not None and value is not False for value in wanted)
        limits = (self._field("max_tokens"), self._field("max_completion_tokens"))
        return wants and any(type(limit) is int and limit <= 1 for limit in limits)

    @property
    def is_repeatable(self) -> bool:
        """Whether the engine would answer the same again: greedily, or with a seed."""
        return self._field("temperature") == 0 or type(self._field("seed")) is int or self._field("top_k") == 1

    def _field(self, name: str) -> Any:
        """Return a field of the body. A large one is parsed each time, as that is rare, rather than kept twice."""
        fields = self._fields if self._fields is not None else _parsed(self.body)
        return (fields or {}).get(name)


def part_of(target: str) -> tuple[str, str]:
    """Return the part of the route that a target belongs to, and what is below it; empty: to none."""
    found = _PART.match(target)
    return (found[1], target[found.end(1) :]) if found else ("", target)


def meant(target: str) -> str:
    """Return what a client asks for that takes the address of chats for that of `/v1`, as some tasks of harnesses do."""
    twice = f"{_CHATS}/chat/completions"
    return _CHATS + target.removeprefix(twice) if target.startswith(twice) else target


def is_question(method: bytes, path: str) -> bool:
    """Return whether a request asks the model."""
    return method == b"POST" and path in _QUESTIONS


def is_passed(method: bytes, path: str) -> bool:
    """Return whether a request that asks something else is passed on."""
    return (b"GET" if method == b"HEAD" else method, path) in _ASKED_BESIDE or (
        method in (b"GET", b"HEAD") and path.startswith("/v1/models/") and ".." not in unquote(unquote(path))
    )


def _parsed(body: bytes) -> dict[str, Any] | None:
    """Return the object that a body is; None: it is none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _for_engine(body: bytes, fields: dict[str, Any] | None, engine: Engine) -> bytes:
    """Return the body with the engine's name for the model, which `fields` gets too."""
    if fields is None:
        if engine.key:
            raise BadBodyError("the body is no JSON object")
        return body  # the engine says what is wrong with it
    if not engine.key and engine.model in ("", fields.get("model")):
        return body
    if engine.model:
        fields["model"] = engine.model
    return json.dumps(fields).encode()


def _renamed(body: bytes, model: str) -> bytes:
    """Return a large body with the engine's name for the model, without parsing it where that is possible.

    Within a string of JSON each quote has a backslash before it. So the bytes `"model"` are always a whole string, and if they
    occur once, before a colon, they are the one field that every request has. Where the name is the right one near an end, the
    rest is not searched: an engine refuses any other name.
    """
    name = json.dumps(model).encode()[1:-1]
    if not model or any(found[1] == name for found in _MODEL.finditer(_ends(body))):
        return body
    place = body.find(b'"model"')
    found = _MODEL.match(body, place) if place > 0 and body[place - 1] != ord("\\") else None
    if found is None or body.find(b'"model"', place + 1) >= 0:
        fields = _parsed(body)
        return body if fields is None or fields.get("model") == model else json.dumps(fields | {"model": model}).encode()
    return body[: found.start(1)] + name + body[found.end(1) :]


def _ends(body: bytes) -> bytes:
    """Return the ends of a large body, where all that is short is: what is long is a list of messages."""
    return body[:_END_BYTES] + b"\n" + body[-_END_BYTES:]


def _canonical(fields: dict[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode()
