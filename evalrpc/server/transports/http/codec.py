"""Messages as JSON and back, in proto3's mapping. What is large is converted in a thread, so that it delays no other call."""

import asyncio
import re
from collections import OrderedDict
from concurrent.futures import Executor
from typing import Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.server.limits import SMALL_BYTES

MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""The largest request as JSON: it takes some hundred times as long to read as the same message in binary."""

_MAX_CACHED_BYTES: Final = 16 * 1024 * 1024
_REVISION: Final = "revision"
_UNKNOWN: Final = re.compile(r'Message type "(?P<message>[^"]+)" has no field named "(?P<name>[^"]*)" at "(?P<place>[^"]*)"')
_PLACE: Final = re.compile(r" at [\w.\[\]]+$")
_OUTER: Final = re.compile(r"Failed to parse (\w+) field: ")


class JsonCodec:
    """Converts messages. Used on the event loop; what is large goes to `converters`."""

    def __init__(self, converters: Executor) -> None:
        self._converters = converters

    async def decode(self, text: bytes, descriptor: Descriptor) -> bytes:
        """Return the serialised message that a JSON text is. Empty text is the empty message. Raises InvalidRequestError."""
        if not text:
            return b""
        if len(text) <= SMALL_BYTES:
            return _decode(text, descriptor)
        return await asyncio.get_running_loop().run_in_executor(self._converters, _decode, text, descriptor)

    async def encode(self, serialized: bytes, descriptor: Descriptor) -> bytes:
        """Return a serialised message as JSON."""
        if len(serialized) <= SMALL_BYTES:
            return encode(serialized, descriptor)
        return await asyncio.get_running_loop().run_in_executor(self._converters, encode, serialized, descriptor)


class EventJson:
    """The JSON of messages that have a revision, such as events and jobs. Thousands of watchers get the same event, and clients
    ask for the same job, and it is converted once for all."""

    def __init__(self, codec: JsonCodec) -> None:
        self._codec = codec
        self._known: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._size_bytes = 0

    async def encode(self, serialized: bytes, descriptor: Descriptor) -> bytes:
        """Return a serialised message as JSON."""
        if _REVISION not in descriptor.fields_by_name:  # no event: a part of a file, which nobody else gets
            return await self._codec.encode(serialized, descriptor)
        key = descriptor.full_name, serialized
        known = self._known.get(key)
        if known is None:
            known = await self._codec.encode(serialized, descriptor)
            self._keep(key, known)
        return known

    def _keep(self, key: tuple[str, bytes], text: bytes) -> None:
        if key in self._known:  # another watcher has had it converted meanwhile
            return
        self._known[key] = text
        self._size_bytes += len(key[1]) + len(text)
        while self._size_bytes > _MAX_CACHED_BYTES:
            (_, oldest), its_text = self._known.popitem(last=False)
            self._size_bytes -= len(oldest) + len(its_text)


def encode(serialized: bytes, descriptor: Descriptor) -> bytes:
    """Return a serialised message as JSON, at once."""
    message: Message = GetMessageClass(descriptor).FromString(serialized)
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode()


def _decode(text: bytes, descriptor: Descriptor) -> bytes:
    message: Message = GetMessageClass(descriptor)()
    if not text.lstrip().startswith(b"{"):
        raise InvalidRequestError("the body must be a JSON object, such as {}")
    try:
        json_format.Parse(text, message)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise _refusal(str(error), descriptor) from None
    return message.SerializeToString()


def _refusal(text: str, descriptor: Descriptor) -> InvalidRequestError:
    """Return the error for what the parser says, with the field that it is about, if that can be told."""
    if unknown := _UNKNOWN.search(text):
        field = ".".join([*unknown["place"].split(".")[1:], unknown["name"]])
        known = ", ".join(each.json_name for each in _message_named(unknown["message"], descriptor).fields)
        return InvalidRequestError(violations=[FieldViolation(field, f"there is no such field; there are: {known}")])
    path = _OUTER.findall(text)
    reason = _PLACE.sub("", _OUTER.sub("", text).rstrip("."))
    if path:
        return InvalidRequestError(violations=[FieldViolation(".".join(path), reason)])
    return InvalidRequestError(f"the body is no {descriptor.full_name} in JSON: {reason}")


def _message_named(name: str, descriptor: Descriptor) -> Descriptor:
    found: Descriptor = descriptor.file.pool.FindMessageTypeByName(name)
    return found
