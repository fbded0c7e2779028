"""Calls over HTTP: who calls, within which time, and what the audit hears of it; the same for all that speaks HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from evalrpc.errors import DeadlineExceededError, EvalrpcError
from evalrpc.server.audit import Audit, MethodAudit
from evalrpc.server.auth.authenticator import Authenticate
from evalrpc.server.auth.presented import Presented, header_of
from evalrpc.server.call import Call, Principal
from evalrpc.server.handlers import Handler
from evalrpc.server.metering import Meter, Meters
from evalrpc.server.sign_in import NOT_SIGNED_IN
from evalrpc.watching.feed import Send

_NAME: Final = "http"
_OK: Final = "OK"
_CANCELLED: Final = "CANCELLED"
_UNKNOWN: Final = "UNKNOWN"

Read = Callable[[], Awaitable[bytes]]
"""Reads the serialised message of a call, once it is known who calls. Raises EvalrpcError."""


class HttpMethod:
    """One method of a service."""

    def __init__(
        self,
        method: MethodDescriptor,
        handler: Handler,
        authenticate: Authenticate,
        audit: MethodAudit | None,
        meter: Meter | None,
    ) -> None:
        self.descriptor: Final = method
        self.only_reads: Final = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        """Whether a call changes nothing, so that it may be a GET."""
        self._handler = handler
        self._authenticate = authenticate
        self._audit = audit
        self._meter = meter

    async def call(
        self, caller: Presented, read: Read, send: Send | None = None, timeout_seconds: float | None = None
    ) -> bytes:
        """Make a call, and return the serialised answer; none of a stream, whose messages `send` takes. Raises EvalrpcError."""
        if self._meter is None:
            return await self._call(caller, read, send, timeout_seconds)
        begun, code = self._meter.begin(), _UNKNOWN
        try:
            answer = await self._call(caller, read, send, timeout_seconds)
            code = _OK
        except EvalrpcError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = _CANCELLED
            raise
        finally:
            self._meter.end(begun, code)
        return answer

    async def _call(self, caller: Presented, read: Read, send: Send | None, timeout_seconds: float | None) -> bytes:
        principal: Principal | None = None
        request = b""
        try:
            async with asyncio.timeout(timeout_seconds) as timeout:
                found = self._authenticate(caller)
                principal = found if isinstance(found, Principal) else await found
                request = await read()
                answer = await self._answering(request, caller, principal, send)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            failure: EvalrpcError = DeadlineExceededError(f"not answered within the {timeout_seconds:g} s that the client gave")
            failure.__cause__ = error
        except EvalrpcError as error:
            failure = error
        except asyncio.CancelledError:
            if self._audit is not None:
                self._audit.abandoned(principal, caller.peer(), request)
            raise
        else:
            if self._audit is not None and self._audit.changes:
                self._audit.answered(principal, caller.peer(), request, answer)
            return answer
        if self._audit is not None:
            self._audit.failed(principal, caller.peer(), request, failure)
        raise failure

    def _answering(self, request: bytes, caller: Presented, principal: Principal, send: Send | None) -> Awaitable[bytes]:
        if send is None:
            return self._handler(request, Call(principal, _refuse, header=partial(header_of, caller), peer=caller.peer))
        answering = self._handler(request, Call(principal, send, header=partial(header_of, caller), peer=caller.peer))
        return answering if principal.sign_in is NOT_SIGNED_IN else principal.sign_in.while_valid(answering)


def methods_of(
    service: ServiceDescriptor,
    handlers: Mapping[str, Handler],
    authenticate: Authenticate,
    audit: Audit | None = None,
    meters: Meters | None = None,
) -> Mapping[str, HttpMethod]:
    """Return the methods of a service by name. `audit` hears of the calls, and `meters` measure them."""
    return {
        method.name: HttpMethod(
            method,
            handlers[method.name],
            authenticate,
            MethodAudit(audit, method) if audit else None,
            meters.meter_of(_NAME, f"{service.full_name}/{method.name}") if meters else None,
        )
        for method in service.methods
    }


async def _refuse(_: bytes) -> None:
    raise AssertionError("a unary method has sent a message of a stream")
