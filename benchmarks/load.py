"""The load client: functions that run in separate processes, apart from the server and from each other.

A function gets a `Link` as its first argument. `link.meet()` is the barrier for work that must begin at the same time in
several of them.
"""

import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple

from benchmarks.http2 import Connection, Request

_SPAWN = get_context("spawn")
_QUIET_SECONDS = 120.0
_HANG_SECONDS = 3600.0


class Calls(NamedTuple):
    """The measurements of calls that were made once each."""

    begin: float
    """When the first was sent, on the monotonic clock, which all processes share."""
    per_second: float


@dataclass
class Link:
    """A load process's connection to the process that started it."""

    pipe: Pipe

    def meet(self) -> None:
        """Report that this process is ready, and wait for the signal to go on."""
        self.pipe.send("ready")
        self.pipe.recv()


class Task:
    """A function of this module running in a separate process."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(theirs, function, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def wait_ready(self) -> None:
        """Wait until the function has called `meet`."""
        self._receive()

    def go(self) -> None:
        """Release the function from `meet`."""
        self._pipe.send("go")

    def result(self) -> Any:
        """Wait for the function's return value. Raises RuntimeError with the error's type and message if it failed."""
        return self._receive()

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        if not self._pipe.poll(_HANG_SECONDS):
            raise RuntimeError("the load client hangs")
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def tasks(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Task]]:
    """Start a function in several processes, wait until all are ready, and end them afterwards."""
    started = [Task(function, *each) for each in arguments]
    try:
        for task in started:
            task.wait_ready()
        yield started
    finally:
        for task in started:
            task.end()


def go(started: Sequence[Task]) -> list[Any]:
    """Release all tasks at once, and return the next message of each."""
    for task in started:
        task.go()
    return [task.result() for task in started]


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function that calls `meet` once in a separate process, and return its result."""
    with tasks(function, [arguments]) as started:
        return go(started)[0]


def call_each(link: Link, address: str, requests: Sequence[Request], in_flight: int) -> Calls:
    """Make each of these calls once, `in_flight` at the same time. Raises RuntimeError if any fails."""
    connection = Connection(address)
    link.meet()
    return _closed_loop(connection, requests, in_flight)


def call_now(address: str, request: Request) -> float:
    """Make one call from this process, and return when it was sent. Raises RuntimeError if it fails."""
    with closing(Connection(address)) as connection:
        return _closed_loop(connection, [request], 1).begin


def watch(link: Link, address: str, requests: Sequence[Request], connections: int, messages: int) -> float:
    """Open one watcher per request, spread over connections, meet when each has its first message, and return the time when the
    last one has received `messages` more."""
    watchers = Watchers([Connection(address) for _ in range(connections)])
    try:
        watchers.open(requests)
        watchers.wait_messages(1)
        link.meet()
        return watchers.wait_messages(1 + messages)
    finally:
        watchers.close()


def change_and_watch(
    link: Link, address: str, watches: Sequence[Request], changes: Sequence[Request], changed_at: str = ""
) -> list[float]:
    """Watch one job after the other, change it, there or at another address, and return the seconds from sending the change to
    getting its event."""
    watching, changing = Connection(address), Connection(changed_at or address)
    link.meet()
    return [_change_one(watching, changing, watch_one, change) for watch_one, change in zip(watches, changes, strict=True)]


