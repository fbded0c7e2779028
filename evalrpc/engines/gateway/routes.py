"""The engines and routes that the server has declared."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from evalrpc.engines.gateway.answers import Answers, Exchange
from evalrpc.engines.gateway.asker import Asker
from evalrpc.engines.gateway.budget import ByteBudget
from evalrpc.engines.gateway.contract import HOLD_SECONDS, Counters, Engine, Lender, Replica, Route, RouteStatus
from evalrpc.engines.gateway.engine_queue import EngineQueue
from evalrpc.engines.gateway.plain_upstream import PlainUpstream
from evalrpc.engines.gateway.questions import BadBodyError, Question, is_passed, is_question, meant, part_of
from evalrpc.engines.gateway.recording import Recordings
from evalrpc.engines.gateway.replies import Reply, error_reply
from evalrpc.engines.gateway.upstream import (
    Headers,
    OutgoingRequest,
    Upstream,
    UpstreamAnswer,
    UpstreamError,
    header,
    parse_address,
)

_LOGGER: Final = logging.getLogger(__name__)

_FORWARDED: Final = frozenset(
    {
        *(b"accept", b"content-type", b"user-agent", b"traceparent", b"tracestate"),
        *(b"anthropic-version", b"anthropic-beta", b"openai-beta"),
    }
)
"""The headers that an engine gets. Above all, no credentials of the client."""

_MIN_TOKEN_CHARACTERS: Final = 22
"""128 bits, as `secrets.token_urlsafe` writes them."""

_TOKEN: Final = re.compile(rf"[A-Za-z0-9_-]{{{_MIN_TOKEN_CHARACTERS},}}")


class RouteHandler:
    """What has been declared of a route, and what becomes of its requests."""

    def __init__(self, route: Route, engines: "Engines", recordings: Recordings, answer_bytes: ByteBudget) -> None:
        self.route = route
        self._counters = Counters()
        self._engines = engines
        self._asker = Asker(route, lambda: engines.find(self.route.engine), self._counters)
        self._answers = Answers(self._asker, recordings, answer_bytes, self._counters)
        self._exchanges: set[Exchange] = set()

    def update(self, route: Route) -> None:
        """Take over what is said of the route now. Its recording and its attempt stay."""
        self.route = self._asker.route = route
        self._answers.bound_recording()

    def counters(self) -> Counters:
        """Return what has become of its requests so far."""
        return replace(self._counters, recording_error=self._answers.recording_error, parts=self._answers.parts())

    async def handle(self, exchange: Exchange, method: bytes, target: str, headers: Headers, body: bytes) -> None:
        """Answer a request. It ends with the route."""
        self._exchanges.add(exchange)
        try:
            await self._handle(exchange, method, target, headers, body)
        finally:
            self._exchanges.discard(exchange)

    async def _handle(self, exchange: Exchange, method: bytes, target: str, headers: Headers, body: bytes) -> None:
        part, target = part_of(target)
        target = meant(target)
        path = target.partition("?")[0]
        sent = tuple(each for each in headers if each[0] in _FORWARDED)
        if is_question(method, path):
            await self._ask(exchange, target, sent, body, part)
        elif is_passed(method, path):
            await self._pass_on(exchange, OutgoingRequest(method, target, sent, body))
        else:
            exchange.reply(error_reply(404, f"{method.decode()} {path} is not passed on to engines"))

    def note_gateway_failure(self) -> None:
        """Note that a request failed through a fault of the gateway itself."""
        self._counters.gateway_failures += 1

    async def close(self, finish_seconds: float) -> None:
        """End the requests, then the questions, then the recording."""
        for exchange in self._exchanges:
            exchange.abort()
        await self._answers.close(finish_seconds)

    async def _ask(self, exchange: Exchange, target: str, headers: Headers, body: bytes, part: str) -> None:
        engine, _ = self._engines.find(self.route.engine)
        try:
            question = Question(target, body, engine, self.route.key_prefix, part)
        except BadBodyError as error:
            exchange.reply(error_reply(400, str(error)))
            return
        await self._answers.answer(exchange, question, OutgoingRequest(b"POST", target, headers, question.body))

    async def _pass_on(self, exchange: Exchange, request: OutgoingRequest) -> None:
        async def receive(answer: UpstreamAnswer) -> None:
            self._counters.last_status = answer.status
            exchange.start(answer.status, header(answer.headers, b"content-type"))
            try:
                while chunk := await answer.chunk():
                    exchange.write(chunk)
                    await exchange.drain()
            except UpstreamError:
                exchange.abort()
            else:
                exchange.end()

        reply = await self._asker.ask(request, receive)
        if isinstance(reply, Reply):
            self._counters.last_status = reply.status
            exchange.reply(reply)


class Engines:
    """The engines, each with its queue."""

    def __init__(self) -> None:
        self._engines: dict[str, tuple[Engine, EngineQueue]] = {}

    def __iter__(self) -> Iterator[Engine]:
        return (engine for engine, _ in self._engines.values())

    def find(self, name: str) -> tuple[Engine, EngineQueue]:
        """Return an engine as it is declared now, and its queue."""
        return self._engines[name]

    def __contains__(self, name: str) -> bool:
        return name in self._engines

    def put(self, engine: Engine) -> None:
        """Add an engine, or take over what is said of it now. Raises ValueError."""
        _check_engine(engine)
        queue = self._engines[engine.name][1] if engine.name in self else EngineQueue(_connect)
        self._engines[engine.name] = engine, queue
        queue.set_replicas(engine.replicas)

    def in_flight(self, name: str, url: str) -> int:
        """Return how many requests the replica of an engine at an address is answering; 0 without such an engine."""
        return self._engines[name][1].in_flight(url) if name in self else 0

    def remove(self, name: str) -> None:
        """Forget an engine that no route needs."""
        if engine := self._engines.pop(name, None):
            engine[1].set_replicas(())


class Routes:
    """The routes by their tokens."""

    def __init__(self, answer_bytes: ByteBudget) -> None:
        """`answer_bytes`: for the answers of all routes."""
        self.engines = Engines()
        self.declared = False
        """Whether the server has declared all routes since this gateway was started."""
        self._answer_bytes = answer_bytes
        self._recordings = Recordings()
        self._handlers: dict[bytes, RouteHandler] = {}
        self._changed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    async def find(self, token: str) -> RouteHandler | None:
        """Return the route of a token; None: there is none.

        A gateway that has just been started knows none yet. So it waits until the server has declared them, for a time.
        """
        deadline = time.monotonic() + HOLD_SECONDS
        while (handler := self._handlers.get(_digest(token))) is None and not self.declared:
            changed = self._changed
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await changed.wait()
            except TimeoutError:
                return None
        return handler

    def statuses(self) -> tuple[RouteStatus, ...]:
        """Return all routes with their counters."""
        return tuple(RouteStatus(each.route, each.counters()) for each in self._handlers.values())

    def declare(self, engines: Iterable[Engine], routes: Iterable[Route]) -> None:
        """Have these engines and routes, and no others. Raises ValueError."""
        engines, routes = tuple(engines), tuple(routes)
        names = {each.name for each in engines}
        for engine in engines:
            _check_engine(engine)
        for route in routes:
            _check_route(route, names)
        for engine in engines:
            self.engines.put(engine)
        tokens = {_digest(each.token) for each in routes}
        for digest in self._handlers.keys() - tokens:
            self._end(digest, 0.0)
        for route in routes:
            self.put(route)
        for engine in tuple(self.engines):
            if engine.name not in names:
                self.engines.remove(engine.name)
        self.declared = True
        self._tell()

    def put(self, route: Route) -> None:
        """Add a route, or take over what is said of it now. Raises ValueError."""
        _check_route(route, self.engines)
        digest = _digest(route.token)
        handler = self._handlers.get(digest)
        if handler is not None and _recorded_by(handler.route) == _recorded_by(route):
            handler.update(route)
            return
        if handler is not None:
            self._end(digest, 0.0)
        self._handlers[digest] = RouteHandler(route, self.engines, self._recordings, self._answer_bytes)
        _LOGGER.info("a route begins", extra={"job_id": route.job_id, "attempt": route.attempt, "engine": route.engine})
        self._tell()

    def counters(self, token: str) -> Counters | None:
        """Return the counters of a route; None: there is none."""
        handler = self._handlers.get(_digest(token))
        return handler.counters() if handler else None

    def remove(self, token: str, finish_seconds: float) -> Counters | None:
        """End a route, and return its counters; None: there is none."""
        handler = self._handlers.get(_digest(token))
        if handler is None:
            return None
        self._end(_digest(token), finish_seconds)
        return handler.counters()

    def remove_engine(self, name: str) -> None:
        """Forget an engine. Raises ValueError while routes need it."""
        if any(each.route.engine == name for each in self._handlers.values()):
            raise ValueError(f"there are routes to the engine {name!r}: remove them first")
        self.engines.remove(name)

    async def close(self) -> None:
        """End all routes."""
        for digest in tuple(self._handlers):
            self._end(digest, 0.0)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _end(self, digest: bytes, finish_seconds: float) -> None:
        handler = self._handlers.pop(digest)
        task = asyncio.get_running_loop().create_task(handler.close(finish_seconds))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        _LOGGER.info("a route ends", extra={"job_id": handler.route.job_id, "attempt": handler.route.attempt})

    def _tell(self) -> None:
        """Wake the requests whose tokens were not known."""
        self._changed.set()
        self._changed = asyncio.Event()


def _digest(token: str) -> bytes:
    """Return what a token is found by: how long the search for it takes tells nothing of the tokens that there are."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _recorded_by(route: Route) -> tuple[str, str, tuple[Lender, ...]]:
    return route.attempt, route.recording, route.lenders


