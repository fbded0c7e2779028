"""The server's side of the gateway's control socket."""

import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from evalrpc.engines.gateway.contract import Counters, Engine, Route, Status, connect_path, from_json, to_json
from evalrpc.errors import GatewayRefusedError, GatewayUnavailableError

TIMEOUT_SECONDS: Final = 10.0
"""How long a call may take: the gateway answers within milliseconds."""


class GatewayClient:
    """Calls the gateway of a folder, from any thread. Connects when it is first called, and again when that is necessary.

    Every call may be repeated, so each is tried twice where the gateway was started again in between. All raise
    GatewayUnavailableError when it can't be reached, and GatewayRefusedError when it takes a call for wrong.
    """

    def __init__(self, folder: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._lock = Lock()  # one call after the other
        self._connection: _Connection | None = None
        self._instance = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def instance(self) -> str:
        """The gateway that answered last; empty before the first call. Another one knows no routes until `declare`."""
        return self._instance

    def status(self) -> Status:
        """Return what the gateway is and has, with the tokens of its routes, but without the keys of its engines."""
        return from_json(Status, self._call("status"))

    def declare(self, engines: Iterable[Engine], routes: Iterable[Route]) -> Status:
        """Say all engines and routes that there are. Those that stay keep their counters; others end, with their requests."""
        arguments = {"engines": [to_json(each) for each in engines], "routes": [to_json(each) for each in routes]}
        return from_json(Status, self._call("declare", **arguments))

    def put_engine(self, engine: Engine) -> None:
        """Add an engine, or replace what is said of it, such as where its replicas are. Requests that are held go there."""
        self._call("put_engine", engine=to_json(engine))

    def remove_engine(self, name: str) -> None:
        """Forget an engine, and its key. Routes to it have to be removed first."""
        self._call("remove_engine", name=name)

    def put_route(self, route: Route) -> None:
        """Add a route to an engine that is there, or replace what is said of it. From now on its token is valid."""
        self._call("put_route", route=to_json(route))

    def remove_route(self, token: str, finish_seconds: float = 0.0) -> Counters | None:
        """End a token, and return what became of its requests; None: there is no such route.

        Requests end at once. Questions that an engine is answering may go on for `finish_seconds`, for the recording alone.
        """
        return self._counters("remove_route", token=token, finish_seconds=finish_seconds)

    def counters(self, token: str) -> Counters | None:
        """Return what has become of the requests of a route so far; None: there is no such route."""
        return self._counters("counters", token=token)

    def in_flight(self, engine: str, url: str) -> int:
        """Return how many requests the replica of an engine at an address is answering, also if it is not named any more."""
        return from_json(int, self._call("in_flight", name=engine, url=url), "in_flight")

    def close(self) -> None:
        """Close the connection. The next call opens another one."""
        with self._lock:
            self._disconnect()

    def _counters(self, call: str, **arguments: object) -> Counters | None:
        result = self._call(call, **arguments)
        return None if result is None else from_json(Counters, result)

    def _call(self, call: str, **arguments: object) -> Any:
        line = json.dumps({"call": call, "arguments": arguments}).encode() + b"\n"
        with self._lock:
            reply = self._exchange(line)
        self._instance = str(reply.get("instance", ""))
        if "error" in reply:
            raise GatewayRefusedError(f"the gateway refuses {call}: {reply['error']}")
        return reply.get("result")

    def _exchange(self, line: bytes) -> dict[str, Any]:
        """Send a request and return its reply; on a connection that was open before, try again if it has broken."""
        if self._connection is not None:
            with suppress(OSError, ValueError):
                return self._connection.exchange(line)
            self._disconnect()
        try:
            self._connection = _Connection(self._folder, self._timeout_seconds)
            return self._connection.exchange(line)
        except (OSError, ValueError) as error:
            self._disconnect()
            raise GatewayUnavailableError(f"the gateway in {self._folder} does not answer: {error}") from error

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    """One connection to the control socket."""

    def __init__(self, folder: Path, timeout_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout_seconds)
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            try:
                self._socket.connect(connect_path(descriptor))
            finally:
                os.close(descriptor)
            self._replies: BinaryIO = self._socket.makefile("rb")
        except OSError:
            self._socket.close()
            raise

    def exchange(self, line: bytes) -> dict[str, Any]:
        """Send a request and return its reply. Raises OSError, ValueError."""
        self._socket.sendall(line)
        reply = json.loads(self._replies.readline())
        if not isinstance(reply, dict):
            raise ValueError("its reply is no object")  # noqa: TRY004 - it is a wrong message
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._replies.close()
        self._socket.close()
