"""What uvicorn calls for each request: lets it in, finds who answers at its path, and turns what fails into an answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from evalrpc.errors import EvalrpcError, InternalError, NotFoundError
from evalrpc.printable import printable
from evalrpc.server.transports.http.connection import SCOPE_KEY
from evalrpc.server.transports.http.errors import HTTP_STATUS, error_body, error_headers
from evalrpc.server.transports.http.gate import Gate
from evalrpc.server.transports.http.request import HttpRequest
from evalrpc.server.unread import UnreadBytes

Endpoint = Callable[[HttpRequest], Awaitable[None]]
"""Answers a request. Raises EvalrpcError, before it has begun to answer."""

Find = Callable[[HttpRequest], Endpoint | None]
"""Finds who answers at the path of a request; None: nobody of these."""

MAX_BODIES_BYTES: Final = 64 * 1024 * 1024
"""The memory for bodies over 16 KiB, all together. While others wait for room, a client has ten seconds to send its own."""

_TOO_LARGE: Final = "REQUEST_TOO_LARGE"
_CONTENT_TOO_LARGE: Final = 413

_log = logging.getLogger(__name__)


class HttpApplication:
    """The paths at one address. The most frequent ones are in `endpoints`, by path; others are asked in order of `finders`."""

    def __init__(
        self,
        gate: Gate,
        max_body_bytes: int,
        endpoints: Mapping[str, Endpoint],
        *finders: Find,
        bodies: UnreadBytes,
        proxy_token_header: str = "",
    ) -> None:
        """`bodies`: the room for those over 16 KiB, of all addresses together."""
        self._gate = gate
        self._bodies = bodies
        self._proxy_token_header = proxy_token_header
        self._max_body_bytes = max_body_bytes
        self._endpoints = endpoints
        self._finders = finders

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, as ASGI wants it."""
        if scope["type"] != "http":
            return
        request = HttpRequest(scope, receive, send, self._max_body_bytes, self._bodies, self._proxy_token_header)
        connection = scope[SCOPE_KEY]
        connection.begin_call()
        try:
            await self._answer(request)
        except EvalrpcError as error:
            await self._fail(request, error)
        except asyncio.CancelledError:  # the client has left, or the server stops: nobody waits for an answer
            connection.cut_off()
        except Exception:  # noqa: BLE001 - the last resort: nobody else would turn it into an answer
            _log.exception("a bug in answering %s %s", request.method, printable(request.path))
            await self._fail(request, InternalError("the server has a bug; its log has the details"))
        finally:
            request.give_room_back()
            connection.end_call()

    async def _answer(self, request: HttpRequest) -> None:
        self._gate.admit(request)
        if self._gate.is_preflight(request):
            await self._gate.answer_preflight(request)
            return
        endpoint = self._endpoints.get(request.path) or self._find(request)
        if endpoint is None:
            raise NotFoundError(f"there is nothing at {printable(request.path)[:200]}")
        await endpoint(request)

    def _find(self, request: HttpRequest) -> Endpoint | None:
        return next((found for find in self._finders if (found := find(request)) is not None), None)

    async def _fail(self, request: HttpRequest, error: EvalrpcError) -> None:
        if request.is_answered:
            request.connection.cut_off()  # what is cut off is no whole answer
            return
        status = _CONTENT_TOO_LARGE if error.reason == _TOO_LARGE else HTTP_STATUS[error.code]
        await request.respond(status, error_headers(error), error_body(error))
