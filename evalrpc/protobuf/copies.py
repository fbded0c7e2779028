"""Copies of messages. Pure."""

from functools import reduce
from typing import TypeVar

from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)


def without(message: MessageT, *paths: str) -> MessageT:
    """Return a copy of a message in which these fields are not set: its own, or those of a message in it (`model.args`)."""
    rest = type(message)()
    rest.CopyFrom(message)
    for path in paths:
        *parents, field = path.split(".")
        reduce(getattr, parents, rest).ClearField(field)
    return rest
