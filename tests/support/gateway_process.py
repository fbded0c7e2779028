"""A gateway as a process, on a socket that the test holds, as a shim does."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from engine_stub import EngineStub
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.engines.gateway.contract import Engine, Replica, Route
from evalrpc.engines.gateway_client import GatewayClient
from evalrpc.errors import GatewayUnavailableError

TOKEN = "a-token-of-a-test_0123456789"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """What the model says."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"])


class GatewayProcess:
    """Keeps the socket while the program is killed and started again."""

    def __init__(self, folder: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._env = {**os.environ, **(env or {})}
        self._options = options
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.client = GatewayClient(folder)
        self.log = folder / "gateway.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        number = self.listener.fileno()
        command = (sys.executable, "-m", "evalrpc.engines.gateway", "--listen", f"fd:{number}", "--folder", str(self.folder))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen((*command, *self._options), pass_fds=(number,), stderr=log, env=self._env)
        eventually(self.is_up, "for the gateway")

    def is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            return self.client.status().pid == self._process.pid
        except GatewayUnavailableError:
            return False

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(DEADLINE_SECONDS)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self.client.close()
        self.listener.close()

    # What a test asks.

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)

    def ask(self, body: object, token: str = TOKEN, path: str = "/v1/chat/completions", **headers: str) -> Answer:
        """Ask on a connection of its own."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", f"/j/{token}{path}", data, {"Content-Type": "application/json"} | headers)

    def request(self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()


@contextmanager
def gateway_process(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[GatewayProcess]:
    """Run a gateway in a folder, with more variables in its environment."""
    gateway = GatewayProcess(folder, *options, env=env)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.close()


def engine_of(*stubs: EngineStub, **fields: Any) -> Engine:
    """Return an engine with these stubs as replicas."""
    max_in_flight = fields.pop("max_in_flight", 8)
    return Engine("tiny", tuple(Replica(each.url, max_in_flight) for each in stubs), **fields)


def route_to(recording: Path | None = None, token: str = TOKEN, **fields: Any) -> Route:
    """Return a route to the engine, with a recording in a file."""
    given = {"job_id": "job-1", "attempt": "1", "key_prefix": "weights engine", "hold_seconds": 20.0} | fields
    return Route(token, "tiny", recording=str(recording or ""), **given)


def chat(text: str, **fields: object) -> dict[str, object]:
    """Return the body of a question."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 16} | fields
