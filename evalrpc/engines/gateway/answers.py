"""The questions of one route: answered from the recording, or asked, recorded and given to whoever waits.

Answers to the same body are as good as each other. So a question is not bound to the client that asked it: its answer goes to
the client that has waited longest with that body. A client that has gone leaves its question to the next one with that body,
such as its own second try, or to the recording.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from evalrpc.engines.gateway.asker import Asker
from evalrpc.engines.gateway.budget import ByteBudget, Reservation
from evalrpc.engines.gateway.contract import Counters
from evalrpc.engines.gateway.counting import Facts, UnusableAnswerError, read_answer, read_stream
from evalrpc.engines.gateway.questions import Question
from evalrpc.engines.gateway.recording import RecordedAnswer, Recording, Recordings, UnusableRecordingError
from evalrpc.engines.gateway.replies import Reply
from evalrpc.engines.gateway.upstream import OutgoingRequest, UpstreamAnswer, UpstreamError, header

MAX_RECORDED_BYTES: Final = 8 << 20
"""Larger answers are passed on as they come, and not recorded."""

_UNBUDGETED_BYTES: Final = 64 << 10
_MAX_FAILURES: Final = 100_000
_EVENT_STREAM: Final = b"text/event-stream"
_STREAM_ENDS: Final = (b"[DONE]", b"response.completed", b"response.incomplete", b"message_stop")
"""What the last piece of a stream has: harnesses take the answer for whole then."""

_LOGGER: Final = logging.getLogger(__name__)


class Exchange(Protocol):
    """A request of a harness, which is to be answered."""

    held: Reservation
    """The bytes of its body."""

    def reply(self, reply: Reply) -> None:
        """Answer it."""

    def start(self, status: int, content_type: bytes) -> None:
        """Begin to answer it piece by piece."""

    def write(self, data: bytes) -> None:
        """Send a piece."""

    async def drain(self) -> None:
        """Wait until the client has taken nearly all that was sent."""

    def end(self) -> None:
        """Say that the answer is whole."""

    def abort(self) -> None:
        """Break off the answer."""


class _Given(NamedTuple):
    """An answer for one client."""

    reply: Reply
    facts: Facts | None
    """Of an answer of the model; None: it is an error."""
    held: Reservation
    """The bytes of it."""


@dataclass
class _Client:
    """A client that waits for an answer."""

    exchange: Exchange
    answered: asyncio.Future[Reservation | None]
    """The bytes of its answer, once all of it was sent; None: it was given piece by piece."""

    @property
    def has_gone(self) -> bool:
        """Whether it does not wait any more."""
        return self.answered.cancelled()

    def start(self, answer: UpstreamAnswer) -> None:
        """Begin to give it an answer piece by piece."""
        if not self.has_gone:
            self.exchange.start(answer.status, header(answer.headers, b"content-type"))

    async def write(self, data: bytes) -> None:
        """Send a piece, unless it has gone. Returns once it keeps up."""
        if not self.has_gone:
            self.exchange.write(data)
            await self.exchange.drain()

    def finish(self, data: bytes) -> None:
        """Send the last piece, and say that the answer is whole."""
        self.exchange.write(data)
        self.exchange.end()
        self.answered.set_result(None)

    def break_off(self) -> None:
        """Say that the answer is not whole."""
        if not self.has_gone:
            self.exchange.abort()
            self.answered.set_result(None)


@dataclass
class _SameBody:
    """The clients that wait with one body, in their order, and how many questions with it are being asked: at least one for
    each client, and more where clients have gone."""

    clients: deque[_Client] = field(default_factory=deque)
    asked: int = 0


@dataclass
class _Asked:
    """A question that is being asked."""

    question: Question
    request: OutgoingRequest
    held: Reservation
    same: _SameBody
    is_answered: bool = False
    """Whether its answer has been given to a client, or nobody waited for it."""

    def next_client(self) -> _Client | None:
        """End the question, and return the client that gets its answer: the one that has waited longest. None: all have gone,
        or it has ended before."""
        if self.is_answered:
            return None
        self.is_answered = True
        self.same.asked -= 1
        return self.same.clients.popleft() if self.same.clients else None


class Answers:
    """Answers the questions of a route."""

    def __init__(self, asker: Asker, recordings: Recordings, budget: ByteBudget, counters: Counters) -> None:
        """Open the recording. `budget` is for the bytes of answers. `counters` go on where the attempt was before this gateway
        was started."""
        route = asker.route
        self._asker = asker
        self._recordings = recordings
        self._budget = budget
        self._counters = counters
        self._same: dict[bytes, _SameBody] = {}
        self._failed: set[bytes] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempt = 0
        self._recording = recordings.acquire(Path(route.recording)) if route.recording else None
        if self._recording is not None:
            self._resume(self._recording)
        lenders = ((path, recordings.acquire_existing(path)) for path in map(Path, route.lenders))
        self._lenders = [(path, lender) for path, lender in lenders if lender is not None]

    @property
    def recording_error(self) -> str:
        """Why answers can't be recorded; empty: they can, or need not be."""
        if self._recording is None:
            return "the recording can't be opened" if self._asker.route.recording else ""
        return self._recording.error

    async def answer(self, exchange: Exchange, question: Question, request: OutgoingRequest) -> None:
        """Answer a question. May be cancelled once the client has gone; what an engine answers is recorded all the same."""
        held = await self._replay(exchange, question) or await self._wait(exchange, question, request)
        try:
            await exchange.drain()
        finally:
            if held is not None:
                held.release()

    async def close(self, finish_seconds: float) -> None:
        """Wait for the questions that are being asked, cancel those that take longer, and close the recording."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=finish_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._recording is not None:
            self._recordings.release(Path(self._asker.route.recording))
        for path, _ in self._lenders:
            self._recordings.release(path)

    # From the recording.

    async def _replay(self, exchange: Exchange, question: Question) -> Reservation | None:
        """Answer from the recording, and return the bytes of the answer; None: the question has to be asked."""
        recording = self._recording
        if recording is None:
            return None
        found = recording.next(question.key, self._attempt) or self._borrowed(question, recording)
        if found is None or not recording.take(found.row, self._attempt):  # one not noted as taken would be given again
            return None
        held = Reservation(self._budget)
        if found.size > _UNBUDGETED_BYTES:
            held = await self._make_room(found, recording)
        body = recording.body(found.row)
        if body is None:
            held.release()
            return None
        self._count(question, found.facts, replayed=found.replayed)
        self._reply(exchange, Reply(200, found.content_type.encode("latin-1"), body))
        return held

    def _borrowed(self, question: Question, recording: Recording) -> RecordedAnswer | None:
        """Copy the answer that another job was given, if the engine would give the same again."""
        if not self._lenders or not question.is_repeatable:
            return None
        for _, lender in self._lenders:
            found = lender.first(question.key)
            body = lender.body(found.row) if found else None
            if found and body is not None:
                recording.add(question.key, self._attempt, body, found.content_type, found.facts, taken=False, own=False)
                return recording.next(question.key, self._attempt)
        return None

    async def _make_room(self, found: RecordedAnswer, recording: Recording) -> Reservation:
        """Wait until there is room for a large answer in memory. If the client goes, the answer is the next one's."""
        try:
            await self._budget.reserve(found.size)
        except asyncio.CancelledError:
            recording.give_back(found.row)
            raise
        return Reservation(self._budget, found.size)

    # From an engine.

    async def _wait(self, exchange: Exchange, question: Question, request: OutgoingRequest) -> Reservation | None:
        """Have an engine asked, and wait until the client was given an answer."""
        client = _Client(exchange, asyncio.get_running_loop().create_future())
        # A stream goes to the client that asked for it, while it comes.
        same = _SameBody() if question.is_stream else self._same.setdefault(question.key, _SameBody())
        same.clients.append(client)
        if same.asked < len(same.clients):
            same.asked += 1
            self._spawn(self._ask(_Asked(question, request, exchange.held.share(), same)))
        try:
            return await client.answered
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                same.clients.remove(client)
            if client.answered.done() and not client.answered.cancelled() and (held := client.answered.result()):
                held.release()
            raise

    async def _ask(self, asked: _Asked) -> None:
        receive = self._receive_stream if asked.question.is_stream else self._receive
        try:
            given = await self._asker.ask(asked.request, lambda answer: receive(answer, asked))
            if isinstance(given, Reply):
                given = _Given(given, None, Reservation(self._budget))
            if given is not None:
                self._deliver(asked, given)
        except Exception as error:
            client = asked.next_client()
            if client is None or client.has_gone:
                raise
            client.answered.set_exception(error)
        finally:
            asked.next_client()
            asked.held.release()
            if not asked.same.asked and self._same.get(asked.question.key) is asked.same:
                del self._same[asked.question.key]

    async def _receive(self, answer: UpstreamAnswer, asked: _Asked) -> _Given | None:
        """Return a whole answer; None: it was passed on as it came, since it is too large. Raises UpstreamError,
        UnusableAnswerError."""
        held = Reservation(self._budget)
        chunks: list[bytes] = []
        size = 0
        try:
            while chunk := await answer.chunk():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_RECORDED_BYTES or (size > _UNBUDGETED_BYTES and not held.grow(len(chunk))):
                    held.release()
                    await self._pass_on(answer, asked, chunks, None)
                    return None
            content_type = header(answer.headers, b"content-type")
            body = b"".join(chunks)
            facts = _facts(body, content_type, asked.question) if answer.status == 200 else None
        except BaseException:
            held.release()
            raise
        retry_after = header(answer.headers, b"retry-after")
        return _Given(Reply(answer.status, content_type, body, retry_after), facts, held)

    async def _receive_stream(self, answer: UpstreamAnswer, asked: _Asked) -> _Given | None:
        """Pass on a stream as it comes, with a copy for the recording. Anything else is received as a whole."""
        is_stream = answer.status == 200 and header(answer.headers, b"content-type").startswith(_EVENT_STREAM)
        if not is_stream:
            return await self._receive(answer, asked)
        copy = _Copy(self._budget)
        try:
            await self._pass_on(answer, asked, [], copy)
        finally:
            copy.release()
        return None

    async def _pass_on(self, answer: UpstreamAnswer, asked: _Asked, begun: list[bytes], copy: "_Copy | None") -> None:
        """Give an answer to the next client while it comes. `begun` has come already. The end is sent once all is recorded.

        When the client goes, the rest is only for the copy.
        """
        client = asked.next_client()
        if client is None:
            return
        end = b""
        try:
            client.start(answer)
            for chunk in begun:
                await client.write(chunk)
            while chunk := await answer.chunk():
                if copy is not None:
                    copy.add(chunk)
                if end or any(mark in chunk for mark in _STREAM_ENDS):
                    end += chunk
                else:
                    await client.write(chunk)
                if client.has_gone and (copy is None or not copy.is_whole):
                    return
            facts = copy.facts(asked.question) if copy is not None and copy.is_whole else Facts()
        except (UpstreamError, UnusableAnswerError):
            self._note_failure(asked.question)
            client.break_off()
            return
        body = copy.body() if copy is not None and copy.is_whole else None
        self._record(asked.question, header(answer.headers, b"content-type"), body, facts, taken=not client.has_gone)
        if not client.has_gone:
            self._counters.last_status = answer.status
            self._count(asked.question, facts, replayed=False)
            client.finish(end)

    def _deliver(self, asked: _Asked, given: _Given) -> None:
        """Record an answer, and give it to the next client."""
        client = asked.next_client()
        taken = client is not None and not client.has_gone
        if given.facts is not None:
            self._record(asked.question, given.reply.content_type, given.reply.body, given.facts, taken=taken)
        if client is None or client.has_gone:
            given.held.release()
            return
        if given.facts is not None:
            self._count(asked.question, given.facts, replayed=False)
        else:
            self._note_failure(asked.question)
        self._reply(client.exchange, given.reply)
        client.answered.set_result(given.held)

    def _record(self, question: Question, content_type: bytes, body: bytes | None, facts: Facts, *, taken: bool) -> None:
        """Record an answer, which is impossible without its body."""
        row = 0
        if self._recording is not None and body is not None:
            text = content_type.decode("latin-1")
            row = self._recording.add(question.key, self._attempt, body, text, facts, taken=taken)
        if not row and self._asker.route.recording:
            self._counters.unrecorded += 1

    def _reply(self, exchange: Exchange, reply: Reply) -> None:
        self._counters.last_status = reply.status
        exchange.reply(reply)

    # What is counted.

    def _resume(self, recording: Recording) -> None:
        """Go on where the attempt was before this gateway was started."""
        recording.max_bytes = self._asker.route.max_recording_bytes
        try:
            resumed = recording.resume(self._asker.route.attempt)
        except UnusableRecordingError as error:
            _LOGGER.error("a recording can't be used", extra={"job_id": self._asker.route.job_id, "reason": str(error)})  # noqa: TRY400
            self._recordings.release(Path(self._asker.route.recording))
            self._recording = None
            return
        self._attempt = resumed.attempt
        self._failed = resumed.failed
        counters = self._counters
        counters.answered, counters.replayed = resumed.answered, resumed.replayed
        counters.truncated, counters.empty = resumed.truncated, resumed.empty
        counters.prompt_tokens, counters.completion_tokens = resumed.prompt_tokens, resumed.completion_tokens
        counters.failed = len(self._failed)

    def _count(self, question: Question, facts: Facts, *, replayed: bool) -> None:
        counters = self._counters
        counters.answered += 1
        counters.replayed += replayed
        counters.truncated += facts.truncated
        counters.empty += facts.empty
        counters.prompt_tokens += facts.prompt_tokens
        counters.completion_tokens += facts.completion_tokens
        if question.key in self._failed:
            self._failed.discard(question.key)
            counters.failed = len(self._failed)
            if self._recording is not None:
                self._recording.clear_failure(question.key, self._attempt)

    def _note_failure(self, question: Question) -> None:
        if question.key not in self._failed and len(self._failed) < _MAX_FAILURES:
            self._failed.add(question.key)
            self._counters.failed = len(self._failed)
            if self._recording is not None:
                self._recording.note_failure(question.key, self._attempt)

    def _spawn(self, asking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(asking)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._counters.gateway_failures += 1
            _LOGGER.error("a question ended with an error", exc_info=error, extra={"job_id": self._asker.route.job_id})


class _Copy:
    """What has come of a stream, as far as there is room for it."""

    def __init__(self, budget: ByteBudget) -> None:
        self._held = Reservation(budget)
        self._chunks: list[bytes] = []
        self._size = 0
        self.is_whole = True

    def add(self, chunk: bytes) -> None:
        """Keep a piece. Where there is no room for it, nothing is kept."""
        if not self.is_whole:
            return
        self._size += len(chunk)
        self._chunks.append(chunk)
        if self._size > MAX_RECORDED_BYTES or (self._size > _UNBUDGETED_BYTES and not self._held.grow(len(chunk))):
            self.is_whole = False
            self._chunks.clear()

    def body(self) -> bytes:
        """Return all that was kept."""
        return b"".join(self._chunks)

    def facts(self, question: Question) -> Facts:
        """Return the facts of the stream. Raises UnusableAnswerError."""
        return _counted(read_stream(self.body()), question)

    def release(self) -> None:
        """Give up the copy."""
        self._held.release()


def _facts(body: bytes, content_type: bytes, question: Question) -> Facts:
    """Return the facts of a whole answer. Raises UnusableAnswerError."""
    return _counted((read_stream if content_type.startswith(_EVENT_STREAM) else read_answer)(body), question)


def _counted(facts: Facts, question: Question) -> Facts:
    """Return the facts without those that say nothing for the kind of question."""
    if (facts.truncated or facts.empty) and question.is_log_likelihood:
        return facts._replace(truncated=False, empty=False)
    return facts
