"""Keeps unknown harness output in Structs that every client can read and write as JSON. Pure.

Every event carries the whole job, so large values are left out of it. They remain in the harness's own file.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct

MAX_DEPTH: Final = 8
"""Nesting depth of lists and objects."""

MAX_SAMPLE_DEPTH: Final = 16
"""The same for samples. Protobuf parses messages up to a depth of 100, and each level here takes up to three."""

_LARGEST_NAME: Final = 200


def bounded_struct(entries: Iterable[tuple[str, object]], max_bytes: int, max_entry_bytes: int) -> Struct | None:
    """Return the non-empty entries within bounds, in order, without those that no longer fit; None if there are none."""
    struct = Struct()
    for name, value in entries:
        entry = _entry(name, value, max_entry_bytes)
        if entry is not None and struct.ByteSize() + entry.ByteSize() <= max_bytes:
            struct.MergeFrom(entry)
    return struct if struct.fields else None


def sample_struct(values: Mapping[str, object]) -> Struct:
    """Return a JSON object as a Struct. Numbers become doubles; integers that these would round, non-finite numbers, and values
    nested deeper than MAX_SAMPLE_DEPTH, become text."""
    struct = Struct()
    struct.update({wire_text(name): _plain(value, MAX_SAMPLE_DEPTH - 1, _json) for name, value in values.items()})
    return struct


def wire_text(text: str) -> str:
    """Replace lone surrogates, which JSON can express but UTF-8 can't."""
    return text.encode(errors="replace").decode()


def _entry(name: str, value: object, max_bytes: int) -> Struct | None:
    if value in (None, "", [], {}) or len(name) > _LARGEST_NAME:
        return None
    try:
        if _is_longer(value, max_bytes):
            return None
        entry = Struct()
        entry.update({wire_text(name): _plain(value, MAX_DEPTH, _refuse)})
    except (ValueError, RecursionError):  # nested too deep
        return None
    return entry if entry.ByteSize() <= max_bytes else None


def _is_longer(value: object, max_bytes: int) -> bool:
    """Return whether a value takes more than `max_bytes` as JSON. Encoding stops at that point."""
    left = max_bytes
    for part in json.JSONEncoder().iterencode(value):
        left -= len(part)
        if left < 0:
            return True
    return False


def _plain(value: object, depth: int, deeper: Callable[[object], str]) -> Any:
    """Return a JSON value that a Struct can hold and protobuf can write as JSON; `deeper` converts what is nested too deep."""
    match value:
        case str():
            return wire_text(value)
        case bool() | None:
            return value
        case int() | float():
            return _number(value)
        case list() | dict() if not depth:
            return deeper(value)
        case list():
            return [_plain(item, depth - 1, deeper) for item in value]
        case dict():
            return {wire_text(key): _plain(item, depth - 1, deeper) for key, item in value.items()}
    return str(value)


def _refuse(_: object) -> str:
    raise ValueError("nested too deep")


def _json(value: object) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "nested too deep"


def _number(number: float) -> float | str:
    try:
        value = float(number)
    except OverflowError:
        return str(number)
    if value != number and isinstance(number, int):
        return str(number)
    return value if math.isfinite(value) else json.dumps(value)
