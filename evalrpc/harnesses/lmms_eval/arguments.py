"""Model and generation arguments in lmms-eval's own notation, `key=value,key=value`.

lmms-eval's parser decides what a value may be. It reads any text that looks like a number or boolean as one, splits arguments
at every comma outside quotes and brackets, keeps the quotes, and has neither escapes nor null. So some values have no text from
which the parser reads them back; `violations` reports those. Lists and structs are passed as JSON text, which is lmms-eval's
own convention: the model class parses it.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import FieldViolation
from evalrpc.harnesses import arguments
from evalrpc.harnesses.arguments import number_text, plain_arguments


def violations(field: str, struct: Struct, nested: bool) -> Iterator[FieldViolation]:
    """Yield every argument that lmms-eval's parser would not read back unchanged. `nested` allows lists and structs."""
    return arguments.violations(field, struct, partial(_problem, nested=nested))


def _problem(value: Any, nested: bool) -> str | None:
    """Say why lmms-eval would not read the value back unchanged; None if it would."""
    if value is None:
        return "lmms-eval has no null: leave the argument out"
    if isinstance(value, str):
        return _text_problem(value)
    if isinstance(value, list | dict) and not nested:
        return "lmms-eval takes texts, numbers and booleans here"
    return None


def _text_problem(text: str) -> str | None:
    if reads_as_other(text):
        return "lmms-eval would read this text as a number or boolean: give it as one"
    if text != text.rstrip():
        return "lmms-eval would drop the blanks at the end of the text"
    if not is_one_argument(text):
        return "lmms-eval can't take a text with a comma outside quotes or brackets, or with an unclosed quote or bracket"
    return None


def reads_as_other(text: str) -> bool:
    """Return whether lmms-eval would take a text for a number or a boolean."""
    if text.lower() in ("true", "false") or text.isnumeric():
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_one_argument(text: str) -> bool:
    """Follow lmms-eval's parser: a comma splits arguments unless it is in quotes or brackets."""
    depth, quote = 0, ""
    for previous, character in pairwise("=" + text):
        if character in "\"'" and previous != "\\" and quote in ("", character):
            quote = "" if quote else character
        elif quote:
            continue
        elif character == "," and depth == 0:
            return False
        else:
            depth += (character in "{[") - (character in "}]")
    return not quote and depth == 0


def argument_string(struct: Struct) -> str:
    """Format `key=value,key=value`, from which lmms-eval's parser reads the same values."""
    return ",".join(f"{key}={_argument_text(value)}" for key, value in plain_arguments(struct).items())


def _argument_text(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return str(value)
        case int() | float():
            return number_text(value)
        case _:
            return _json(value)


def _json(value: Any) -> str:
    """Format JSON in which every quote that the parser counts opens or closes a string. The parser treats a backslash before a
    quote as an escape, whatever precedes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.replace("\\\\", "\\u005c").replace('\\"', "\\u0022")
