"""Asks an engine that has just loaded its model, before a job relies on its answers.

An engine may say that it is healthy and still be unable to answer, or ignore what it is asked for: where it leaves out the
log-probabilities of a prompt, every task that compares them scores by chance, and no error tells.
"""

import http.client
import json
from collections.abc import Mapping
from typing import Any, Final

from evalrpc.config.engines import CHAT, COMPLETIONS, LOG_PROBABILITIES
from evalrpc.engines.definition import HOST, EngineDefinition
from evalrpc.v1.jobs_pb2 import ServedModel

_TIMEOUT_SECONDS: Final = 300.0  # the first answer may compile
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_SHOWN: Final = 300
_TEXT: Final = "The capital of France is"


class _ProblemError(Exception):
    """Why an engine can't be used."""


def probe(port: int, definition: EngineDefinition, served: ServedModel) -> str:
    """Return what the engine lacks of what the operator says that it has; nothing if it has all of it. Blocks."""
    name, api = definition.asked_name(served), definition.settings.api
    try:
        if CHAT in api:
            message = {"role": "user", "content": _TEXT}
            _require_choice(
                _ask(port, "/v1/chat/completions", {"model": name, "messages": [message], "max_tokens": 4}), "message"
            )
        if COMPLETIONS in api:
            _require_choice(_ask(port, "/v1/completions", {"model": name, "prompt": _TEXT, "max_tokens": 4}), "text")
        if LOG_PROBABILITIES in api:
            _require_log_probabilities(port, name)
    except _ProblemError as problem:
        return str(problem)
    return ""


def _require_log_probabilities(port: int, name: str) -> None:
    body = {"model": name, "prompt": _TEXT, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    choice = _require_choice(_ask(port, "/v1/completions", body), "text")
    values = (choice.get("logprobs") or {}).get("token_logprobs") if isinstance(choice.get("logprobs"), dict) else None
    if not isinstance(values, list) or not any(isinstance(value, int | float) for value in values[1:]):
        raise _ProblemError(
            "it leaves out the log-probabilities of a prompt (`echo` with `logprobs`), so tasks that compare likelihoods would "
            f"score by chance: take {LOG_PROBABILITIES} out of its `api`, or another engine"
        )


def _ask(port: int, path: str, body: Mapping[str, object]) -> Any:
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read(_MAX_ANSWER_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise _ProblemError(f"it does not answer {path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _ProblemError(f"it answers {path} with {response.status}: {text[:_SHOWN]}")
    try:
        return json.loads(text)
    except ValueError as error:
        raise _ProblemError(f"its answer to {path} is no JSON: {text[:_SHOWN]}") from error


def _require_choice(answer: Any, field: str) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict) or field not in choices[0]:
        raise _ProblemError(f"its answer has no {field}: {json.dumps(answer)[:_SHOWN]}")
    return choices[0]
