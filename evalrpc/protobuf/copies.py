"""Copies of messages. Pure."""

from typing import TypeVar

from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)


def without(message: MessageT, *fields: str) -> MessageT:
    """Return a copy of a message in which these fields are not set."""
    rest = type(message)()
    rest.CopyFrom(message)
    for field in fields:
        rest.ClearField(field)
    return rest
