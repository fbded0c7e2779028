"""The health protocol, `grpc.health.v1`: whether the server serves, for load balancers and for whoever waits for its start.

The servicer that gRPC ships answers undecodable bytes with INTERNAL, and once one watcher leaves, tells no other one of a stop.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2 as pb

from evalrpc.errors import NotFoundError, ServerStoppingError
from evalrpc.printable import printable
from evalrpc.server.call import Call

SERVICE: Final[ServiceDescriptor] = pb.DESCRIPTOR.services_by_name["Health"]

_RETRY_DELAY_SECONDS: Final = 1.0


class Health:
    """Says SERVING of the server, whose name is empty, and of each of these services, unless it is told otherwise.

    For the event loop.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._is_suspended = self._is_refusing = self._is_stopped = False
        self._changed = asyncio.Event()  # one for each state: set when the next one begins

    @property
    def is_serving(self) -> bool:
        """Whether it says SERVING."""
        return not (self._is_refusing or self._is_suspended)

    def suspend(self) -> None:
        """Say NOT_SERVING until `resume`, to watchers too."""
        self._is_suspended = True
        self._tell_watchers()

    def resume(self) -> None:
        """Say SERVING again, unless the server refuses for good."""
        self._is_suspended = False
        self._tell_watchers()

    def refuse(self) -> None:
        """Say NOT_SERVING from now on, to watchers too."""
        self._is_refusing = True
        self._tell_watchers()

    def stop(self) -> None:
        """Do so, and end the streams."""
        self._is_stopped = True
        self.refuse()

    async def Check(self, request: Any, call: Call) -> Any:
        """Return the health of a service. Raises NotFoundError for one that is not here."""
        if request.service not in self._services:
            name = printable(request.service)[:255]
            metadata = {"resource_type": "service", "resource_name": name}
            raise NotFoundError(f"this server has no service {name}", metadata=metadata)
        return self._health_of(request.service)

    async def Watch(self, request: Any, call: Call) -> None:
        """Send the health of a service, and every change. Raises ServerStoppingError in the end."""
        sent = None
        while True:
            changed, status = self._changed, self._health_of(request.service)
            if status != sent:
                sent = status
                await call.send(status.SerializeToString())
            elif self._is_stopped:
                raise ServerStoppingError("the server is stopping: watch again", retry_delay_seconds=_RETRY_DELAY_SECONDS)
            else:
                await changed.wait()

    def _tell_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _health_of(self, service: str) -> Any:
        if service not in self._services:
            status = pb.HealthCheckResponse.SERVICE_UNKNOWN
        elif self.is_serving:
            status = pb.HealthCheckResponse.SERVING
        else:
            status = pb.HealthCheckResponse.NOT_SERVING
        return pb.HealthCheckResponse(status=status)
