"""The questions of one route: answered from the recording, or asked, recorded and given to whoever waits.

Answers to the same body are as good as each other. So a question is not bound to the client that asked it: its answer goes to
the client that has waited longest with that body. A client that has gone leaves its question to the next one with that body,
such as its own second try, or to the recording.
"""

import asyncio
import logging
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast

from evalrpc.engines.gateway.asker import Asker
from evalrpc.engines.gateway.budget import ByteBudget, Reservation
from evalrpc.engines.gateway.contract import Counters, PartCounters
from evalrpc.engines.gateway.counting import Facts, UnusableAnswerError, read_answer, read_stream
from evalrpc.engines.gateway.questions import Question
from evalrpc.engines.gateway.recording import RecordedAnswer, Recording, Recordings, UnusableRecordingError
from evalrpc.engines.gateway.replies import Reply
from evalrpc.engines.gateway.upstream import OutgoingRequest, UpstreamAnswer, UpstreamError, header

MAX_RECORDED_BYTES: Final = 8 << 20
"""Larger answers are passed on as they come, and not recorded."""

_UNBUDGETED_BYTES: Final = 64 << 10
_MAX_FAILURES: Final = 100_000
_MAX_PARTS: Final = 10_000
_EVENT_STREAM: Final = b"text/event-stream"
_STREAM_ENDS: Final = (b"[DONE]", b"response.completed", b"response.incomplete", b"message_stop")
"""What the last piece of a stream has: harnesses take the answer for whole then."""

_LOGGER: Final = logging.getLogger(__name__)


class Exchange(Protocol):
    """A request of a harness, which is to be answered."""

    has_gone: bool
    """Whether its client has gone. What is sent then goes nowhere."""

    def outlive(self) -> None:
        """Go on although the client goes, which would else cancel whoever answers."""

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


class _Recipient(NamedTuple):
    """Who gets an answer."""

    exchange: Exchange
    joined: asyncio.Future[Reservation | None] | None = None
    """Of one that has joined: set when it was answered, to the bytes of the answer, or None if that came piece by piece."""

    def note_answered(self, held: Reservation | None) -> None:
        """Let one that has joined go on, once all was sent."""
        if self.joined is not None and not self.joined.done():
            self.joined.set_result(held)


@dataclass
class _SameBody:
    """One body that is being asked."""

    asking: list[Exchange] = field(default_factory=list)
    """Whose questions an engine is answering, or will."""
    joined: deque[_Recipient] = field(default_factory=deque)
    """Who waits for the answer to the question of a client that has gone: no more than there are such."""

    def has_orphan(self) -> bool:
        """Return whether there is a question that nobody waits for."""
        waiting = sum(not each.exchange.has_gone for each in self.joined)
        return sum(each.has_gone for each in self.asking) > waiting

    def next_joined(self) -> _Recipient | None:
        """Return who has joined first, and is there yet: one that has gone may be about to be cancelled."""
        while self.joined:
            recipient = self.joined.popleft()
            if not recipient.exchange.has_gone:
                return recipient
        return None


