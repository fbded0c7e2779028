"""Model and generation arguments in lmms-eval's own notation, `key=value,key=value`.

lmms-eval's parser decides what a value may be. It reads numbers and booleans wherever a text looks like one, parts arguments
at every comma outside quotes and brackets, keeps the quotes, and knows neither escapes nor null. So not every value has a text
from which the parser reads it back; `violations` names those that have none. Lists and structs travel as JSON text, which is
lmms-eval's own convention: the model class parses it.
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.errors import FieldViolation
from evalrpc.harnesses.failures import shorten

_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LARGEST_EXACT_INTEGER: Final = 2**53


def violations(field: str, struct: Struct, nested: bool) -> Iterator[FieldViolation]:
    """Yield every argument that lmms-eval's parser would not read back as it is. `nested` allows lists and structs."""
    for key, value in sorted(struct.fields.items()):
        if not _ARGUMENT_NAME.fullmatch(key):
            yield FieldViolation(field, f"{shorten(repr(key))} is not the name of an argument: letters, digits and `_`")
        elif problem := _value_problem(value, nested):
            yield FieldViolation(f"{field}.{shorten(key)}", problem)


def _value_problem(value: Value, nested: bool) -> str | None:
    """Say why lmms-eval would not read the value back as it is."""
    plain = _plain(value)
    if plain is None:
        return "lmms-eval has no null: leave the argument out"
    if isinstance(plain, str):
        return _text_problem(plain)
    if isinstance(plain, list | dict) and not nested:
        return "lmms-eval takes texts, numbers and booleans here"
    return None if _is_finite(plain) else "a number must be finite"


def _text_problem(text: str) -> str | None:
    if _reads_as_other(text):
        return "lmms-eval would read this text as a number or boolean: give it as one"
    if text != text.rstrip():
        return "lmms-eval would drop the blanks at the end of the text"
    if not is_one_argument(text):
        return "lmms-eval can't take a text with a comma outside quotes or brackets, or with an unclosed quote or bracket"
    return None


def _reads_as_other(text: str) -> bool:
    if text.lower() in ("true", "false") or text.isnumeric():
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_one_argument(text: str) -> bool:
    """Follow lmms-eval's parser: a comma parts arguments unless it stands in quotes or brackets."""
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


def _is_finite(plain: object) -> bool:
    match plain:
        case float():
            return math.isfinite(plain)
        case list():
            return all(map(_is_finite, plain))
        case dict():
            return all(map(_is_finite, plain.values()))
        case _:
            return True


def argument_string(struct: Struct) -> str:
    """Write `key=value,key=value`, from which lmms-eval's parser reads the same values."""
    return ",".join(f"{key}={_argument_text(_plain(value))}" for key, value in sorted(struct.fields.items()))


def _argument_text(plain: Any) -> str:
    match plain:
        case str():
            return plain
        case bool():
            return str(plain)
        case int() | float():
            return number_text(plain)
        case _:
            return _json(plain)


def number_text(number: float) -> str:
    """Write a number, and a whole one as an integer."""
    integral = math.isfinite(number) and float(number).is_integer() and abs(number) < _LARGEST_EXACT_INTEGER
    return str(int(number)) if integral else repr(number)


def _json(plain: Any) -> str:
    """Write JSON in which every quote that the parser counts opens or closes a string: it takes a backslash before a quote for
    an escape, whatever stands before."""
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.replace("\\\\", "\\u005c").replace('\\"', "\\u0022")


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return {key: _plain(item) for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < _LARGEST_EXACT_INTEGER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
