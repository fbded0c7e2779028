"""The wrapper around every handler: it decodes the message, and turns an error into a status.

Handlers are wrapped once, when the server is built, so no call pays for an interceptor.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from evalrpc.errors import (
    DOMAIN,
    EvalrpcError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    QueueFullError,
    UnimplementedError,
)

DETAILS_KEY: Final = "grpc-status-details-bin"

# The status travels in HTTP/2 trailers, and many clients refuse those over 8 KiB. They hold the message twice, once with three
# characters for each non-ASCII byte, and the details in base64.
_MAX_MESSAGE_BYTES: Final = 800
_MAX_VIOLATIONS_BYTES: Final = 2500
_MAX_DESCRIPTION_BYTES: Final = 300

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
UnaryHandler = Callable[[Any, Context], Awaitable[Message | bytes]]
StreamHandler = Callable[[Any, Context], Awaitable[None]]


def generic_handler(service: ServiceDescriptor, implementation: object) -> grpc.GenericRpcHandler:
    """Build the handlers of a service from its descriptor. A call that `implementation` lacks answers UNIMPLEMENTED.

    A unary handler returns its answer. A streaming one writes to the context, since a generator in between would add a
    third of the cost of an event for each of ten thousand watchers. Either yields messages, or bytes that are sent unchanged.
    """
    handlers = {method.name: _method_handler(method, implementation) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _method_handler(method: MethodDescriptor, implementation: object) -> "grpc.RpcMethodHandler[Any, Any]":
    decode = _decoder(method)
    handler = getattr(implementation, method.name, None)
    if handler is None:
        return grpc.unary_unary_rpc_method_handler(_unimplemented(method))
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_stream(method, decode, handler), response_serializer=_serialize)
    return grpc.unary_unary_rpc_method_handler(_unary(method, decode, handler), response_serializer=_serialize)


def _unary(method: MethodDescriptor, decode: Callable[[bytes], Message], handler: UnaryHandler) -> Any:
    async def call(request: bytes, context: Context) -> Message | bytes:
        try:
            return await handler(decode(request), context)
        except EvalrpcError as error:
            failure = error
        except Exception:  # noqa: BLE001 - the one place where a bug becomes INTERNAL; nothing aborts inside it
            failure = _bug(method)
        return await _abort(context, failure)

    return call


def _stream(method: MethodDescriptor, decode: Callable[[bytes], Message], handler: StreamHandler) -> Any:
    async def call(request: bytes, context: Context) -> None:
        try:
            await handler(decode(request), context)
        except EvalrpcError as error:
            failure = error
        except Exception:  # noqa: BLE001 - see above
            failure = _bug(method)
        else:
            return
        await _abort(context, failure)

    return call


def _unimplemented(method: MethodDescriptor) -> Any:
    async def call(request: bytes, context: Context) -> NoReturn:  # noqa: ARG001 - the shape of a handler
        await _abort(context, UnimplementedError(f"this server does not have {method.name} yet"))

    return call


def _decoder(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = message_factory.GetMessageClass(method.input_type)

    def decode(request: bytes) -> Message:
        try:
            return message_class.FromString(request)
        except DecodeError:
            text = f"the bytes sent are no {method.input_type.full_name}: was the client made from another schema?"
            raise InvalidRequestError(text) from None

    return decode


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _bug(method: MethodDescriptor) -> InternalError:
    _log.exception("a bug in %s", method.name)
    return InternalError("the server has a bug; its log has the details")


async def _abort(context: Context, error: EvalrpcError) -> NoReturn:
    status = status_of(error)
    code = getattr(grpc.StatusCode, error.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError  # abort always raises; this tells the type checker


def status_of(error: EvalrpcError) -> status_pb2.Status:
    """Return the error as a google.rpc.Status with its details."""
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: EvalrpcError) -> Iterator[Message]:
    description = _cut(error.message, _MAX_DESCRIPTION_BYTES)
    resource = error.metadata.get("resource_name", "")
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    if error.retry_delay_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if isinstance(error, InvalidRequestError):
        yield error_details_pb2.BadRequest(field_violations=list(_bounded(error.violations)))
    if isinstance(error, NotFoundError):
        kind = error.metadata.get("resource_type", "")
        yield error_details_pb2.ResourceInfo(resource_type=kind, resource_name=resource, description=description)
    if isinstance(error, PreconditionError):
        failed = error_details_pb2.PreconditionFailure.Violation(type=error.reason, subject=resource, description=description)
        yield error_details_pb2.PreconditionFailure(violations=[failed])
    if isinstance(error, QueueFullError):
        quota = error_details_pb2.QuotaFailure.Violation(subject="queue", description=description)
        yield error_details_pb2.QuotaFailure(violations=[quota])


def _bounded(violations: tuple[FieldViolation, ...]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """Yield as many as fit into a status; a last one says how many more there are."""
    left = _MAX_VIOLATIONS_BYTES
    for index, (field, description) in enumerate(violations):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(field, _MAX_DESCRIPTION_BYTES), description=_cut(description, _MAX_DESCRIPTION_BYTES)
        )
        left -= violation.ByteSize()
        if left < 0:
            more = f"{len(violations) - index} more fields are wrong; mend these first"
            yield error_details_pb2.BadRequest.FieldViolation(field=_cut(field, _MAX_DESCRIPTION_BYTES), description=more)
            return
        yield violation


def _cut(text: str, max_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= max_bytes else encoded[: max_bytes - 3].decode(errors="ignore") + "…"
