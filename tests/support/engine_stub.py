"""A stub of an engine with OpenAI's API, which behaves as badly as a test wants."""

import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from waiting import DEADLINE_SECONDS


@dataclass
class Asked:
    """A request as the engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    handler: "_Handler"

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.body)
        return fields

    def answer(self, document: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(document).encode(), status, **headers)

    def send(self, body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in ({"Content-Type": content_type, "Content-Length": str(len(body))} | headers).items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def write(self, data: bytes) -> None:
        """Send these bytes, whatever they are."""
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def hang_up(self) -> None:
        self.handler.close_connection = True


Behaviour: TypeAlias = Callable[[Asked], None]


def completion(
    text: str = "A", finish_reason: str = "stop", prompt_tokens: int = 10, completion_tokens: int = 1
) -> dict[str, Any]:
    """Return the answer to a chat."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"id": "x", "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}], "usage": usage}


def answer_with_number(asked: Asked) -> None:
    """Answer with the number of this question, so that no two answers are the same."""
    asked.answer(completion(f"answer {asked.handler.server.questions}"))


@dataclass
class Gate:
    """Lets requests wait: those in it are counted."""

    open: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait(self) -> None:
        self.arrived.release()
        assert self.open.wait(DEADLINE_SECONDS)

    def wait_for_arrivals(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=DEADLINE_SECONDS)


def waits(gate: Gate) -> Behaviour:
    """Return the behaviour of an engine that answers once the gate is open."""

    def behave(asked: Asked) -> None:
        gate.wait()
        answer_with_number(asked)

    return behave


class EngineStub(ThreadingHTTPServer):
    """Answers each request as `behave` does. `asked` has all POST requests so far."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behave: Behaviour = answer_with_number, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behave = behave
        self.asked: list[Asked] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self) -> int:
        return len(self.asked)

    @property
    def bodies(self) -> Counter[bytes]:
        return Counter(each.body for each in self.asked)

    def close_connections(self) -> None:
        """End, as a process does: a socket that another thread polls would listen until that returns."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server_close()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: EngineStub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections.add(self.connection)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        with self.server.lock:
            self.server.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._behave()

    def do_HEAD(self) -> None:
        self._behave()

    def do_POST(self) -> None:
        self._behave()

    def _behave(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body, self)
        with self.server.lock:
            if self.command == "POST":
                self.server.asked.append(asked)
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            self.server.behave(asked)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def engine_stub(
    behave: Behaviour = answer_with_number, port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[EngineStub]:
    """Serve on a free port, or on a given one."""
    stub = EngineStub(behave, port)
    if tls is not None:
        stub.socket = tls.wrap_socket(stub.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=stub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        thread.join()
        stub.close_connections()
