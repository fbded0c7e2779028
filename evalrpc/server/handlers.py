"""The wrapper around every handler, the same for all transports: it keeps callers within the limits, decodes the message,
checks that the caller may make the call, and turns a bug into INTERNAL.

Methods are wrapped once, when the server is built, so no call pays for an interceptor.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message

from evalrpc.errors import EvalrpcError, InternalError, InvalidRequestError, RequestTooLargeError, UnimplementedError
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.field_count import counted_fields
from evalrpc.server.call import Call, Principal
from evalrpc.server.limits import SMALL_BYTES, Limits
from evalrpc.server.validation.arguments import MAX_NESTING

Handler = Callable[[bytes, Call], Awaitable[bytes]]
"""Answers one serialised message with another, or sends those of a stream and returns none. Raises EvalrpcError only."""

Check = Callable[[str, Message, Principal], Awaitable[None]]
"""Raises EvalrpcError where a caller may not make a call: the method, its message, who calls."""

MAX_FIELDS: Final = 500_000
"""How many fields a request may have, with those of the messages in it: twice what the largest submission has. Decoding them
holds up all other calls for some 30 ms."""

_PAGES: Final = frozenset(
    {
        *("ListJobs", "ListSamples", "ListMetrics", "ListArtifacts", "GetHistory", "ListTasks", "ListModels"),
        *("CompareJobs", "PlanComparison", "ListFlips", "ListSuites", "ListSuiteRuns", "GetSuiteRun"),
    }
)
"""The methods whose answers may be as large as a page of something. All other large answers are jobs."""

_log = logging.getLogger(__name__)


async def open_to_all(method: str, message: Message, principal: Principal) -> None:
    """Let everybody make every call."""


def handlers_of(
    service: ServiceDescriptor, implementation: object, limits: Limits, check: Check = open_to_all
) -> Mapping[str, Handler]:
    """Build the handlers of a service, by method. A method that `implementation` lacks raises UnimplementedError.

    A unary method returns a message, or bytes that are sent unchanged. A streaming one sends its messages itself, since a
    generator in between would add a third of the cost of an event for each of ten thousand watchers.
    """
    return {
        method.name: _handler(method, getattr(implementation, method.name, None), limits, check) for method in service.methods
    }


def _handler(
    method: MethodDescriptor, implementation: Callable[[Any, Call], Awaitable[Any]] | None, limits: Limits, check: Check
) -> Handler:
    if implementation is None:
        return _unimplemented(method)
    if method.server_streaming:
        return _streaming(method, implementation, limits, check)
    answering = _answering(method, implementation, limits, check)
    if method.name in _PAGES:
        return _paging(answering, limits)
    return _unary(answering, limits, is_read=method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS)


def _answering(
    method: MethodDescriptor, implementation: Callable[[Any, Call], Awaitable[Any]], limits: Limits, check: Check
) -> Handler:
    """Return a method with one answer for serialised messages."""
    read = _reader(method, limits, check)

    async def answer(request: bytes, call: Call) -> bytes:
        try:
            answer: Message | bytes = await implementation(await read(request, call.principal), call)
        except EvalrpcError:
            raise
        except Exception as error:  # the last resort: no transport gets anything but errors of ours
            raise _bug(method) from error
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    return answer


def _bug(method: MethodDescriptor) -> InternalError:
    """Log the exception that is being handled, and return what clients get for it."""
    _log.exception("a bug in %s", method.name)
    return InternalError("the server has a bug; its log has the details")


def _unary(answering: Handler, limits: Limits, *, is_read: bool) -> Handler:
    """Keep a method with one answer within the limits. Without room for it, it waits; what only reads then begins again."""
    answering_later = _answering_with_room(answering, limits)

    async def handle(request: bytes, call: Call) -> bytes:
        limits.admit(call.principal.owner, len(request))
        answer = await answering(request, call)
        if len(answer) <= SMALL_BYTES:
            return answer
        size_bytes = len(answer)
        if is_read and not limits.unread.has_room(size_bytes):
            del answer
            return await answering_later(size_bytes, request, call)
        limits.hold_until_taken(await limits.unread.reserve(size_bytes, call.peer))
        return answer

    return handle


def _paging(answering: Handler, limits: Limits) -> Handler:
    """Keep a method whose answer may be a large page within the limits: it begins when there is room for a page."""
    answering_with_room = _answering_with_room(answering, limits)

    async def handle(request: bytes, call: Call) -> bytes:
        limits.admit(call.principal.owner, len(request))
        return await answering_with_room(MAX_PAGE_BYTES, request, call)

    return handle


def _answering_with_room(answering: Handler, limits: Limits) -> Callable[[int, bytes, Call], Awaitable[bytes]]:
    """Return the method such that it begins when there is room for an answer of a size."""

    async def answer(size_bytes: int, request: bytes, call: Call) -> bytes:
        hold = await limits.unread.reserve(size_bytes, call.peer)
        try:
            answer = await answering(request, call)
        except BaseException:  # a cancel, too: the room would be held for good
            limits.unread.give_back(hold)
            raise
        limits.unread.shrink(hold, len(answer))
        limits.hold_until_taken(hold)
        return answer

    return answer


def _streaming(
    method: MethodDescriptor, implementation: Callable[[Any, Call], Awaitable[Any]], limits: Limits, check: Check
) -> Handler:
    """Keep a method that answers with a stream within the limits. One coroutine for all, as ten thousand watchers have each."""
    read = _reader(method, limits, check)

    async def handle(request: bytes, call: Call) -> bytes:
        limits.admit(call.principal.owner, len(request))
        with limits.open_stream(call) as stream:
            try:
                message = await read(request, call.principal)
                await implementation(message, call._replace(send=stream.send, reserve=stream.reserve))
            except EvalrpcError:
                raise
            except Exception as error:  # as above
                raise _bug(method) from error
        return b""

    return handle


def _unimplemented(method: MethodDescriptor) -> Handler:
    async def refuse(request: bytes, call: Call) -> bytes:  # noqa: ARG001 - the shape of a handler
        raise UnimplementedError(f"this server does not have {method.name} yet")

    return refuse


def _reader(method: MethodDescriptor, limits: Limits, check: Check) -> Callable[[bytes, Principal], Awaitable[Message]]:
    """Return what decodes a request of a method, unless that would take long, and checks that its caller may make the call."""
    decode = _decoder(method)

    async def read(request: bytes, principal: Principal) -> Message:
        if len(request) > SMALL_BYTES:
            await _require_few_fields(request, method, principal.owner, limits)
        message = decode(request)
        await check(method.name, message, principal)
        return message

    return read


async def _require_few_fields(request: bytes, method: MethodDescriptor, owner: str, limits: Limits) -> None:
    """Raise RequestTooLargeError for a request that would take long to decode. One is looked at after the other, of the owners
    in turn, and other calls go on meanwhile: so they do between two requests, too, however many come at once."""
    async with limits.large_requests.turn(owner):
        for count in counted_fields(request, method.input_type):
            if count > MAX_FIELDS:
                raise RequestTooLargeError(
                    f"the request has more than {MAX_FIELDS} fields, with those of all messages in it, which no request may",
                    metadata={"limit": str(MAX_FIELDS)},
                )
            await asyncio.sleep(0)


def _decoder(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = message_factory.GetMessageClass(method.input_type)

    def decode(request: bytes) -> Message:
        try:
            return message_class.FromString(request)
        except DecodeError:
            text = (
                f"the bytes sent are no {method.input_type.full_name}: was the client made from another schema, or are "
                f"arguments nested more than {MAX_NESTING} deep?"
            )
            raise InvalidRequestError(text) from None

    return decode
