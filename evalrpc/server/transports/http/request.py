"""A request as the code behind a path sees it, and the answer to it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qsl

from evalrpc.errors import InvalidRequestError, RequestTooLargeError, UnavailableError
from evalrpc.server.limits import SMALL_BYTES
from evalrpc.server.transports.http.connection import SCOPE_KEY, HttpConnection
from evalrpc.server.unread import Hold, UnreadBytes

Headers = Iterable[tuple[bytes, bytes]]

BODY_SECONDS: Final = 30.0
"""How long a client may take for the next part of a body."""

SESSION_COOKIE: Final = "evalrpc_session"
"""The cookie with a browser's token: see `transports/page/session.py`."""

MAX_PARAMETERS: Final = 1000
"""In the query."""

NAMED_TWICE: Final = "is named more than once, and takes one value"
"""What is wrong with a parameter of which all values but one would be passed over."""

_NO_CONTENT: Final = 204

SAFE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
"""What every answer says to browsers: it is what its type says, it is not for pages of others, and nobody hears of its URL."""

INERT: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"cache-control", b"no-store"),
)
"""What an answer says that is no page: nothing in it is run, and nothing is kept."""

_Message = MutableMapping[str, Any]


class HttpRequest:
    """One request. It is what its caller presents, too: see `evalrpc.server.auth.presented`."""

    def __init__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
        max_body_bytes: int,
        bodies: UnreadBytes,
        proxy_token_header: str = "",
    ) -> None:
        """`bodies`: the room for large ones. `proxy_token_header`: the header in which a proxy passes on the token of a
        browser; empty if none does."""
        self.method: Final[str] = scope["method"]
        self.path: Final[str] = scope["path"]
        """Without the query, and with `%2F` and the like as the characters that they mean."""
        self.raw_path: Final[bytes] = scope["raw_path"]
        self.query: Final[bytes] = scope["query_string"]
        self.connection: Final[HttpConnection] = scope[SCOPE_KEY]
        self.answer_headers: Final[list[tuple[bytes, bytes]]] = [*SAFE]
        """What every answer to this request has, besides its own."""
        self.is_answered = False
        """Whether an answer has begun."""
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._bodies = bodies
        self._room: Hold | None = None
        self._proxy_token_header = proxy_token_header
        self._has_more_body = True

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers, with names in small letters. What came several times is joined by commas."""
        found: dict[str, str] = {}
        for name, value in self.invocation_metadata():
            found[name] = f"{found[name]},{value}" if name in found else value
        return found

    @cached_property
    def proxy_token(self) -> str:
        """The token that a proxy has added for a browser; empty if there is none, or the client has sent one itself."""
        wanted = self._proxy_token_header.encode()
        found = [value for name, value in self._headers if name == wanted] if wanted else []
        is_own = any(name == b"authorization" for name, _ in self._headers)
        return found[0].decode("latin-1") if len(found) == 1 and not is_own else ""

    @cached_property
    def session_token(self) -> str:
        """The token of a browser's session; empty if there is none, or another token counts more."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._headers]
        if self.proxy_token or any(name == "authorization" for name, _ in headers):
            return ""
        pairs = (pair.strip().partition("=") for name, value in headers if name == "cookie" for pair in value.split(";"))
        return next((value for name, _, value in pairs if name == SESSION_COOKIE), "")

    @cached_property
    def parameters(self) -> Sequence[tuple[str, str]]:
        """The parameters in the query. Raises InvalidRequestError, also for a body beside them, which nobody would read."""
        if self._expects_body():
            raise InvalidRequestError("this request has a body, which says nothing here: what is asked stands in the query")
        if self.query.count(b"&") >= MAX_PARAMETERS:
            raise InvalidRequestError(f"the query has more than {MAX_PARAMETERS} parameters")
        try:
            return parse_qsl(self.query.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise InvalidRequestError("the query must be NAME=VALUE pairs with & between them, encoded as in any URL") from None

    # What the caller presents.

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        """Return the headers, with names in small letters; and the token of a browser, which its session or a proxy has, as a
        client would send it."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._headers]
        token = self.proxy_token or self.session_token
        return [*headers, ("authorization", f"Bearer {token}")] if token else headers

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what was verified of a client's certificate."""
        return self.connection.auth_context

    def peer(self) -> str:
        """Return the address of the other end, as gRPC writes it."""
        return self.connection.peer

    # Its body.

    async def body(self, max_bytes: int | None = None) -> bytes:
        """Return the body. `max_bytes`: a bound that is lower than that of every request.

        Raises RequestTooLargeError, and UnavailableError for a client that stalls.
        """
        most = min(max_bytes or self._max_body_bytes, self._max_body_bytes)
        length = self.headers.get("content-length", "")
        size_bytes = int(length) if length.isdigit() else most
        if size_bytes > most:
            raise _too_large(most)
        parts: list[bytes] = []
        left = most
        while self._has_more_body:
            if most - left > SMALL_BYTES and self._room is None:
                self._room = await self._bodies.reserve(size_bytes, self.peer)
                self._bodies.begin(self._room)
            message = await self._next_part()
            self._has_more_body = message.get("more_body", False)
            parts.append(message.get("body", b""))
            left -= len(parts[-1])
            if left < 0:
                raise _too_large(most)
        if self._room is not None:
            self._bodies.pause(self._room)
        return b"".join(parts)

    def give_room_back(self) -> None:
        """Give back what the body took, which nobody needs any more."""
        if self._room is not None:
            self._bodies.give_back(self._room)

    async def _next_part(self) -> _Message:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise UnavailableError(f"no more of the body came for {BODY_SECONDS:g} seconds") from None
        if message["type"] != "http.request":
            raise asyncio.CancelledError  # the client has left
        return message

    # The answer.

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer with a whole body, and wait until the client has taken it."""
        length = () if status == _NO_CONTENT else ((b"content-length", b"%d" % len(body)),)
        await self.start(status, [*headers, *length])
        await self._send({"type": "http.response.body", "body": body, "more_body": len(body) > SMALL_BYTES})
        if len(body) > SMALL_BYTES:
            await self.finish()

    async def start(self, status: int, headers: Headers) -> None:
        """Begin an answer, which `write` and `finish` continue."""
        self.is_answered = True
        closing = [(b"connection", b"close")] if self._has_more_body and self._expects_body() else []
        own = [*self.answer_headers, *headers, *closing]
        await self._send({"type": "http.response.start", "status": status, "headers": own})

    async def write(self, part: bytes) -> None:
        """Send a part of the answer, and return when the client has taken it, or if it is small, those before it."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})
        if len(part) > SMALL_BYTES:
            await self.connection.wait_until_taken()

    async def finish(self, part: bytes = b"") -> None:
        """Send the last part of the answer, when the client has taken those before it."""
        await self._send({"type": "http.response.body", "body": part, "more_body": False})

    def _expects_body(self) -> bool:
        """Return whether the client sends a body, which nobody has read."""
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"


def _too_large(most: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"the body of the request is larger than {most} bytes (setting max_request_bytes, and less for JSON)",
        metadata={"setting": "max_request_bytes", "limit": str(most)},
    )
