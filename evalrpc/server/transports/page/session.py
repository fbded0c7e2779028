"""`/v1/session`: a browser exchanges its token for a cookie, which scripts can't read, and which ends with the token.

The cookie has the token itself, so the server keeps nothing, and revoking the token ends the session. A browser sends it only
for pages of this server (SameSite=Strict), and what pages of others send is refused anyway (`http/gate.py`).
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from evalrpc.clock import Clock
from evalrpc.errors import InvalidRequestError, UnauthenticatedError
from evalrpc.server.auth.authenticator import Authenticate
from evalrpc.server.call import Principal
from evalrpc.server.sign_in import NOT_SIGNED_IN
from evalrpc.server.transports.http.errors import refuse_method
from evalrpc.server.transports.http.request import INERT, SESSION_COOKIE, HttpRequest

PATH: Final = "/v1/session"

_MAX_BODY_BYTES: Final = 64 * 1024
_TYPE: Final = "application/json"


class SessionEndpoint:
    """Answers there. `is_tls`: whether the cookie is only for TLS."""

    def __init__(self, authenticate: Authenticate, clock: Clock, *, is_tls: bool) -> None:
        self._authenticate = authenticate
        self._clock = clock
        self._attributes = "; HttpOnly; SameSite=Strict; Path=/" + ("; Secure" if is_tls else "")

    async def answer(self, request: HttpRequest) -> None:
        """Say whether there is a session (GET), begin one (POST, with the token) or end it (DELETE). Whom a proxy or a
        certificate signs in has none.

        Raises UnauthenticatedError, InvalidRequestError.
        """
        match request.method:
            case "GET":
                body = json.dumps({"hasSession": bool(request.session_token)}).encode()
                await request.respond(200, ((b"content-type", _TYPE.encode()), *INERT), body)
            case "POST":
                token = await _token_of(request)
                await self._answer(request, token, await self._max_age_of(request, token))
            case "DELETE":
                await self._answer(request, "", 0)
            case _:
                await refuse_method(request, "DELETE, GET, POST")

    async def _max_age_of(self, request: HttpRequest, token: str) -> int | None:
        """Return for how many seconds a token holds; None: until it is revoked. Raises UnauthenticatedError."""
        found = self._authenticate(_Bearer(request, token))
        principal = found if isinstance(found, Principal) else await found
        if principal.sign_in is NOT_SIGNED_IN:
            raise UnauthenticatedError("nobody has to sign in here, and there are no tokens")
        expires_at_ns = principal.sign_in.expires_at_ns
        return None if expires_at_ns is None else max(0, (expires_at_ns - self._clock.now().ToNanoseconds()) // 10**9)

    async def _answer(self, request: HttpRequest, token: str, max_age_seconds: int | None) -> None:
        age = "" if max_age_seconds is None else f"; Max-Age={max_age_seconds}"
        cookie = f"{SESSION_COOKIE}={token}{age}{self._attributes}"
        await request.respond(204, ((b"set-cookie", cookie.encode("latin-1")), *INERT))


class _Bearer:
    """What a caller with this token would present."""

    def __init__(self, request: HttpRequest, token: str) -> None:
        self.auth_context = request.auth_context
        self.peer = request.peer
        self._token = token

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        """Return the token as a header."""
        return [("authorization", f"Bearer {self._token}")]


async def _token_of(request: HttpRequest) -> str:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _TYPE:
        raise InvalidRequestError(f"the header `Content-Type` must be {_TYPE}")
    try:
        body = json.loads(await request.body(_MAX_BODY_BYTES))
    except (ValueError, RecursionError):
        body = None
    token = body.get("token") if isinstance(body, Mapping) else None
    if not isinstance(token, str) or not token:
        raise InvalidRequestError('the body must be JSON such as {"token": "..."}')
    if not (token.isascii() and token.isprintable()) or set(token) & set(' ;,"\\'):
        raise UnauthenticatedError("the token has characters that no token has")
    return token
