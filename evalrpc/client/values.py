"""Plain Python values as the fields of the schema take them, and errors that name the argument.

labels               text; numbers, booleans, paths, dates, UUIDs and enums become text
model_args, ...      JSON values; also tuples, paths, dates, UUIDs, enums, NumPy's numbers and small arrays
every other argument what its field takes; also NumPy's numbers, enums and paths
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from enum import Enum
from reprlib import repr as shortened
from typing import Any, Final, TypeVar
from uuid import UUID

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from evalrpc.client.arguments import parse_arguments
from evalrpc.errors import UnsendableError
from evalrpc.v1.jobs_pb2 import ServedModel

MAX_ARRAY_VALUES: Final = 1000
"""The largest array that is sent as a list: arguments are for settings, not for data."""

_LARGEST_EXACT_INTEGER: Final = 2**53
_EXPECTED: Final = {
    FieldDescriptor.CPPTYPE_BOOL: "True or False",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_ENUM: "a value of its enum",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_STRING: "text",
}

MessageT = TypeVar("MessageT", bound=Message)


def build(message: type[MessageT], **fields: Any) -> MessageT:
    """Build a message from arguments with the names of its fields. Raises TypeError or ValueError that names the wrong one."""
    fields = {name: _plain(value) for name, value in fields.items()}
    try:
        return message(**fields)
    except (TypeError, ValueError):
        for name, value in fields.items():
            _require(message, name, value)
        raise


def texts(name: str, values: Iterable[str] | str) -> list[str]:
    """Return the texts of the argument `name`; a single one may stand for a list. Raises TypeError or ValueError that names
    what is none."""
    if isinstance(values, str):
        return [text(name, values)]
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of texts, not {_described(values)}")
    found = list(values)
    for index, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{index}] must be text, not {_described(value)}")
        text(f"{name}[{index}]", value)
    return found


def number(name: str, value: object) -> float:
    """Return the number of the argument `name`. Raises TypeError that names it."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {_described(value)}")
    return value