def _connect(replica: Replica) -> Upstream:
    address = parse_address(replica.url)
    if not address.secure:
        return PlainUpstream(address)
    from evalrpc.engines.gateway.secure_upstream import SecureUpstream  # which few need, and which takes long to load

    return SecureUpstream(address)


def _check_engine(engine: Engine) -> None:
    for replica in engine.replicas:
        if parse_address(replica.url).secure and find_spec("aiohttp") is None:
            raise ValueError("addresses with https need the extra `endpoints`: pip install 'evalrpc[endpoints]'")
        if replica.max_in_flight < 1:
            raise ValueError(f"max_in_flight of a replica of {engine.name!r} is below 1")
    if engine.answer_seconds <= 0:
        raise ValueError(f"answer_seconds of {engine.name!r} is not above 0")
    if not all(text.isascii() and text.isprintable() for text in (engine.key, engine.key_header)):
        raise ValueError(f"the key of {engine.name!r}, or its header, has characters that no header has")


def _check_route(route: Route, engines: "Engines | set[str]") -> None:
    if (
        len(route.token) < _MIN_TOKEN_CHARACTERS
        or not route.token.isascii()
        or not route.token.replace("-", "").replace("_", "").isalnum()
    ):
        raise ValueError(f"a token has at least {_MIN_TOKEN_CHARACTERS} letters, digits, - and _")
    if route.engine not in engines:
        raise ValueError(f"there is no engine {route.engine!r}: put it first")
    if route.max_tries < 1:
        raise ValueError("max_tries is below 1")
