"""Short notations: `k=v,k2=v2` for arguments, each value parsed as JSON if possible, else text; `task/metric`."""

import json
from collections.abc import Iterator
from typing import Any

from evalrpc.v1.results_pb2 import MetricSelector

_OPENING, _CLOSING = "[{", "]}"


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse a JSON object or `k=v,k2=v2`. Commas inside brackets, braces and double quotes do not split.

    Raises ValueError that says what is wrong.
    """
    if text.lstrip().startswith("{"):
        return _parse_object(text)
    return dict(_parse_pair(part) for part in _split(text) if part.strip())


def parse_metric(text: str) -> MetricSelector:
    """Parse TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix."""
    name, _, answer_filter = text.partition(",")
    task, _, metric = name.rpartition("/")
    return MetricSelector(task=task, metric=metric, filter=answer_filter)


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no valid JSON: {error}") from error
    return value


def _parse_pair(pair: str) -> tuple[str, Any]:
    key, separator, value = pair.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"`{pair}` is not of the form key=value")
    return key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _split(text: str) -> Iterator[str]:
    """Split at the commas outside brackets, braces and double quotes."""
    start, depth, quoted = 0, 0, False
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in _OPENING) - (character in _CLOSING)
            if character == "," and depth == 0:
                yield text[start:index]
                start = index + 1
    yield text[start:]
