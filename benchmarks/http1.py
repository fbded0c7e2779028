"""The load of questions over HTTP/1.1: connections that ask one question after the other, each another one."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop


@dataclass(frozen=True)
class Questions:
    """What to ask: a body with a place for a number, so that all bodies differ."""

    path: str
    before: bytes
    after: bytes

    def requests(self, numbers: Iterator[int]) -> Iterator[tuple[bytes, bytes]]:
        """Return the beginning of each request; the end is that of all."""
        for number in numbers:
            beginning = self.before + b"%09d" % number
            length = len(beginning) + len(self.after)
            head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            yield head % (self.path.encode(), length) + beginning, self.after


@dataclass(frozen=True)
class Answered:
    """How fast questions were answered."""

    per_second: float
    p50: float
    """Seconds."""


def ask(address: str, questions: Questions, numbers: range, in_flight: int) -> Answered:
    """Ask the questions of these numbers. Raises RuntimeError if an answer is no success."""
    return uvloop.run(_ask(address, questions, iter(numbers), in_flight))


async def _ask(address: str, questions: Questions, numbers: Iterator[int], in_flight: int) -> Answered:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    connections = [await loop.create_connection(_Connection, host, int(port)) for _ in range(in_flight)]
    requests = questions.requests(numbers)
    begin = time.perf_counter()
    seconds = await asyncio.gather(*(protocol.ask_all(requests) for _, protocol in connections))
    taken = time.perf_counter() - begin
    for transport, _ in connections:
        transport.close()
    latencies = sorted(second for each in seconds for second in each)
    return Answered(len(latencies) / taken, latencies[len(latencies) // 2])


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[int] | None = None

    async def ask_all(self, requests: Iterator[tuple[bytes, bytes]]) -> list[float]:
        """Ask until there are no more questions, and return how many seconds each took."""
        seconds = []
        while request := next(requests, None):
            self._answered = asyncio.get_running_loop().create_future()
            begin = time.perf_counter()
            self._transport.writelines(request)
            if (status := await self._answered) != 200:
                raise RuntimeError(f"a question was answered with {status}")
            seconds.append(time.perf_counter() - begin)
        return seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("the server closed the connection"))

    def on_message_complete(self) -> None:
        assert self._answered is not None
        self._answered.set_result(self._parser.get_status_code())