def whole_number(name: str, value: object) -> int:
    """Return the whole number of the argument `name`. Raises TypeError that names it."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {_described(value)}")
    return value


def labels(values: Mapping[str, object] | None) -> dict[str, str]:
    """Return labels as text: `True` is "true", a float has all its digits (500.0 is "500.0", and the int 500 is "500").

    Raises TypeError that names the key of anything else.
    """
    if not isinstance(values, Mapping | None):
        raise TypeError(f"labels must be a dict, not {_described(values)}")
    return {_key("labels", key): _label(f"labels[{key!r}]", value) for key, value in (values or {}).items()}


def arguments(name: str, values: Mapping[str, object] | str | None) -> Struct | None:
    """Return the argument `name`, a dict or a text for `parse_arguments`, as a Struct; None stays None.

    Raises TypeError or ValueError that names the key of what can't be sent, such as `model_args['vision']['p']`.
    """
    if isinstance(values, str):
        try:
            values = parse_arguments(values)
        except ValueError as error:
            raise UnsendableError(f"{name} {error}") from None
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict, or text such as 'a=1,b=x', not {_described(values)}")
    struct = Struct()
    try:
        struct.update(_json_value(name, values))
    except RecursionError:
        raise UnsendableError(f"{name} is nested too deep") from None
    return struct


def served_model(field: str, given: ServedModel | Mapping[str, Any] | None) -> ServedModel | None:
    """Return the argument `served_model` or `judge_model`, which may be a dict with the names of the message's fields; None
    stays None.

    Raises TypeError or ValueError that names the key of what can't be sent.
    """
    if given is None or isinstance(given, ServedModel):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{field} must be a ServedModel, or a dict, not {_described(given)}")
    known = ServedModel.DESCRIPTOR.fields_by_name
    for key in given:
        if key not in known:
            raise UnsendableError(f"{field} has no {shortened(key)}; it has: {', '.join(known)}")
    args = arguments(f"{field}.args", given.get("args"))
    try:
        return build(ServedModel, **{**given, "args": args})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{field}.{error}") from None


def _label(path: str, value: object) -> str:
    value = _plain(value)
    match value:
        case str():
            return text(path, value)
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case None:
            raise TypeError(f"{path}: None can't be a label; leave it out")
    raise TypeError(f"{path}: {_kind(value)} can't be a label; give text, a number or a boolean")


def _json_value(path: str, value: object) -> Any:
    value = _plain(value, path)
    match value:
        case None | bool():
            return value
        case str():
            return text(path, value)
        case int():
            return _integer(path, value)
        case float():
            if not math.isfinite(value):
                raise UnsendableError(f"{path}: {value} is no finite number; leave it out, or give it as text")
            return value
        case Mapping():
            return {_key(path, key): _json_value(f"{path}[{key!r}]", item) for key, item in value.items()}
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [_json_value(f"{path}[{index}]", item) for index, item in enumerate(value)]
        case set() | frozenset():
            raise TypeError(f"{path}: {_kind(value)} has no order; give a sorted list")
    raise TypeError(f"{path}: {_kind(value)} can't be sent; give text, a number, a boolean, None, a list or a dict")


def _plain(value: Any, path: str = "") -> Any:
    """Return the plain value of an enum, a path, a date, a UUID, a NumPy number or array; anything else as it is."""
    match value:
        case Enum():
            return _plain(value.value, path)
        case os.PathLike():
            return os.fspath(value)
        case UUID():
            return str(value)
        case date() | time():
            return value.isoformat()
    if _is_numpy(value):
        if value.size > MAX_ARRAY_VALUES:
            raise UnsendableError(
                f"{path}: an array of {value.size} values is too large; at most {MAX_ARRAY_VALUES} can be sent"
            )
        return value.tolist()
    return value


def _is_numpy(value: Any) -> bool:
    """Return whether it is a number or an array of NumPy, which need not be installed."""
    return hasattr(value, "__array_interface__") and hasattr(value, "tolist")


def _key(path: str, key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{path}: the key {shortened(key)} is {_kind(key)}; keys must be text")
    return text(f"{path}[{key!r}]", key)


def text(path: str, given: str) -> str:
    """Return a text that a message can hold. Raises ValueError that names it by the path of the argument."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise UnsendableError(f"{path}: {shortened(given)} has a character that UTF-8 can't express") from None
    return given


def _integer(path: str, number: int) -> int:
    if abs(number) > _LARGEST_EXACT_INTEGER:
        raise UnsendableError(f"{path}: {shortened(number)} is beyond 2**53, so it would lose digits; give it as text")
    return number


def _require(message: type[Message], name: str, value: Any) -> None:
    """Raise the error of one field, in our words, if it does not take this value."""
    field = message.DESCRIPTOR.fields_by_name[name]
    for path, part, item in _parts(name, value) if field.is_repeated else [(name, value, value)]:
        try:
            message(**{name: part})
        except (TypeError, ValueError) as error:
            if isinstance(item, str) and field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                text(path, item)
            cls = UnsendableError if isinstance(error, ValueError) else TypeError
            raise cls(f"{path} must be {_expected(field)}, not {_described(item)}") from None


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield each item of the value of a repeated field, with its path and as a list of its own; what is no list, as it is."""
    if isinstance(value, list | tuple):
        yield from ((f"{name}[{index}]", [item], item) for index, item in enumerate(value))
    else:
        yield name, value, value


def _expected(field: Any) -> str:
    return _with_article(field.message_type.name) if field.message_type else _EXPECTED.get(field.cpp_type, "of another type")


def _described(value: object) -> str:
    return f"{shortened(value)} ({_kind(value)})" if isinstance(value, str | bool | int | float) else _kind(value)


def _kind(value: object) -> str:
    """Return what a value is, such as `a torch.Tensor`."""
    if value is None:
        return "None"
    cls = type(value)
    return _with_article(cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}")


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
