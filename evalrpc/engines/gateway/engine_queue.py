"""Who may ask an engine: its replicas with their room, and the requests that wait for it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from evalrpc.engines.gateway.contract import Replica
from evalrpc.engines.gateway.upstream import Upstream

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0


class EngineAwayError(Exception):
    """No replica has had room for as long as a request may wait."""


class ReplicaQueue:
    """A replica, and how many requests it gets.

    As many as it may have at once, less after it refused some (429, 503): half of them, then slowly more, as TCP does. One that
    can't be reached gets one at a time, until it answers.
    """

    def __init__(self, replica: Replica, upstream: Upstream) -> None:
        self.replica = replica
        self.upstream = upstream
        self.in_flight = 0
        self.away_until = 0.0
        """When it is asked again, in monotonic time."""
        self.last_asked = 0
        self._room = float(replica.max_in_flight)
        self._slow_from = float(replica.max_in_flight)
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def has_room(self, now: float) -> bool:
        """Return whether it takes another request now."""
        return self.in_flight < int(self._room) and now >= self.away_until

    def succeeded(self) -> None:
        """Note that it has answered."""
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        growth = 1.0 if self._room < self._slow_from else 1.0 / self._room
        self._room = min(float(self.replica.max_in_flight), self._room + growth)

    def refused(self, pause_seconds: float | None) -> None:
        """Note that it has refused a request since it has too many, and has possibly said for how long."""
        self._room = self._slow_from = max(1.0, self.in_flight / 2)
        self._pause(pause_seconds)

    def lost(self) -> None:
        """Note that it can't be reached."""
        self._room = 1.0
        self._slow_from = float(self.replica.max_in_flight)
        self._pause(None)

    def _pause(self, seconds: float | None) -> None:
        now = time.monotonic()
        if now < self.away_until:  # of the many requests that fail together, one counts
            return
        self.away_until = now + (self._pause_seconds if seconds is None else seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)


class EngineQueue:
    """The requests that wait for an engine. Routes take turns, so that none waits behind all requests of another."""

    def __init__(self, connect: Callable[[Replica], Upstream]) -> None:
        self._connect = connect
        self._replicas: list[ReplicaQueue] = []
        self._leaving: list[ReplicaQueue] = []  # asked nothing more, and still answering
        self._waiting: dict[str, deque[asyncio.Future[ReplicaQueue]]] = {}
        self._asked = 0
        self._timer: asyncio.TimerHandle | None = None

    def set_replicas(self, replicas: Sequence[Replica]) -> None:
        """Say which replicas are up. One that stays keeps its connections; requests to others may still end."""
        known = {each.replica: each for each in self._replicas}
        self._replicas = [known.get(each) or ReplicaQueue(each, self._connect(each)) for each in replicas]
        gone = [known[each] for each in known.keys() - set(replicas)]
        for each in gone:
            each.upstream.close()
        self._leaving = [each for each in (*self._leaving, *gone) if each.in_flight]
        self._wake()

    def in_flight(self, url: str) -> int:
        """Return how many requests the replica at an address has, also if it is not up any more."""
        return sum(each.in_flight for each in (*self._replicas, *self._leaving) if each.replica.url == url)

    async def turn(self, route: str, deadline: float) -> ReplicaQueue:
        """Wait for a replica with room, up to a moment in monotonic time; `leave` ends the turn. Raises EngineAwayError."""
        if not self._waiting and (replica := self._free_replica(time.monotonic())):
            return self._enter(replica)
        future: asyncio.Future[ReplicaQueue] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(route, deque()).append(future)
        self._wake()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await self._won(future)
        except TimeoutError as error:
            raise EngineAwayError("no engine has had room for this request") from error

    async def _won(self, future: asyncio.Future[ReplicaQueue]) -> ReplicaQueue:
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it was given a turn at the same moment
                self.leave(future.result())
            raise

    def leave(self, replica: ReplicaQueue) -> None:
        """End a turn."""
        replica.in_flight -= 1
        if self._leaving and not replica.in_flight:
            self._leaving = [each for each in self._leaving if each is not replica]
        if self._waiting:
            self._wake()

    def _enter(self, replica: ReplicaQueue) -> ReplicaQueue:
        self._asked += 1
        replica.last_asked = self._asked
        replica.in_flight += 1
        return replica

    def _free_replica(self, now: float) -> ReplicaQueue | None:
        free = [each for each in self._replicas if each.has_room(now)]
        return min(free, key=lambda each: (each.in_flight, each.last_asked)) if free else None

    def _wake(self) -> None:
        """Give turns to those who wait, a route after the other, while there is room."""
        now = time.monotonic()  # one moment for all of this, so that no replica comes back between the search and the timer
        while self._waiting and (replica := self._free_replica(now)):
            route, futures = next(iter(self._waiting.items()))
            future = futures.popleft()
            del self._waiting[route]
            if futures:
                self._waiting[route] = futures  # at the end
            if not future.done():
                future.set_result(self._enter(replica))
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        """Look again when the first replica may be asked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moments = [each.away_until for each in self._replicas if each.away_until > now]
        if self._waiting and moments:
            self._timer = asyncio.get_running_loop().call_later(min(moments) - now, self._wake)
