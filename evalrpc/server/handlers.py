"""The wrapper around every handler, the same for all transports: it decodes the message, and turns a bug into INTERNAL.

Methods are wrapped once, when the server is built, so no call pays for an interceptor.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from evalrpc.errors import EvalrpcError, InternalError, InvalidRequestError, UnimplementedError
from evalrpc.server.call import Call

Handler = Callable[[bytes, Call], Awaitable[bytes]]
"""Answers one serialised message with another, or sends those of a stream and returns none. Raises EvalrpcError only."""

_log = logging.getLogger(__name__)


def handlers_of(service: ServiceDescriptor, implementation: object) -> Mapping[str, Handler]:
    """Build the handlers of a service, by method. A method that `implementation` lacks raises UnimplementedError.

    A unary method returns a message, or bytes that are sent unchanged. A streaming one sends its messages itself, since a
    generator in between would add a third of the cost of an event for each of ten thousand watchers.
    """
    return {method.name: _handler(method, getattr(implementation, method.name, None)) for method in service.methods}


def _handler(method: MethodDescriptor, implementation: Callable[[Any, Call], Awaitable[Any]] | None) -> Handler:
    if implementation is None:
        return _unimplemented(method)
    decode = _decoder(method)

    async def handle(request: bytes, call: Call) -> bytes:
        try:
            answer: Message | bytes | None = await implementation(decode(request), call)
        except EvalrpcError:
            raise
        except Exception as error:
            _log.exception("a bug in %s", method.name)
            raise InternalError("the server has a bug; its log has the details") from error
        if answer is None:
            return b""
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    return handle


def _unimplemented(method: MethodDescriptor) -> Handler:
    async def refuse(request: bytes, call: Call) -> bytes:  # noqa: ARG001 - the shape of a handler
        raise UnimplementedError(f"this server does not have {method.name} yet")

    return refuse


def _decoder(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = message_factory.GetMessageClass(method.input_type)

    def decode(request: bytes) -> Message:
        try:
            return message_class.FromString(request)
        except DecodeError:
            text = f"the bytes sent are no {method.input_type.full_name}: was the client made from another schema?"
            raise InvalidRequestError(text) from None

    return decode
