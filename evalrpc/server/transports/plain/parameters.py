"""The parameters of a URL as the fields of a message: `attempt=2&follow=true`, and lists by naming a field several times."""

from collections.abc import Collection, Iterable
from typing import Any, Final, cast

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.printable import printable
from evalrpc.server.transports.http.codec import MUST_BE
from evalrpc.server.transports.http.request import NAMED_TWICE

_BOOLEANS: Final = {"true": True, "false": False}


def fill(parameters: Iterable[tuple[str, str]], *messages: Message, but: Collection[str] = ()) -> None:
    """Set the fields that parameters name, each in the first of the messages that has it, `but` those that something else says.
    Raises InvalidRequestError, naming every bad parameter."""
    places = {
        field.name: (message, cast(FieldDescriptor, field))
        for message in reversed(messages)
        for field in message.DESCRIPTOR.fields
    }
    simple = {name: place for name, place in places.items() if _is_simple(place[1]) and name not in but}
    found: set[str] = set()
    bad: list[FieldViolation] = []
    for name, text in parameters:
        if name not in simple:
            known = ", ".join(sorted(simple))
            bad.append(FieldViolation(printable(name)[:100], f"there is no such parameter; there are: {known}"))
            continue
        message, field = simple[name]
        if name in found and not field.is_repeated:
            bad.append(FieldViolation(name, NAMED_TWICE))
            continue
        found.add(name)
        try:
            _set(message, field, text)
        except (json_format.ParseError, ValueError, TypeError):
            bad.append(FieldViolation(name, _problem(field, text)))
    if bad:
        raise InvalidRequestError(violations=bad)


def _set(message: Message, field: FieldDescriptor, text: str) -> None:
    """Set a field, or add to a list. Raises ParseError, ValueError, TypeError."""
    value: Any = _BOOLEANS.get(text, text) if field.type == FieldDescriptor.TYPE_BOOL else text
    if not field.is_repeated:
        json_format.ParseDict({field.name: value}, message)
        return
    message.MergeFrom(json_format.ParseDict({field.name: [value]}, type(message)()))  # parsed into it, it would be all there is


def _problem(field: FieldDescriptor, text: str) -> str:
    """Say of a text that a field can't have it, and which ones it can, if these are few."""
    if field.message_type is not None:
        return f"can't be {text[:100]!r}: it {MUST_BE[field.message_type.name]}"
    if field.enum_type is None:
        return f"can't be {text[:100]!r}"
    return f"there is no {text[:100]!r}; there are: {', '.join(field.enum_type.values_by_name)}"


def _is_simple(field: FieldDescriptor) -> bool:
    """Return whether a text can say what is in the field: a map or a message can't be, apart from times and durations."""
    return field.message_type is None or field.message_type.full_name.startswith("google.protobuf.")
