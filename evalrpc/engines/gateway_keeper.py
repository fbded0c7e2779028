"""Keeps the gateway running while engines need it, and tells it what there is, again and again if it forgets.

The gateway is a run of its own, in data_dir/engines/gateway/gateway-ID, so it outlives the server, and the next one finds it.
It forgets everything when it is started again; what it is to know is here, so `declare` tells it all.

Threads: any. One lock, held also while the gateway is called, which answers within milliseconds, or is started.
"""

import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Final, TypeVar

from evalrpc.clock import Clock
from evalrpc.engines.gateway.contract import Counters, Engine, Route
from evalrpc.engines.gateway_client import GatewayClient
from evalrpc.engines.socket_holder import ADDRESS_FILE
from evalrpc.errors import GatewayUnavailableError, RunFailedError
from evalrpc.executors.base import Executor, Resources, RunHandle, RunKey
from evalrpc.files.private import make_private_folder
from evalrpc.files.trees import remove_tree
from evalrpc.harnesses.base import Command

_MODULES: Final = Path(__file__).parents[2]
"""Where the server's own modules are, which the gateway has to find, too."""
_PREFIX: Final = "gateway-"
_START_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.05
_GRACE_SECONDS: Final = 5.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class GatewayKeeper:
    """The gateway of a server. Every call may raise GatewayUnavailableError, if the gateway can't be reached or started."""

    def __init__(self, executor: Executor, clock: Clock, folder: Path) -> None:
        self._executor = executor
        self._clock = clock
        self._folder = folder
        self._lock = threading.RLock()
        self._engines: dict[str, Engine] = {}
        self._routes: dict[str, Route] = {}
        self._handle: RunHandle | None = None
        self._client: GatewayClient | None = None
        self._expected: Set[str] = frozenset()  # the engines of an earlier server
        self._told = ""  # the instance that knows all this

    def restore(self, names: Set[str], endpoints: Iterable[Engine] = ()) -> None:
        """Take up the gateway of an earlier server, if it is there, with the routes to these engines and endpoints: what is
        declared anew would end them. Without any it is ended. Before any other call.

        The gateway tells nobody the keys of endpoints, so these come as they are to be declared anew if that is necessary.
        """
        known = {each.name: each for each in endpoints}
        names = names | known.keys()
        with self._lock:
            self._expected = frozenset(names)
            if not names:
                self._end()
                return
            key = self._latest()
            handle = self._executor.find(key) if key is not None else None
            if key is None or handle is None:
                return
            handle.close()
            try:
                with GatewayClient(key.attempt_dir) as client:
                    status = client.status()
            except GatewayUnavailableError:
                return
            if status.declared:
                self._told = status.instance
                self._engines = {each.name: known.get(each.name, each) for each in status.engines if each.name in names}
                self._routes = {each.route.token: each.route for each in status.routes if each.route.engine in names}

    def expect(self, route: Route) -> None:
        """Take a route for one that is there, without calling the gateway: of a job that an earlier server has started."""
        with self._lock:
            if route.engine in self._expected:
                self._routes.setdefault(route.token, route)

    def put_engine(self, engine: Engine) -> None:
        """Say where an engine is; without replicas, requests to it are held."""
        with self._lock:
            self._engines[engine.name] = engine
            self._tell(lambda client: client.put_engine(engine))

    def remove_engine(self, name: str) -> None:
        """Forget an engine. Once it was the last one, the gateway is ended."""
        with self._lock:
            if self._engines.pop(name, None) is None:
                return
            self._routes = {token: route for token, route in self._routes.items() if route.engine != name}
            if self._engines:
                self._declare()
            else:
                self._end()

    def put_route(self, route: Route) -> str:
        """Make a token valid. Return the URL that stands for the engine's `/v1`. Raises GatewayRefusedError, too."""
        with self._lock:
            if route.engine not in self._engines:
                raise GatewayUnavailableError(f"the engine {route.engine} has just ended")
            self._tell(lambda client: client.put_route(route))
            self._routes[route.token] = route
            return self.url(route.token)

    def instance(self) -> str:
        """Return what is another one each time the gateway has been started, which breaks off what it was asked."""
        with self._lock:
            return self._tell(lambda client: client.status()).instance

    def url(self, token: str) -> str:
        """Return the URL with a token, as the gateway has it now."""
        with self._lock:
            return f"http://{self._address()}/j/{token}/v1"

    def open_url(self) -> str:
        """Return the URL for requests that have the token as bearer token, as the gateway has it now."""
        with self._lock:
            return f"http://{self._address()}/v1"

    def remove_route(self, token: str) -> Counters | None:
        """End a token. Return what became of its requests, if that is known."""
        with self._lock:
            if self._routes.pop(token, None) is None or not self._engines:
                return None
            return self._tell(lambda client: client.remove_route(token))

    def counters(self, token: str) -> Counters | None:
        """Return what has become of the requests with a token so far, if that is known."""
        with self._lock:
            if not self._engines:
                return None
            return self._tell(lambda client: client.counters(token))

    def in_flight(self, engine: str, url: str) -> int:
        """Return how many requests a process of an engine is answering, also if it is asked nothing more."""
        with self._lock:
            if engine not in self._engines:
                return 0
            return self._tell(lambda client: client.in_flight(engine, url))

    def close(self) -> None:
        """Let go of the gateway, which goes on."""
        with self._lock:
            self._release()

    def _tell(self, call: Callable[[GatewayClient], _T]) -> _T:
        """Call the gateway; start it, and tell it everything, where that is necessary."""
        try:
            client = self._client or self._connect()
            if client.status().instance != self._told:
                self._declare()
            return call(client)
        except GatewayUnavailableError as error:
            self._release()
            _log.warning("the gateway does not answer, so it is looked for anew: %s", error)
            self._declare()
        return call(self._connect())

    def _declare(self) -> None:
        self._told = self._connect().declare(self._engines.values(), self._routes.values()).instance

    def _connect(self) -> GatewayClient:
        """Return a client of the gateway, which is there by then."""
        if self._client is not None:
            return self._client
        key = self._latest()
        handle = self._executor.find(key) if key is not None else None
        if handle is None or handle.wait(0):
            if handle is not None:
                handle.close()
            key = self._new()
            handle = self._start(key)
        assert key is not None  # noqa: S101 - for the type checker
        self._handle, client = handle, GatewayClient(key.attempt_dir)
        deadline = self._clock.monotonic() + _START_SECONDS
        while True:
            try:
                client.status()
            except GatewayUnavailableError as error:
                if handle.wait(_LOOK_SECONDS) or self._clock.monotonic() > deadline:
                    self._end()
                    raise GatewayUnavailableError(f"the gateway to the engines could not be started: {error}") from error
            else:
                self._client = client
                return client

    def _start(self, key: RunKey) -> RunHandle:
        _log.info("starting the gateway to the engines")
        command = (sys.executable, "-P", "-m", "evalrpc.engines.socket_holder", str(key.attempt_dir))
        try:
            make_private_folder(key.attempt_dir)
            self._executor.make_room(key, 1)
            environment = {"PYTHONPATH": os.pathsep.join((str(_MODULES), *filter(None, sys.path)))}
            nodes = self._executor.nodes()
            return self._executor.start(key, Command(argv=command, env=environment), Resources(nodes[0].name if nodes else ""))
        except (OSError, RunFailedError) as error:
            raise GatewayUnavailableError(f"the gateway to the engines could not be started: {error}") from error

    def _address(self) -> str:
        key = self._latest()
        return (key.attempt_dir / ADDRESS_FILE).read_text() if key is not None else ""

    def _latest(self) -> RunKey | None:
        """Return the run of the gateway that was started last."""
        folders = sorted(self._folder.glob(f"{_PREFIX}*"), key=lambda folder: folder.stat().st_mtime_ns)
        return self._key(folders[-1]) if folders else None

    def _new(self) -> RunKey:
        """Return a run for a new gateway, and forget the earlier ones, which have ended."""
        for folder in self._folder.glob(f"{_PREFIX}*"):
            remove_tree(folder)
        return self._key(self._folder / f"{_PREFIX}{uuid.uuid4()}")

    def _key(self, folder: Path) -> RunKey:
        """Return the run of a folder. Its id is like no other on this machine, so nothing takes another server's for it."""
        return RunKey(folder.name, 1, folder, ())

    def _end(self) -> None:
        """End the gateway."""
        handle, self._handle = self._handle, None
        self._release()
        if handle is None and (key := self._latest()) is not None:
            handle = self._executor.find(key)
        if handle is not None:
            try:
                handle.end(_GRACE_SECONDS)
            except (OSError, RunFailedError) as error:
                _log.warning("the gateway can't be ended: %s", error)
            finally:
                handle.close()

    def _release(self) -> None:
        self._told = ""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None
