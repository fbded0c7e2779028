"""The socket over which the server declares engines and routes. The messages are described in `contract.py`."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from evalrpc.engines.gateway.contract import CONTROL_SOCKET, Engine, Route, connect_path, from_json, to_json
from evalrpc.engines.gateway.gateway import Gateway

_LOGGER: Final = logging.getLogger(__name__)
_MAX_LINE_BYTES: Final = 64 << 20


class Control:
    """Takes the calls of the server. The socket is for the gateway's own account only."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._folder = folder
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._calls: Mapping[str, Callable[[dict[str, Any]], Any]] = {
            "status": self._status,
            "declare": self._declare,
            "put_engine": lambda arguments: self._routes.engines.put(_engine(arguments)),
            "put_route": lambda arguments: self._routes.put(from_json(Route, arguments.get("route"))),
            "remove_engine": lambda arguments: self._routes.remove_engine(_text(arguments, "name")),
            "remove_route": self._remove_route,
            "counters": lambda arguments: _counters(self._routes.counters(_text(arguments, "token"))),
            "in_flight": lambda arguments: self._routes.engines.in_flight(_text(arguments, "name"), _text(arguments, "url")),
        }

    async def start(self) -> None:
        """Listen in the folder, in place of an earlier gateway. Raises OSError."""
        (self._folder / CONTROL_SOCKET).unlink(missing_ok=True)
        descriptor = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        umask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, connect_path(descriptor), limit=_MAX_LINE_BYTES)
        finally:
            os.umask(umask)
            os.close(descriptor)

    async def stop(self) -> None:
        """Close the socket and its connections."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()

    @property
    def _routes(self) -> Any:
        return self._gateway.routes

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError, ValueError):  # ValueError: a line that is too long
                while line := await reader.readline():
                    writer.write(json.dumps(self._reply(line)).encode() + b"\n")
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()

    def _reply(self, line: bytes) -> dict[str, Any]:
        reply: dict[str, Any] = {"instance": self._gateway.instance}
        try:
            request = json.loads(line)
            call = self._calls.get(request["call"])
            if call is None:
                return reply | {"error": f"there is no call {request['call']!r}"}
            return reply | {"result": call(request.get("arguments", {}))}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return reply | {"error": str(error) or type(error).__name__}
        except Exception as error:  # the last resort: a bug in one call must not cost the server its connection, nor a reply
            _LOGGER.exception("a call of the server failed")
            return reply | {"error": f"a fault of the gateway: {error}"}

    def _status(self, _: dict[str, Any]) -> Any:
        return to_json(self._gateway.status())

    def _declare(self, arguments: dict[str, Any]) -> Any:
        engines = [from_json(Engine, each) for each in arguments["engines"]]
        routes = [from_json(Route, each) for each in arguments["routes"]]
        self._gateway.routes.declare(engines, routes)
        return self._status(arguments)

    def _remove_route(self, arguments: dict[str, Any]) -> Any:
        seconds = float(arguments.get("finish_seconds", 0.0))
        return _counters(self._gateway.routes.remove(_text(arguments, "token"), seconds))


def _engine(arguments: dict[str, Any]) -> Engine:
    return from_json(Engine, arguments.get("engine"))


def _text(arguments: dict[str, Any], name: str) -> str:
    return from_json(str, arguments.get(name), name)


def _counters(counters: Any) -> Any:
    return None if counters is None else to_json(counters)
