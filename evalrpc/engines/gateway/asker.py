"""Asks an engine until it answers."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, TypeVar

from evalrpc.engines.gateway.contract import Counters, Engine, Route
from evalrpc.engines.gateway.counting import UnusableAnswerError
from evalrpc.engines.gateway.engine_queue import EngineAwayError, EngineQueue, ReplicaQueue
from evalrpc.engines.gateway.replies import Reply, error_reply
from evalrpc.engines.gateway.upstream import (
    Headers,
    NotConnectedError,
    OutgoingRequest,
    UpstreamAnswer,
    UpstreamError,
    header,
    is_listened_at,
    parse_address,
)

_TOO_MANY: Final = frozenset({429, 503, 529})
"""What engines answer while they have no room, or are not ready."""

_FIRST_ERROR: Final = 400
_FAILURES: Final = frozenset({408, 500, 502, 504})
_MAX_ERROR_BYTES: Final = 64 << 10
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 8.0
_LONGEST_REFUSAL_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 10.0

T = TypeVar("T")
Receive = Callable[[UpstreamAnswer], Awaitable[T]]
"""Takes an answer that is no error of the kind that passes. Raises UpstreamError or UnusableAnswerError if it has to be asked
for again."""


class _Failed(NamedTuple):
    """A try that has to be repeated."""

    reply: Reply
    """What the harness gets if it was the last one."""
    asked: bool
    """Whether the engine has seen the request."""
    counts: bool
    """Whether it counts as a try: the engine has failed on it."""
    broke_off: ReplicaQueue | None = None
    """The replica, if the connection to it ended before the answer did, as when an engine is killed."""


class Asker:
    """Asks the engine of a route: when that has room, and again when it fails."""

    def __init__(self, route: Route, engine: Callable[[], tuple[Engine, EngineQueue]], counters: Counters) -> None:
        self.route = route
        self._engine = engine
        self._counters = counters

    async def ask(self, request: OutgoingRequest, receive: Receive[T]) -> T | Reply:
        """Return what `receive` makes of the answer, or an error for the harness when tries or time are used up."""
        deadline = time.monotonic() + self.route.hold_seconds
        reply: Reply | None = None
        tries = 0
        breaking: set[ReplicaQueue] = set()
        while True:
            try:
                result = await self._try(request, receive, deadline)
            except EngineAwayError:
                self._counters.unavailable += 1
                return reply or error_reply(503, "no engine could answer in time")
            if not isinstance(result, _Failed):
                return result
            reply = result.reply
            tries += result.counts
            if result.broke_off:
                breaking.add(result.broke_off)
            if tries >= self.route.max_tries:
                self._counters.unavailable += await _is_away(breaking)
                return reply
            self._counters.retried += result.asked
            if result.counts:
                await asyncio.sleep(_pause_seconds(tries))

    async def _try(self, request: OutgoingRequest, receive: Receive[T], deadline: float) -> T | Reply | _Failed:
        """Ask once, when the engine has room. Raises EngineAwayError past the deadline."""
        engine, queue = self._engine()
        self._counters.held += 1
        try:
            replica = await queue.turn(self.route.token, deadline)
        finally:
            self._counters.held -= 1
        self._counters.in_flight += 1
        try:
            return await self._ask_replica(replica, engine, request, receive)
        finally:
            self._counters.in_flight -= 1
            queue.leave(replica)

    async def _ask_replica(
        self, replica: ReplicaQueue, engine: Engine, request: OutgoingRequest, receive: Receive[T]
    ) -> T | Reply | _Failed:
        if engine.key:
            request = request._replace(headers=(*request.headers, _credentials(engine)))
        try:
            answer = await replica.upstream.ask(request, engine.answer_seconds)
            try:
                if answer.status in _TOO_MANY or answer.status in _FAILURES:
                    return await _failed(replica, answer, engine.key)
                if engine.key and answer.status >= _FIRST_ERROR:
                    return await _error(answer, engine.key)
                result = await receive(answer)
            finally:
                answer.close()
        except NotConnectedError as error:
            replica.lost()
            return _Failed(error_reply(503, str(error)), asked=False, counts=False)
        except (UpstreamError, UnusableAnswerError) as error:
            broke_off = replica if isinstance(error, UpstreamError) else None
            return _Failed(error_reply(502, str(error)), asked=True, counts=True, broke_off=broke_off)
        replica.succeeded()
        return result


async def _is_away(breaking: Iterable[ReplicaQueue]) -> bool:
    """Return whether a replica that broke off has ended, which is not the question's fault. One that has not can't bear it."""
    return not all([await is_listened_at(parse_address(each.replica.url), _CONNECT_SECONDS) for each in breaking])


async def _failed(replica: ReplicaQueue, answer: UpstreamAnswer, key: str) -> _Failed:
    refused = answer.status in _TOO_MANY
    if refused:
        replica.refused(_retry_after(answer.headers))
    return _Failed(await _error(answer, key), asked=True, counts=not refused)


async def _error(answer: UpstreamAnswer, key: str) -> Reply:
    """Return an error for the harness, without the key: some servers quote what they refuse."""
    body = b""
    while (chunk := await answer.chunk()) and len(body) < _MAX_ERROR_BYTES:
        body += chunk
    if key:
        body = body.replace(key.encode(), b"*" * len(key))
    return Reply(answer.status, header(answer.headers, b"content-type"), body, header(answer.headers, b"retry-after"))


def _retry_after(headers: Headers) -> float | None:
    value = header(headers, b"retry-after")
    return (
        min(float(value), _LONGEST_REFUSAL_SECONDS) if value.isdigit() else None
    )  # a date is not worth its parsing: the next try finds out


def _credentials(engine: Engine) -> tuple[bytes, bytes]:
    value = f"Bearer {engine.key}" if engine.key_header == "authorization" else engine.key
    return engine.key_header.encode(), value.encode()


def _pause_seconds(tries: int) -> float:
    longest = min(_FIRST_PAUSE_SECONDS * 2**tries, _LONGEST_PAUSE_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311 - so that requests that failed together don't come together again
