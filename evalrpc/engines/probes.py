"""Asks an engine that has just loaded its model, before a job relies on its answers.

An engine may say that it is healthy and still be unable to answer, or ignore what it is asked for: where it leaves out the
log-probabilities of a prompt, every task that compares them scores by chance, and no error tells. What makes answers worthless
is a problem, with which no job uses the engine. What may be as somebody wants it, or the model's own fault, is a warning.
"""

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalrpc.config.engines import CHAT, COMPLETIONS, LOG_PROBABILITIES
from evalrpc.engines.chat_template import CHAT as MESSAGES
from evalrpc.engines.chat_template import rendered_chat
from evalrpc.engines.definition import HOST, EngineDefinition
from evalrpc.files.regular import read_named_file
from evalrpc.v1.jobs_pb2 import ServedModel

_TIMEOUT_SECONDS: Final = 300.0  # the first answer may compile
_WRONG_NAME: Final = "no-such-model/of/evalrpc"
"""A name that no repository can have, so that nobody looks for it on a hub."""

_WRONG_NAME_SECONDS: Final = 20.0
_AT_ONCE: Final = 4
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_SHOWN: Final = 300
_SHOWN_OF_ANSWERS: Final = 40
_TEXT: Final = MESSAGES[0]["content"]
_GREEDY_TOKENS: Final = 16
_EXCESS_TOKENS: Final = 100
_MAX_PROBED_TOKENS: Final = 32_768
"""Of a model with a longer context that is not asked: an engine that refuses nothing would work on it for long."""

_PATHS: Final = {CHAT: "/v1/chat/completions", COMPLETIONS: "/v1/completions"}


class Findings(NamedTuple):
    """What became of the questions."""

    problem: str = ""
    """Why no job can use the engine; empty: they can."""
    warnings: tuple[str, ...] = ()
    """What those should know who use it."""


class _ProblemError(Exception):
    """Why an engine can't be used."""


def probe(port: int, definition: EngineDefinition, served: ServedModel) -> Findings:
    """Ask the engine for all that the operator says that it has. Blocks."""
    name, api = definition.asked_name(served), definition.settings.api
    kinds = [kind for kind in (CHAT, COMPLETIONS) if kind in api]
    try:
        answers = [_greedy_answer(port, name, kind) for kind in kinds]
        if LOG_PROBABILITIES in api:
            _require_log_probabilities(port, name)
        return Findings(warnings=tuple(_warnings(port, name, kinds, answers[0], definition.folder(served))))
    except _ProblemError as problem:
        return Findings(str(problem))


def _warnings(port: int, name: str, kinds: Sequence[str], first: Any, folder: Path | None) -> Iterator[str]:
    """Yield what else there is to say. `first`: the answer to the first kind of question. `folder`: that of the model."""
    again = _greedy_answer(port, name, kinds[0])
    at_once = _answers_at_once(port, name, kinds[0])
    yield from _of_greedy_answers(_text_of(first, kinds[0]), _text_of(again, kinds[0]), at_once)
    yield from _of_name(name, first)
    yield from _of_wrong_name(port, kinds[0])
    if CHAT in kinds and COMPLETIONS in kinds and folder is not None:
        yield from _of_chat_template(port, name, folder, _prompt_tokens(first))
    yield from _of_context_length(port, name, kinds[0], folder)


def _greedy_answer(port: int, name: str, kind: str) -> Any:
    answer = _ask(port, _PATHS[kind], _question(kind, name))
    _text_of(answer, kind)
    return answer


