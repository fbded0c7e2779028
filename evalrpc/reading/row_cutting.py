"""Cuts a row of samples that is too large for any page: the longest strings first, then lists, then whole fields. Pure.

A row of very many values is shortened before: it would take a minute to convert, and its size is not even known before that.
"""

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from evalrpc.protobuf.structs import MAX_SAMPLE_DEPTH, sample_struct, wire_text
from evalrpc.protobuf.texts import cut
from evalrpc.protobuf.wire_format import field_size

_MIN_STRING_BYTES: Final = 1024
"""Strings are not cut below this."""

_MAX_LISTS: Final = 8
"""So many lists of a row are cut, since each takes a look at the whole row; then fields are dropped."""

_MAX_PATHS: Final = 100
_MAX_PATH_LENGTH: Final = 64


class _Text(NamedTuple):
    """A string of a row."""

    field: str
    size_bytes: int
    value: Value


class _List(NamedTuple):
    """A list of a row."""

    field: str
    values: ListValue


def bounded_row(values: Mapping[str, object], max_bytes: int, max_values: int) -> tuple[Struct, list[str]]:
    """Return a JSON object as a row of at most `max_bytes` and `max_values`, and the paths of the fields that were cut, such as
    `.resps`; an empty path stands for more fields than can be named."""
    kept = values = dict(values)
    if (length := _common_list_length(values, max_values)) is not None:
        kept = _shortened(values, length)
    # A NaN is the same, and equals nothing.
    shortened = {name for name, value in values.items() if name not in kept or not (kept[name] is value or kept[name] == value)}
    row = sample_struct(kept)
    return row, _paths(shortened | _cut_fields(row, max_bytes))


def _cut_fields(row: Struct, max_bytes: int) -> set[str]:
    """Cut a row, and return the fields that were cut."""
    if row.ByteSize() <= max_bytes:
        return set()
    return {*_cut_strings(row, max_bytes), *_cut_lists(row, max_bytes), *_drop_fields(row, max_bytes)}


def _paths(fields: set[str]) -> list[str]:
    paths = [f".{wire_text(field)[:_MAX_PATH_LENGTH]}" for field in sorted(fields)]
    return paths if len(paths) <= _MAX_PATHS else [*paths[:_MAX_PATHS], ""]


def _common_list_length(values: Mapping[str, object], max_values: int) -> int | None:
    """Return the length to which all lists and objects must be cut for so many values; None if none has to be."""
    if not _has_more_than(max_values, values, sys.maxsize):
        return None
    length = max_values
    while _has_more_than(max_values, values, length):
        length //= 2
    return length


def _has_more_than(max_values: int, values: Mapping[str, object], length: int) -> bool:
    """Return whether there are more values, if lists and objects are cut to this length."""
    count = 0
    pending: list[tuple[Any, int]] = [(values, MAX_SAMPLE_DEPTH)]
    while pending:
        value, depth = pending.pop()
        count += min(len(value), length)
        if count > max_values:
            return True
        if depth:
            items = islice(value if isinstance(value, list) else value.values(), length)
            pending.extend((item, depth - 1) for item in items if isinstance(item, list | dict) and item)
    return False


def _shortened(value: Any, length: int, depth: int = MAX_SAMPLE_DEPTH) -> Any:
    """Return a value with its lists and objects cut to a length."""
    match value:
        case list() if depth:
            return [_shortened(item, length, depth - 1) for item in value[:length]]
        case dict() if depth:
            return {name: _shortened(item, length, depth - 1) for name, item in islice(value.items(), length)}
    return value


def _cut_strings(row: Struct, max_bytes: int) -> list[str]:
    """Cut the longest strings to one length, such that the row fits if that is possible. Return the fields that have them."""
    texts = sorted(_texts(row), key=lambda text: text.size_bytes, reverse=True)
    length = max(_MIN_STRING_BYTES, _common_length([text.size_bytes for text in texts], row.ByteSize() - max_bytes))
    longer = [text for text in texts if text.size_bytes > length]
    for text in longer:
        text.value.string_value = cut(text.value.string_value, length)
    return [text.field for text in longer]


def _common_length(sizes: list[int], excess: int) -> int:
    """Return the length to which the longest must be cut to save `excess` bytes. `sizes` is sorted, the longest first."""
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        next_size = sizes[count] if count < len(sizes) else 0
        if total - count * next_size >= excess:
            return (total - excess) // count
    return 0


def _cut_lists(row: Struct, max_bytes: int) -> Iterator[str]:
    """Cut the ends of lists, the largest list first. Yield the fields that have them."""
    for _ in range(_MAX_LISTS):
        excess = row.ByteSize() - max_bytes
        largest = max((each for each in _lists(row) if len(each.values.values) > 1), key=_size, default=None)
        if excess <= 0 or largest is None:
            return
        values = largest.values.values
        kept = len(values)
        while excess > 0 and kept > 1:
            kept -= 1
            excess -= field_size(values[kept].ByteSize())
        del values[kept:]
        yield largest.field


def _drop_fields(row: Struct, max_bytes: int) -> Iterator[str]:
    """Drop the largest fields until the row fits. Yield them."""
    excess = row.ByteSize() - max_bytes
    for field in sorted(row.fields, key=lambda field: row.fields[field].ByteSize(), reverse=True) if excess > 0 else ():
        if excess <= 0:
            return
        excess -= len(field.encode()) + row.fields[field].ByteSize()
        del row.fields[field]
        yield field


def _size(found: _List) -> int:
    return found.values.ByteSize()


def _texts(row: Struct) -> Iterator[_Text]:
    for field, value in _values(row):
        if value.HasField("string_value"):
            yield _Text(field, len(value.string_value.encode()), value)


def _lists(row: Struct) -> Iterator[_List]:
    for field, value in _values(row):
        if value.HasField("list_value"):
            yield _List(field, value.list_value)


def _values(row: Struct) -> Iterator[tuple[str, Value]]:
    """Yield all values of a row, however nested, each with the field of the row that it belongs to."""
    pending = [(field, value) for field, value in row.fields.items()]
    while pending:
        field, value = pending.pop()
        yield field, value
        if value.HasField("list_value"):
            pending.extend((field, item) for item in value.list_value.values)
        elif value.HasField("struct_value"):
            pending.extend((field, item) for item in value.struct_value.fields.values())