def open_and_drop(link: Link, address: str, request: Request, count: int, at_once: int, pause_seconds: float) -> None:
    """Open streams, some at a time, and drop them a moment after all of them have their first message."""
    connection = Connection(address)
    link.meet()
    for _ in range(count // at_once):
        waiting = {connection.call(request) for _ in range(at_once)}
        opened = sorted(waiting)
        connection.flush()
        while waiting:
            waiting -= {piece.stream for piece in connection.receive() if piece.data}
            connection.flush()
        time.sleep(pause_seconds)
        for stream in opened:
            connection.cancel(stream)
        connection.flush()


def never_read(link: Link, address: str, request: Request, count: int) -> None:
    """Open watchers, each on a separate connection with the smallest usual window, and never read from them."""
    connections = [Connection(address, window=65_535) for _ in range(count)]
    for connection in connections:
        connection.call(request)
        connection.flush()
    link.meet()
    link.meet()
    for connection in connections:
        connection.close()


def read_bytes(link: Link, address: str, request: Request, size: int) -> float:
    """Read a stream of bytes to its end, and return the seconds it took. Raises RuntimeError if it has less than `size`."""
    connection = Connection(address)
    connection.flush()
    link.meet()
    begin = time.monotonic()
    connection.call(request)
    received, ended = 0, False
    while not ended:
        connection.flush()
        for piece in connection.receive():
            received += len(piece.data)
            ended = ended or piece.ended
    if received < size:
        raise RuntimeError(f"the stream has {received} bytes of {size}")
    return time.monotonic() - begin


@dataclass
class Watchers:
    """Open streams over several connections, with the number of messages that each has received."""

    connections: list[Connection]
    counts: dict[tuple[Connection, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        for connection in self.connections:
            self._selector.register(connection, selectors.EVENT_READ)

    def open(self, requests: Sequence[Request]) -> None:
        """Open one stream per request, cycling through the connections."""
        for index, request in enumerate(requests):
            connection = self.connections[index % len(self.connections)]
            self.counts[connection, connection.call(request)] = 0
        for connection in self.connections:
            connection.flush()

    def wait_messages(self, wanted: int) -> float:
        """Wait until each stream has received `wanted` messages, and return the time when the last one did."""
        left = sum(1 for count in self.counts.values() if count < wanted)
        while left:
            ready = self._selector.select(_QUIET_SECONDS)
            if not ready:
                raise RuntimeError(f"{left} of {len(self.counts)} watchers wait for message {wanted}")
            left -= sum(self._take(key.fileobj, wanted) for key, _ in ready)
        return time.monotonic()

    def close(self) -> None:
        """Close the connections."""
        for connection in self.connections:
            connection.close()
        self._selector.close()

    def _take(self, connection: Any, wanted: int) -> int:
        """Count the messages that arrived on a connection; return how many streams have reached the wanted number with them."""
        complete = 0
        for piece in connection.receive():
            if piece.data:
                before = self.counts[connection, piece.stream]
                after = before + _messages(piece.data)
                self.counts[connection, piece.stream] = after
                complete += before < wanted <= after
        connection.flush()
        return complete


def _run(pipe: Pipe, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(function(Link(pipe), *arguments))
    except Exception as error:  # noqa: BLE001 - reported to the process that started this one
        pipe.send(RuntimeError(f"{function.__name__}: {type(error).__name__}: {error}"))


def _closed_loop(connection: Connection, requests: Sequence[Request], in_flight: int) -> Calls:
    begin = time.monotonic()
    waiting = iter(requests)
    unanswered = {connection.call(request): False for request in islice(waiting, in_flight)}
    while unanswered:
        connection.flush()
        for piece in connection.receive():
            unanswered[piece.stream] |= bool(piece.data)
            if piece.ended:
                if not unanswered.pop(piece.stream):
                    raise RuntimeError(f"a call of {requests[0].path} failed")
                unanswered.update((connection.call(request), False) for request in islice(waiting, 1))
    return Calls(begin, len(requests) / (time.monotonic() - begin))


def _change_one(watching: Connection, changing: Connection, watch_one: Request, change: Request) -> float:
    watching.call(watch_one)
    _wait_for_data(watching)
    begin = time.monotonic()
    changing.call(change)
    changing.flush()
    _wait_for_data(watching)
    seconds = time.monotonic() - begin
    _wait_for_data(changing)
    return seconds


def _wait_for_data(connection: Connection) -> None:
    connection.flush()
    while not any(piece.data for piece in connection.receive()):
        connection.flush()


def _messages(data: memoryview) -> int:
    """Count the messages in a piece. Those that watchers wait for are never split across pieces."""
    count = position = 0
    while position < len(data):
        position += 5 + int.from_bytes(data[position + 1 : position + 5])
        count += 1
    return count
