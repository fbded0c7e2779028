"""Arguments as one text, `k=v,k2=v2`, as lmms-eval reads it. Pure."""

import json
from collections.abc import Iterator
from typing import Any


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse `k=v,k2=v2` as lmms-eval does, or a JSON object, for values that this notation lacks.

    In the notation, `true` and `false` in any case are booleans, and what looks like a number is one. Everything else is text
    as it stands: `None`, a list such as `[1,2]` and quotes, too, which the harness may read further. A comma inside quotes,
    brackets or braces does not split, and only the first `=` separates.

    Raises ValueError that says what is wrong.
    """
    if text.lstrip().startswith("{"):
        return _parse_object(text)
    return dict(_parse_pair(part) for part in _split(text.strip()))


def parse_value(text: str) -> Any:
    """Read a value of this notation. Raises ValueError for one of numeric characters that are no digits."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.isnumeric():
        return int(text)  # not of every numeric character: lmms-eval can't read a superscript either
    try:
        return float(text)
    except ValueError:
        return text


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
    try:
        return key, parse_value(value)
    except ValueError:
        raise ValueError(f"`{pair}`: the value is neither text nor a number") from None


def _split(text: str) -> Iterator[str]:
    """Split at the commas outside quotes, brackets and braces, and drop empty parts. A backslash escapes a quote."""
    part, depth, quote, previous = "", 0, "", ""
    for character in text:
        if character in "\"'" and previous != "\\":
            if not quote:
                quote = character
            elif quote == character:
                quote = ""
        elif not quote:
            depth += (character in "{[") - (character in "}]")
            if character == "," and depth == 0:
                yield from _stripped(part)
                part, previous = "", character
                continue
        part, previous = part + character, character
    yield from _stripped(part)


def _stripped(part: str) -> Iterator[str]:
    if part.strip():
        yield part.strip()
