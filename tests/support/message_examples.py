"""Messages of any type with each of its fields: for tests of what every field of every call means."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_WHOLE: Final = (1, -1, 2**31 - 1, -(2**31), 0)
_VALUES: Final[Mapping[int, tuple[Any, ...]]] = {
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_BYTES: (b"\0\xff\xfe", b""),
    FieldDescriptor.TYPE_DOUBLE: (0.1, -1e300, float("inf"), float("nan"), 0.0),
    FieldDescriptor.TYPE_INT32: _WHOLE,
    FieldDescriptor.TYPE_INT64: (2**63 - 1, -(2**63), *_WHOLE),
    FieldDescriptor.TYPE_STRING: ("a", "ä b&c+d=e/f?g#h%41;i,j", ""),
}
"""Values of fields. The last one is that of a field that is not set."""

_UNKNOWN_ENUM_VALUE: Final = 77
_IN_JSON: Final[Mapping[str, tuple[Any, ...]]] = {
    "google.protobuf.Duration": ("90s", "-1.500000001s", "0s"),
    "google.protobuf.FieldMask": ("labels", "labels,updateMask.paths", ""),
    "google.protobuf.Struct": ({"a": {"b": [None, True, 1.5, "x"], "c": {}}}, {}),
    "google.protobuf.Timestamp": ("2026-01-31T12:00:00.000000001Z", "1969-12-31T23:59:59.5Z", "1970-01-01T00:00:00Z"),
}
"""Messages that JSON writes in a way of their own."""


def examples(descriptor: Descriptor) -> Iterator[Message]:
    """Yield the empty message, and for each field messages that have only that: with each of several values, and with all of
    them if it takes more than one."""
    message_class = GetMessageClass(descriptor)
    if descriptor.full_name in _IN_JSON:
        yield from (json_format.ParseDict(value, message_class()) for value in _IN_JSON[descriptor.full_name])
        return
    yield message_class()
    for field in descriptor.fields:
        yield from (message_class(**{field.name: value}) for value in _values(field))


def full_example(descriptor: Descriptor) -> Message:
    """Return a message with all fields. Those that can be present without a value are."""
    merged = GetMessageClass(descriptor)()
    for example in examples(descriptor):
        merged.MergeFrom(example)
    return merged


def _values(field: FieldDescriptor) -> Iterator[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        values = list(_single_values(field.message_type.fields_by_name["value"]))
        yield from ({"key": value} for value in values)
        yield dict(zip(("a", "ä.b", ""), values, strict=False))
    elif field.is_repeated:
        values = list(_single_values(field))
        yield from ([value] for value in values)
        yield [*values, values[0]]
    else:
        yield from _single_values(field)


def _single_values(field: FieldDescriptor) -> Iterator[Any]:
    if field.message_type is not None:
        yield from examples(field.message_type)
    elif field.enum_type is not None:
        yield from (*field.enum_type.values_by_number, _UNKNOWN_ENUM_VALUE)
    else:
        yield from _VALUES[field.type]