@dataclass
class _Asked:
    """A question that is being asked, and who asks."""

    question: Question
    exchange: Exchange
    same: _SameBody

    def recipient(self) -> _Recipient | None:
        """Return who gets its answer: who asked, or else who has joined first. None: all have gone."""
        if not self.exchange.has_gone:
            return _Recipient(self.exchange)
        return self.same.next_joined()


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
        self._failed: dict[bytes, str] = {}  # with the part of each
        self._parts: dict[str, PartCounters] = {}
        self._knows_parts = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempt = 0
        self._recording = recordings.acquire(Path(route.recording)) if route.recording else None
        if self._recording is not None:
            self._resume(self._recording)
        self.bound_recording()
        lenders = ((each, recordings.acquire_existing(Path(each.recording))) for each in route.lenders)
        self._lenders = [(each, lent) for each, lent in lenders if lent is not None]

    @property
    def recording_error(self) -> str:
        """Why answers can't be recorded; empty: they can, or need not be."""
        if self._recording is None:
            return "the recording can't be opened" if self._asker.route.recording else ""
        return self._recording.error

    def parts(self) -> tuple[PartCounters, ...]:
        """Return what has become of the questions of each part; none, where that is not known of all."""
        if not self._knows_parts:
            return ()
        failed = Counter(self._failed.values())
        names = [*self._parts, *(part for part in failed if part and part not in self._parts)]
        return tuple(replace(self._parts.get(name, PartCounters(name)), failed=failed[name]) for name in names)

    def bound_recording(self) -> None:
        """Take over how large the recording may become."""
        if self._recording is not None:
            self._recording.max_bytes = self._asker.route.max_recording_bytes

    async def answer(self, exchange: Exchange, question: Question, request: OutgoingRequest) -> None:
        """Answer a question. If the client goes while an engine is asked, the answer is recorded all the same."""
        held = await self._replay(exchange, question) or await self._ask_or_join(exchange, question, request)
        try:
            await exchange.drain()
        finally:
            if held is not None:
                held.release()

    async def close(self, finish_seconds: float) -> None:
        """Wait for the questions that are being asked, cancel those that take longer, and close the recording."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=finish_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._recording is not None:
            self._recordings.release(Path(self._asker.route.recording))
        for lender, _ in self._lenders:
            self._recordings.release(Path(lender.recording))

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
        for lender, lent in self._lenders:
            found = lent.first(question.key_with(lender.key_prefix))
            body = lent.body(found.row) if found else None
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

    async def _ask_or_join(self, exchange: Exchange, question: Question, request: OutgoingRequest) -> Reservation | None:
        """Have an engine answer, and return the bytes of the answer; None: it came in pieces, or was for another client."""
        if question.is_stream:  # which belongs to its client alone, since it comes at once
            return await self._ask(_Asked(question, exchange, _SameBody()), request)
        same = self._same.setdefault(question.key, _SameBody())
        if same.has_orphan():
            return await self._join(exchange, same)
        return await self._ask(_Asked(question, exchange, same), request)

    async def _join(self, exchange: Exchange, same: _SameBody) -> Reservation | None:
        """Wait for the answer to the question of a client that has gone."""
        answered: asyncio.Future[Reservation | None] = asyncio.get_running_loop().create_future()
        recipient = _Recipient(exchange, answered)
        same.joined.append(recipient)
        try:
            return await answered
        except asyncio.CancelledError:
            if recipient in same.joined:
                same.joined.remove(recipient)
            elif not answered.cancelled() and (held := answered.result()):
                held.release()
            raise

    async def _ask(self, asked: _Asked, request: OutgoingRequest) -> Reservation | None:
        receive = self._receive_stream if asked.question.is_stream else self._receive
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        asked.exchange.outlive()
        asked.same.asking.append(asked.exchange)
        try:
            given = await self._asker.ask(request, lambda answer: receive(answer, asked))
            if isinstance(given, Reply):
                given = _Given(given, None, Reservation(self._budget))
            return self._deliver(asked, given) if given else None
        except Exception as error:  # whatever it is, who has joined would wait for ever; it is raised for both
            recipient = asked.recipient()
            if recipient and recipient.joined:
                recipient.joined.set_exception(error)
            raise
        finally:
            self._tasks.discard(task)
            asked.same.asking.remove(asked.exchange)
            if not asked.same.asking and self._same.get(asked.question.key) is asked.same:
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
                if size > MAX_RECORDED_BYTES or (size > _UNBUDGETED_BYTES and not held.grow_to(size)):
                    held.release()
                    await self._pass_on(answer, asked, chunks, None)
                    return None
            content_type = header(answer.headers, b"content-type")
            body = b"".join(chunks)
            facts = _facts(body, content_type, asked.question) if answer.status == 200 else None
        except BaseException:  # a cancel, too: else the bytes would be held for good
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
        """Give an answer to its recipient while it comes. `begun` has come already. The end is sent once all is recorded.

        When the recipient has gone, the rest is only for the copy.
        """
        recipient = asked.recipient() or _Recipient(asked.exchange)
        exchange = recipient.exchange
        content_type = header(answer.headers, b"content-type")
        self._counters.last_status = answer.status
        exchange.start(answer.status, content_type)
        try:
            end = await self._pass_pieces(answer, exchange, begun, copy)
            facts = copy.facts(asked.question) if copy is not None and copy.is_whole else Facts()
        except (UpstreamError, UnusableAnswerError):
            if not exchange.has_gone:
                self._note_failure(asked.question)
            exchange.abort()
        else:
            body = copy.body() if copy is not None and copy.is_whole else None
            self._record(asked.question, content_type, body, facts, taken=not exchange.has_gone)
            if not exchange.has_gone:
                self._count(asked.question, facts, replayed=False)
                exchange.write(end)
                exchange.end()
        recipient.note_answered(None)

    async def _pass_pieces(self, answer: UpstreamAnswer, exchange: Exchange, begun: list[bytes], copy: "_Copy | None") -> bytes:
        """Pass on the pieces of an answer but for its end, which is returned. Raises UpstreamError."""
        end = b""
        for piece in begun:
            exchange.write(piece)
        while not exchange.has_gone or (copy is not None and copy.is_whole):
            await exchange.drain()
            piece = await answer.chunk()
            if not piece:
                return end
            if copy is not None:
                copy.add(piece)
            if copy is not None and len(end) < _UNBUDGETED_BYTES and (end or any(mark in piece for mark in _STREAM_ENDS)):
                end += piece
            else:
                exchange.write(end + piece)
                end = b""
        raise UpstreamError("nobody waits for the rest")

    def _deliver(self, asked: _Asked, given: _Given) -> Reservation | None:
        """Record an answer, and give it to its recipient. Return the bytes of it if that is the one who asked."""
        recipient = asked.recipient()
        if given.facts is not None:
            taken = recipient is not None
            self._record(asked.question, given.reply.content_type, given.reply.body, given.facts, taken=taken)
        if recipient is None:
            given.held.release()
            return None
        if given.facts is not None:
            self._count(asked.question, given.facts, replayed=False)
        else:
            self._note_failure(asked.question)
        self._reply(recipient.exchange, given.reply)
        recipient.note_answered(given.held)
        return given.held if recipient.joined is None else None

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
        try:
            resumed = recording.resume(self._asker.route.attempt)
        except UnusableRecordingError as error:
            _LOGGER.error("a recording can't be used", extra={"job_id": self._asker.route.job_id, "reason": str(error)})  # noqa: TRY400
            self._recordings.release(Path(self._asker.route.recording))
            self._recording = None
            return
        self._attempt = resumed.attempt
        self._failed = dict.fromkeys(resumed.failed, "")
        self._knows_parts = not (resumed.failed or resumed.answered)
        counters = self._counters
        counters.answered, counters.replayed = resumed.answered, resumed.replayed
        counters.truncated, counters.empty = resumed.truncated, resumed.empty
        counters.prompt_tokens, counters.completion_tokens = resumed.prompt_tokens, resumed.completion_tokens
        counters.failed = len(self._failed)

    def _count(self, question: Question, facts: Facts, *, replayed: bool) -> None:
        counters = self._counters
        _add_answer(counters, facts, replayed=replayed)
        if question.part:
            self._count_part(question.part, facts, replayed=replayed)
        if question.key in self._failed:
            del self._failed[question.key]
            counters.failed = len(self._failed)
            if self._recording is not None:
                self._recording.clear_failure(question.key, self._attempt)

    def _count_part(self, part: str, facts: Facts, *, replayed: bool) -> None:
        if part not in self._parts and len(self._parts) >= _MAX_PARTS:
            self._knows_parts = False
            return
        _add_answer(self._parts.setdefault(part, PartCounters(part)), facts, replayed=replayed)

    def _note_failure(self, question: Question) -> None:
        if question.key not in self._failed and len(self._failed) < _MAX_FAILURES:
            self._failed[question.key] = question.part
            self._counters.failed = len(self._failed)
            if self._recording is not None:
                self._recording.note_failure(question.key, self._attempt)


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
        if self._size > MAX_RECORDED_BYTES or (self._size > _UNBUDGETED_BYTES and not self._held.grow_to(self._size)):
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


def _add_answer(counters: Counters | PartCounters, facts: Facts, *, replayed: bool) -> None:
    counters.answered += 1
    counters.replayed += replayed
    counters.truncated += facts.truncated
    counters.empty += facts.empty
    counters.prompt_tokens += facts.prompt_tokens
    counters.completion_tokens += facts.completion_tokens
