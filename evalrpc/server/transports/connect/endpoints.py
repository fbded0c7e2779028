"""One path for each method, at which it is called with one message, and answers with another one or with a stream."""

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from google.protobuf.descriptor import Descriptor, ServiceDescriptor

from evalrpc.errors import EvalrpcError, FieldViolation, InvalidRequestError, UnimplementedError
from evalrpc.printable import printable
from evalrpc.server.limits import SMALL_BYTES
from evalrpc.server.transports.connect.compression import decompress, require_known
from evalrpc.server.transports.connect.envelopes import end_of_stream, enveloped, only_message
from evalrpc.server.transports.http.application import Endpoint, Find
from evalrpc.server.transports.http.codec import MAX_JSON_BYTES, EventJson, JsonCodec
from evalrpc.server.transports.http.errors import error_body, error_headers, refuse_method
from evalrpc.server.transports.http.methods import HttpMethod
from evalrpc.server.transports.http.request import INERT, NAMED_TWICE, HttpRequest

_UNARY: Final = "application/"
_STREAM: Final = "application/connect+"
_JSON: Final = "json"
_PROTO: Final = "proto"
_MAX_TIMEOUT_DIGITS: Final = 10
_VERSIONS: Final = ("", "1")
_CONNECT: Final = "v1"
_PARAMETERS: Final = ("message", "encoding", "base64", "compression", "connect")
"""What the query of a GET may have."""


class ConnectCodec:
    """Messages in the two forms that clients may choose from."""

    def __init__(self, json: JsonCodec, max_request_bytes: int) -> None:
        self.events: Final = EventJson(json)
        """The messages of streams as JSON."""
        self._json = json
        self._max_request_bytes = max_request_bytes

    def max_bytes(self, form: str) -> int:
        """Return how large a request may be in this form."""
        return min(MAX_JSON_BYTES, self._max_request_bytes) if form == _JSON else self._max_request_bytes

    async def decode(self, form: str, message: bytes, descriptor: Descriptor) -> bytes:
        """Return a message of this form, serialised. Raises InvalidRequestError."""
        return await self._json.decode(message, descriptor) if form == _JSON else message

    async def encode(self, form: str, serialized: bytes, descriptor: Descriptor) -> bytes:
        """Return a serialised message in this form. Clients ask for the same job again and again, so small answers are
        remembered as events are."""
        if form != _JSON:
            return serialized
        codec = self.events if len(serialized) <= SMALL_BYTES else self._json
        return await codec.encode(serialized, descriptor)

    async def encode_event(self, form: str, serialized: bytes, descriptor: Descriptor) -> bytes:
        """Return a message of a stream in this form."""
        return await self.events.encode_in_turn(serialized, descriptor) if form == _JSON else serialized


def endpoints_of(service: str, methods: Mapping[str, HttpMethod], codec: ConnectCodec) -> Mapping[str, Endpoint]:
    """Return what answers at each path."""
    return {f"/{service}/{name}": _endpoint(method, codec) for name, method in methods.items()}


def unknown_calls(*services: ServiceDescriptor) -> Find:
    """Return what answers for methods that these services do not have."""
    prefixes = tuple(f"/{service.full_name}/" for service in services)

    async def refuse(request: HttpRequest) -> None:
        raise UnimplementedError(f"this server has no call {printable(request.path[1:])[:200]}")

    return lambda request: refuse if request.path.startswith(prefixes) else None


def _endpoint(method: HttpMethod, codec: ConnectCodec) -> Endpoint:
    return StreamEndpoint(method, codec).answer if method.descriptor.server_streaming else UnaryEndpoint(method, codec).answer


class UnaryEndpoint:
    """A method with one answer."""

    def __init__(self, method: HttpMethod, codec: ConnectCodec) -> None:
        self._method = method
        self._codec = codec

    async def answer(self, request: HttpRequest) -> None:
        """Make the call. Raises EvalrpcError for what was none."""
        if request.method == "GET" and self._method.only_reads:
            parameters = _parameters_of(request)
            asked = parameters.get("encoding", _JSON)
            if asked not in (_JSON, _PROTO):
                raise InvalidRequestError("the parameter `encoding` must be json or proto")
            await self._call(request, asked, lambda: self._read_query(parameters, asked))
        elif request.method != "POST":
            await refuse_method(request, "GET, POST" if self._method.only_reads else "POST")
        elif form := _form_of(request, _UNARY):
            await self._call(request, form, lambda: self._read_body(request, form))
        else:
            await _refuse_type(request, _UNARY)

    async def _call(self, request: HttpRequest, form: str, read: Callable[[], Awaitable[bytes]]) -> None:
        _require_version(request)
        answer = await self._method.call(request, read, timeout_seconds=_timeout_of(request))
        body = await self._codec.encode(form, answer, self._method.descriptor.output_type)
        await request.respond(200, ((b"content-type", (_UNARY + form).encode()), *INERT), body)

    async def _read_body(self, request: HttpRequest, form: str) -> bytes:
        encoding = request.headers.get("content-encoding", "")
        require_known(encoding)
        most = self._codec.max_bytes(form)
        body = decompress(await request.body(most), encoding, most)
        return await self._codec.decode(form, body, self._method.descriptor.input_type)

    async def _read_query(self, parameters: Mapping[str, str], form: str) -> bytes:
        message = parameters.get("message", "").encode()
        if parameters.get("base64") == "1":
            try:
                message = base64.b64decode(message + b"=" * (-len(message) % 4), altchars=b"-_", validate=True)
            except binascii.Error:
                raise InvalidRequestError("the parameter `message` is not in URL-safe base64, as `base64=1` says") from None
        message = decompress(message, parameters.get("compression", ""), self._codec.max_bytes(form))
        return await self._codec.decode(form, message, self._method.descriptor.input_type)


