"""What the gateway is told of an engine: an address for each of its processes that answer."""

import threading

from evalrpc.engines.gateway.contract import Engine as GatewayEngine
from evalrpc.engines.gateway.contract import Replica
from evalrpc.engines.gateway_keeper import GatewayKeeper


class AnsweringProcesses:
    """Those of one engine that answer, as the gateway is told of them. May be used from several threads.

    Every call may raise GatewayError.
    """

    def __init__(self, name: str, gateway: GatewayKeeper) -> None:
        """`name`: what the gateway knows the engine by."""
        self.name = name
        self._gateway = gateway
        self._lock = threading.Lock()  # held while the gateway is called, so that it is told last what is so in the end
        self._replicas: dict[str, Replica] = {}
        self._has_ended = False

    def put(self, engine_id: str, replica: Replica, model: str) -> None:
        """Have one asked. `model`: what it knows the model by."""
        with self._lock:
            self._replicas[engine_id] = replica
            self._tell(model)

    def remove(self, engine_id: str, model: str) -> None:
        """Have one asked no more. While there is none, requests are held."""
        with self._lock:
            self._replicas.pop(engine_id, None)
            self._tell(model)

    def is_asked(self, url: str) -> bool:
        """Return whether a process is answering questions, also if it is asked nothing more."""
        return self._gateway.in_flight(self.name, url) > 0

    def end(self) -> None:
        """Have the gateway forget the engine."""
        with self._lock:
            self._has_ended = True
            self._gateway.remove_engine(self.name)

    def _tell(self, model: str) -> None:
        if not self._has_ended:
            self._gateway.put_engine(GatewayEngine(self.name, tuple(self._replicas.values()), model))
