"""Messages as JSON and back, in proto3's mapping. What is large is converted in a thread, so that it delays no other call."""

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import cache
from typing import Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from evalrpc.errors import FieldViolation, InvalidRequestError, RequestTooLargeError
from evalrpc.printable import printable
from evalrpc.server.limits import SMALL_BYTES
from evalrpc.server.validation.fields import quote

MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""The largest request as JSON: it takes some hundred times as long to read as the same message in binary."""

MAX_JSON_VALUES: Final = 250_000
"""How many values such a request may have: more than twice what the largest submission has."""

_MAX_CACHED_BYTES: Final = 16 * 1024 * 1024
_REVISION: Final = "revision"
_UNKNOWN: Final = re.compile(r'Message type "(?P<message>[^"]+)" has no field named "(?P<name>[^"]*)" at "(?P<place>[^"]*)"')
_PLACE: Final = re.compile(r" at \w+(?:\.(?P<path>[\w.\[\]]*[\w\]]))?\.*$")
_OUTER: Final = re.compile(r"Failed to parse (\w+) field: ")
_BAD_ENUM: Final = re.compile(r"Invalid enum value (?P<value>.*) for enum type (?P<enum>[\w.]+)", re.DOTALL)
_NO_LIST: Final = re.compile(r"repeated field (?P<name>\w+) must be in \[\] which is .*", re.DOTALL)
_NO_OBJECT: Final = "must be an object, in {}"
MUST_BE: Final[Mapping[str, str]] = {
    "Timestamp": "must be a time such as 2026-01-31T12:00:00Z",
    "Duration": "must be a duration such as 90s",
    "FieldMask": "must be the names of fields such as labels,priority",
}
"""What is right for the messages that are text in JSON, by name."""

_WORDS: Final = tuple(
    (re.compile(pattern, re.DOTALL), words)
    for pattern, words in (
        (r"expected string or bytes-like object.*", "must be text"),
        (
            r"invalid literal for int\(\).*|int\(\) argument.*|Couldn't parse (non-)?integer.*|Bool value .* integer field",
            "must be a whole number",
        ),
        (r"unhashable type.*", "must be the name of a value"),
        (
            r"(Failed to parse t|T)imestamp.*|time data .*|(year|day|month) .* out of range.*|month must be .*",
            MUST_BE["Timestamp"],
        ),
        (r"(Couldn't parse d|D)uration(?!.*is not valid).*", MUST_BE["Duration"]),
        (r"(Fail to parse )?FieldMask.*", MUST_BE["FieldMask"]),
        (r"Couldn't parse float.*|float\(\) argument must be.*", "must be a number"),
        (r"(Struct|Map field \w+) must be in a dict.*|'\w+' object is not iterable", _NO_OBJECT),
    )
)
"""What the parser says of values of the wrong kind, in the words of Python, and what that means."""
_HALF_PAIR: Final = "a text in it has half of a surrogate pair, such as \\ud800, which is no character"
_PAIRS: Final = json.JSONDecoder(object_pairs_hook=list)


class JsonCodec:
    """Converts messages. Used on the event loop; what is large goes to `converters`."""

    def __init__(self, converters: Executor) -> None:
        self._converters = converters

    async def decode(self, text: bytes, descriptor: Descriptor) -> bytes:
        """Return the serialised message that a JSON text is. Empty text is the empty message. Raises InvalidRequestError,
        RequestTooLargeError."""
        if not text:
            return b""
        if len(text) <= SMALL_BYTES:
            return decode(text, descriptor)
        require_few_values(text)
        return await asyncio.get_running_loop().run_in_executor(self._converters, decode, text, descriptor)

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
        self._turn = asyncio.Lock()

    async def encode_in_turn(self, serialized: bytes, descriptor: Descriptor) -> bytes:
        """Return a message of a stream as JSON. Of what nobody has had converted yet only one is converted at a time, and all
        else goes on after each: hundreds of streams that begin at once, with every job, would hold up all calls for seconds."""
        if len(serialized) > SMALL_BYTES or (descriptor.full_name, serialized) in self._known:
            return await self.encode(serialized, descriptor)
        async with self._turn:
            text = await self.encode(serialized, descriptor)
            await asyncio.sleep(0)
        return text

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


def require_few_values(text: bytes) -> None:
    """Raise RequestTooLargeError for JSON that would hold the interpreter for long while it is read: each value but the first
    has one of these characters before it."""
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise RequestTooLargeError(
            f"the request has more than {MAX_JSON_VALUES} values, or commas and brackets, which no request may",
            metadata={"limit": str(MAX_JSON_VALUES)},
        )


def encode(serialized: bytes, descriptor: Descriptor) -> bytes:
    """Return a serialised message as JSON, at once."""
    message: Message = GetMessageClass(descriptor).FromString(serialized)
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode()


def decode(text: bytes, descriptor: Descriptor) -> bytes:
    """Return the serialised message that a JSON text is, at once. Raises InvalidRequestError."""
    if not text.lstrip().startswith(b"{"):
        raise InvalidRequestError("the request must be a JSON object, such as {}")
    if (serialized := _decode_texts(text, descriptor)) is not None:
        return serialized
    message: Message = GetMessageClass(descriptor)()
    try:
        json_format.Parse(text, message)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise _refusal(str(error), descriptor, _HALF_PAIR if _has_half_pair(text) else "", text) from None
    return message.SerializeToString()


def _decode_texts(text: bytes, descriptor: Descriptor) -> bytes | None:
    """Return the serialised message of an object that has nothing but texts, such as an id: what clients repeat most, and
    json_format takes four times as long. None for any other object, and for what is wrong, of which json_format says it."""
    fields = _text_fields(descriptor)
    try:
        pairs = _PAIRS.decode(text.decode())
        values = {fields[name]: value for name, value in pairs if isinstance(value, str)}
        message: Message = GetMessageClass(descriptor)(**values)
    except (KeyError, ValueError, RecursionError):
        return None
    return message.SerializeToString() if len(values) == len(pairs) else None


@cache
def _text_fields(descriptor: Descriptor) -> Mapping[str, str]:
    """Return the names of the fields that are one text, by those that JSON may have for them."""
    texts = [each for each in descriptor.fields if each.type == FieldDescriptor.TYPE_STRING and not each.is_repeated]
    return {name: each.name for each in texts if each.containing_oneof is None for name in (each.name, each.json_name)}


def _has_half_pair(text: bytes) -> bool:
    """Return whether a text in a JSON text can't be UTF-8."""
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _refusal(text: str, descriptor: Descriptor, problem: str, source: bytes) -> InvalidRequestError:
    """Return the error for what the parser says, with the field that it is about, if that can be told. `problem`: what is
    wrong, where the parser does not say it. `source`: what it has read."""
    if not problem and (unknown := _UNKNOWN.search(text)):
        around = unknown["place"].split(".")[1:]
        if around and not re.search(rf'"{re.escape(unknown["name"])}"\s*:'.encode(), source):  # the letters of a text
            return InvalidRequestError(violations=[FieldViolation(".".join(around), _NO_OBJECT)])
        field = ".".join([*around, unknown["name"]])
        known = ", ".join(each.json_name for each in _message_named(unknown["message"], descriptor).fields)
        return InvalidRequestError(violations=[FieldViolation(field, f"there is no such field; there are: {known}")])
    place = _PLACE.search(text)  # which is not in every text, as the fields around it are not
    field = (place and place["path"]) or ".".join(_OUTER.findall(text))
    reason = _PLACE.sub("", _OUTER.sub("", text)).rstrip(".")
    if no_list := _NO_LIST.fullmatch(reason):
        name, reason = no_list["name"], "must be a list, in []"
        field = field if field.rpartition(".")[2] == name else f"{field}.{name}".lstrip(".")
    reason = problem or printable(_in_words(reason, descriptor))
    if field:
        return InvalidRequestError(violations=[FieldViolation(field, reason)])
    return InvalidRequestError(f"the request is no {descriptor.full_name} in JSON: {reason}")


def _in_words(text: str, descriptor: Descriptor) -> str:
    """Return what the parser says of a value, in words that lead on."""
    if bad := _BAD_ENUM.fullmatch(text):
        names = ", ".join(descriptor.file.pool.FindEnumTypeByName(bad["enum"]).values_by_name)
        return f"there is no {quote(bad['value'])}; there are: {names}"
    return next((words for pattern, words in _WORDS if pattern.fullmatch(text)), text)


def _message_named(name: str, descriptor: Descriptor) -> Descriptor:
    found: Descriptor = descriptor.file.pool.FindMessageTypeByName(name)
    return found