def _parameters_of(request: HttpRequest) -> Mapping[str, str]:
    """Return the parameters in the query. Raises InvalidRequestError for those that say nothing here, since a field of the
    message is in `message`, and for those that are there twice."""
    unknown = f"there is no such parameter; there are: {', '.join(_PARAMETERS)}"
    found: dict[str, str] = {}
    bad = []
    for name, text in request.parameters:
        if name not in _PARAMETERS or name in found:
            bad.append(FieldViolation(printable(name)[:100], NAMED_TWICE if name in found else unknown))
        found[name] = text
    if found.get("connect", _CONNECT) != _CONNECT:
        bad.append(FieldViolation("connect", f"must be {_CONNECT}"))
    if bad:
        raise InvalidRequestError(violations=bad)
    return found


class StreamEndpoint:
    """A method that answers with a stream."""

    def __init__(self, method: HttpMethod, codec: ConnectCodec) -> None:
        self._method = method
        self._codec = codec

    async def answer(self, request: HttpRequest) -> None:
        """Make the call. Whatever becomes of it, the answer is a stream, whose end says it."""
        if request.method != "POST":
            await refuse_method(request, "POST")
            return
        form = _form_of(request, _STREAM)
        if form is None:
            await _refuse_type(request, _STREAM)
            return
        failure: EvalrpcError | None = None
        try:
            await self._stream(request, form)
        except EvalrpcError as error:
            failure = error.with_traceback(None)
        if not request.is_answered:
            await self._start(request, form)
        await request.finish(end_of_stream(failure))

    async def _stream(self, request: HttpRequest, form: str) -> None:
        output, encode = self._method.descriptor.output_type, self._codec.encode_event

        async def send(message: bytes) -> None:
            if not request.is_answered:
                await self._start(request, form)
            await request.write(enveloped(await encode(form, message, output)))

        async def read() -> bytes:
            message = await self._read(request, form)
            await self._start(request, form)  # the client is to see that its call was taken, also where no message comes soon
            return message

        _require_version(request)
        await self._method.call(request, read, send, _timeout_of(request))

    async def _read(self, request: HttpRequest, form: str) -> bytes:
        encoding = request.headers.get("connect-content-encoding", "")
        require_known(encoding)
        most = self._codec.max_bytes(form)
        message = only_message(await request.body(most), encoding, most)
        return await self._codec.decode(form, message, self._method.descriptor.input_type)

    async def _start(self, request: HttpRequest, form: str) -> None:
        await request.start(200, ((b"content-type", (_STREAM + form).encode()), *INERT))


def _form_of(request: HttpRequest, prefix: str) -> str | None:
    """Return the form of the message in the body; None if its type is no such form. The type keeps foreign pages out."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    form = kind.strip().removeprefix(prefix)
    if kind.strip() == prefix + form and (form == _PROTO or (form == _JSON and parameters.strip() in ("", "charset=utf-8"))):
        return form
    return None


def _require_version(request: HttpRequest) -> None:
    if request.headers.get("connect-protocol-version", "") not in _VERSIONS:
        raise InvalidRequestError("the header `Connect-Protocol-Version` must be 1")


def _timeout_of(request: HttpRequest) -> float | None:
    """Return within how many seconds the client wants an answer. Raises InvalidRequestError."""
    text = request.headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_TIMEOUT_DIGITS):
        raise InvalidRequestError("the header `Connect-Timeout-Ms` must be a number of milliseconds with at most 10 digits")
    return int(text) / 1000


async def _refuse_type(request: HttpRequest, prefix: str) -> None:
    types = ", ".join(prefix + form for form in (_JSON, _PROTO))
    error = InvalidRequestError(f"the header `Content-Type` must be one of {types}")
    await request.respond(415, (*error_headers(error), (b"accept-post", types.encode())), error_body(error))