def _answers_at_once(port: int, name: str, kind: str) -> set[str]:
    """Return the answers to the same question asked several times at once, as harnesses ask."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda _: _greedy_answer(port, name, kind), range(_AT_ONCE)))
    return {_text_of(answer, kind) for answer in answers}


def _of_greedy_answers(first: str, second: str, at_once: Set[str]) -> Iterator[str]:
    if first != second:
        yield f"it gave two answers to the same greedy question ({_quoted(first, second)}): results may differ between runs"
    elif others := at_once - {first}:
        yield (
            f"it gave other answers to a greedy question when that was asked {_AT_ONCE} times at once "
            f"({_quoted(first, min(others))}): results may depend on what it is asked beside it"
        )
    elif not first:
        yield "its greedy answer to a simple question is empty"


def _of_name(name: str, answer: Any) -> Iterator[str]:
    """Compare the name of the model that answered, if there is one: some add a revision, or leave out a folder."""
    answered = answer.get("model")
    if isinstance(answered, str) and answered and name not in answered and answered not in name:
        yield f"it was asked for the model {name}, and says that {answered[:_SHOWN]} has answered"


def _quoted(*answers: str) -> str:
    return ", ".join(repr(answer[:_SHOWN_OF_ANSWERS]) for answer in answers)


def _of_wrong_name(port: int, kind: str) -> Iterator[str]:
    """Ask for a model that nobody has, which has to be refused. One that does not answer, such as since it looks for the model
    elsewhere, is not waited for."""
    status, _ = _exchange(port, "POST", _PATHS[kind], _question(kind, _WRONG_NAME) | {"max_tokens": 1}, _WRONG_NAME_SECONDS)
    if status == http.client.OK:
        yield "it answers for any name of a model: nothing but its command line says which one has answered"


def _of_chat_template(port: int, name: str, folder: Path, chat_tokens: int | None) -> Iterator[str]:
    """Compare how long a chat is with how long it is as the model's own template renders it. One token more or less is the one
    that marks the beginning, which templates and tokenizers both add."""
    text = rendered_chat(folder)
    if not text or chat_tokens is None:
        return
    answer = _ask(port, _PATHS[COMPLETIONS], {"model": name, "prompt": text, "max_tokens": 1, "temperature": 0})
    own_tokens = _prompt_tokens(answer)
    if own_tokens is not None and abs(own_tokens - chat_tokens) > 1:
        yield (
            f"it renders chats by another template than the model's folder has: a question has {chat_tokens} tokens, and "
            f"{own_tokens} by the latter"
        )


def _of_context_length(port: int, name: str, kind: str, folder: Path | None) -> Iterator[str]:
    """Ask a question that is longer than the model can read, which has to be refused."""
    limit = _context_tokens(port, folder)
    if limit is None or limit > _MAX_PROBED_TOKENS:
        return
    text = "a " * (limit + _EXCESS_TOKENS)
    body = _question(kind, name, text) | {"max_tokens": 1}
    status, answer = _exchange(port, "POST", _PATHS[kind], body)
    if status != http.client.OK:
        return
    with suppress(ValueError):
        tokens = _prompt_tokens(json.loads(answer))
        if tokens is None or tokens > limit:
            yield (
                f"it answers questions that are longer than the {limit} tokens which the model can read, where others refuse "
                "them: see that those of the tasks are shorter"
            )


def _context_tokens(port: int, folder: Path | None) -> int | None:
    """Return how many tokens the model can read, as the engine or the model's folder says; None: neither does."""
    status, text = _exchange(port, "GET", "/v1/models", None)
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        told = json.loads(text)["data"][0].get("max_model_len") if status == http.client.OK else None
        if type(told) is int and told > 0:
            return told
    if folder is None:
        return None
    with suppress(OSError, ValueError, AttributeError):
        config = json.loads(read_named_file(folder / "config.json"))
        found = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
        return found if type(found) is int and found > 0 else None
    return None


def _require_log_probabilities(port: int, name: str) -> None:
    body = {"model": name, "prompt": _TEXT, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    choice = _require_choice(_ask(port, _PATHS[COMPLETIONS], body), "text")
    values = (choice.get("logprobs") or {}).get("token_logprobs") if isinstance(choice.get("logprobs"), dict) else None
    if not isinstance(values, list) or not any(isinstance(value, int | float) for value in values[1:]):
        raise _ProblemError(
            "it leaves out the log-probabilities of a prompt (`echo` with `logprobs`), so tasks that compare likelihoods would "
            f"score by chance: take {LOG_PROBABILITIES} out of its `api`, or another engine"
        )


def _question(kind: str, name: str, text: str = _TEXT) -> dict[str, object]:
    """Return the body of a greedy question."""
    asked = {"messages": [{"role": "user", "content": text}]} if kind == CHAT else {"prompt": text}
    return {"model": name, **asked, "max_tokens": _GREEDY_TOKENS, "temperature": 0}


def _ask(port: int, path: str, body: Mapping[str, object]) -> Any:
    status, text = _exchange(port, "POST", path, body)
    if status == 0:
        raise _ProblemError(f"it does not answer {path}: {text}")
    if status != http.client.OK:
        raise _ProblemError(f"it answers {path} with {status}: {text[:_SHOWN]}")
    try:
        return json.loads(text)
    except ValueError as error:
        raise _ProblemError(f"its answer to {path} is no JSON: {text[:_SHOWN]}") from error


def _exchange(
    port: int, method: str, path: str, body: Mapping[str, object] | None, seconds: float = _TIMEOUT_SECONDS
) -> tuple[int, str]:
    """Return the status and the text of an answer; 0 and why, if there is none."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        return response.status, response.read(_MAX_ANSWER_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    finally:
        connection.close()


def _text_of(answer: Any, kind: str) -> str:
    """Return what the model says, its reasoning included. Raises _ProblemError if that has no place in the answer."""
    if kind == COMPLETIONS:
        return str(_require_choice(answer, "text").get("text") or "")
    message = _require_choice(answer, "message").get("message")
    said = message if isinstance(message, dict) else {}
    return "".join(str(said.get(part) or "") for part in ("reasoning_content", "reasoning", "content"))


def _prompt_tokens(answer: Any) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and tokens > 0 else None


def _require_choice(answer: Any, field: str) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict) or field not in choices[0]:
        raise _ProblemError(f"its answer has no {field}: {json.dumps(answer)[:_SHOWN]}")
    return choices[0]
