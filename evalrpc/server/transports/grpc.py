"""gRPC over HTTP/2.

A client may leave at any moment. What can't be sent any more fails with an error of gRPC's own, which is no bug and needs no
traceback in the log.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from evalrpc.errors import EvalrpcError
from evalrpc.server.audit import Audit, MethodAudit
from evalrpc.server.auth.presented import header_of
from evalrpc.server.call import ANONYMOUS, Call, Principal
from evalrpc.server.error_status import status_of
from evalrpc.server.handlers import Handler
from evalrpc.server.limits import Limits
from evalrpc.server.metering import Meter, Meters
from evalrpc.server.sign_in import NOT_SIGNED_IN

DETAILS_KEY: Final = "grpc-status-details-bin"

_NAME: Final = "grpc"
_OK: Final = grpc.StatusCode.OK.name
_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[Any, Any]

_Adapted = Callable[[bytes, _Context], Coroutine[Any, Any, bytes]]

Authenticate = Callable[[_Context], Principal | Awaitable[Principal]]
"""Finds out who calls, or waits for that. Raises EvalrpcError."""


def anonymous(context: _Context) -> Principal:  # noqa: ARG001 - the shape of Authenticate
    """Ask nobody who they are."""
    return ANONYMOUS


def ignore_departures() -> None:
    """Keep gRPC from logging an error for each client that leaves just as its call ends."""
    logging.getLogger(grpc.aio.InternalError.__module__).addFilter(_is_no_departure)


def generic_handler(
    service: ServiceDescriptor,
    handlers: Mapping[str, Handler],
    authenticate: Authenticate,
    audit: Audit | None = None,
    meters: Meters | None = None,
) -> grpc.GenericRpcHandler:
    """Return what a gRPC server needs to serve these handlers, which are given by method, to whom `authenticate` lets in.
    `audit` hears of the calls, and `meters` measure them."""
    methods = {
        method.name: _method_handler(
            method,
            handlers[method.name],
            authenticate,
            MethodAudit(audit, method) if audit else None,
            meters.meter_of(_NAME, f"{service.full_name}/{method.name}") if meters else None,
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def dialogue_handler(service: str, method: str, answer: Callable[[bytes], bytes], limits: Limits) -> grpc.GenericRpcHandler:
    """Return what a gRPC server needs to serve a method that answers each message of a stream with one of its own."""

    async def call(messages: AsyncIterator[bytes], context: _Context) -> None:
        try:
            with limits.open_stream(Call(ANONYMOUS, context.write, peer=context.peer)) as stream:
                async for message in messages:
                    await stream.send(answer(message))
        except EvalrpcError as error:
            failure = error.with_traceback(None)  # which has this frame, and so would keep both until the collector runs
        else:
            return
        await _abort(context, failure)

    return grpc.method_handlers_generic_handler(service, {method: grpc.stream_stream_rpc_method_handler(call)})


def _is_no_departure(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _method_handler(
    method: MethodDescriptor, handler: Handler, authenticate: Authenticate, audit: MethodAudit | None, meter: Meter | None
) -> "grpc.RpcMethodHandler[Any, Any]":
    build = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    adapted = _adapted(handler, authenticate, audit, is_stream=method.server_streaming)
    return build(adapted if meter is None else _measured(adapted, meter))


def _measured(call: _Adapted, meter: Meter) -> _Adapted:
    """Return the same call, measured with the status code that its client gets."""

    async def measured(request: bytes, context: _Context) -> bytes:
        begun = meter.begin()
        try:
            answer = await call(request, context)
        except asyncio.CancelledError:
            meter.end(begun, grpc.StatusCode.CANCELLED.name)
            raise
        except BaseException:  # whatever ends a call, it is counted
            meter.end(begun, _code_of(context))
            raise
        meter.end(begun, _OK)
        return answer

    return measured


def _code_of(context: _Context) -> str:
    """Return the code that a call was aborted with."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.UNKNOWN.name)


def _adapted(handler: Handler, authenticate: Authenticate, audit: MethodAudit | None, *, is_stream: bool) -> _Adapted:
    """Return the handler as gRPC calls it. What a streaming one returns is ignored."""
    changes = audit if audit is not None and audit.changes else None

    async def call(request: bytes, context: _Context) -> bytes:
        async def send(message: bytes) -> None:
            try:
                await context.write(message)
            except grpc.aio.InternalError:  # the client has left, which gRPC else says by a cancellation
                raise asyncio.CancelledError from None

        principal: Principal | None = None
        try:
            found = authenticate(context)
            principal = found if isinstance(found, Principal) else await found
            answering = handler(request, Call(principal, send, header=partial(header_of, context), peer=context.peer))
            if is_stream and principal.sign_in is not NOT_SIGNED_IN:
                answering = principal.sign_in.while_valid(answering)
            answer = await answering
        except EvalrpcError as error:
            failure = error.with_traceback(None)  # as above
        except asyncio.CancelledError:
            if changes is not None:
                changes.abandoned(principal, context.peer(), request)
            raise
        else:
            if changes is not None:
                changes.answered(principal, context.peer(), request, answer)
            return answer
        if audit is not None:
            audit.failed(principal, context.peer(), request, failure)
        return await _abort(context, failure)  # not inside the handler of the exception, which would become its context

    return call


async def _abort(context: _Context, error: EvalrpcError) -> NoReturn:
    status = status_of(error)
    code = getattr(grpc.StatusCode, error.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError  # abort always raises; this tells the type checker
