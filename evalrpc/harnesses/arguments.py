"""Converts a request's arguments, which are Structs, to Python values and to text that a harness's parser reads back."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.errors import FieldViolation
from evalrpc.harnesses.failures import shorten

_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LARGEST_EXACT_INTEGER: Final = 2**53


def violations(field: str, struct: Struct, problem: Callable[[Any], str | None] = lambda _: None) -> Iterator[FieldViolation]:
    """Yield every argument with an invalid name, or with a plain value that `problem` rejects."""
    for key, value in sorted(struct.fields.items()):
        if not _ARGUMENT_NAME.fullmatch(key):
            yield FieldViolation(field, f"{shorten(repr(key))} is not the name of an argument: letters, digits and `_`")
        elif description := problem(plain(value)):
            yield FieldViolation(f"{field}.{shorten(key)}", description)


def plain_arguments(struct: Struct) -> dict[str, Any]:
    """Return the arguments by name, sorted."""
    return {key: plain(value) for key, value in sorted(struct.fields.items())}


def plain(value: Value) -> Any:
    """Return a value as a Python object, a whole number as an int."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return {key: plain(item) for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < _LARGEST_EXACT_INTEGER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def number_text(number: float) -> str:
    """Format a number, a whole one as an integer."""
    integral = math.isfinite(number) and float(number).is_integer() and abs(number) < _LARGEST_EXACT_INTEGER
    return str(int(number)) if integral else repr(number)


def yaml_text(value: Any) -> str:
    """Format a plain value as single-line YAML in ASCII, so that no reader's locale matters."""
    match value:
        case str():
            return _yaml_string(value)
        case bool():
            return str(value).lower()
        case int() | float():
            return _yaml_number(value)
        case list():
            return f"[{', '.join(map(yaml_text, value))}]"
        case dict():
            # `?`, since YAML limits the length of keys without it.
            return f"{{{', '.join(f'? {_yaml_string(key)} : {yaml_text(item)}' for key, item in sorted(value.items()))}}}"
        case _:
            return "null"


def _yaml_string(text: str) -> str:
    safe = (
        character if " " <= character <= "~" and character not in '"\\' else f"\\U{ord(character):08X}" for character in text
    )
    return f'"{"".join(safe)}"'


def _yaml_number(number: float) -> str:
    """Format a number. YAML 1.1 reads an exponent without a dot as text, so a dot is added."""
    mantissa, exponent, power = number_text(number).partition("e")
    return f"{mantissa}.0e{power}" if exponent and "." not in mantissa else f"{mantissa}{exponent}{power}"
