"""Several processes that answer for one model: an engine, and its replicas beside it.

Jobs know the engine alone, and so does the gateway, which has an address for each of the processes. Otherwise a replica is an
engine of its own: with its devices, its log, its restarts. It is started when the engine answers, and ends before any job has
to wait.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from evalrpc.engines.engine import Engine
from evalrpc.v1.engines_pb2 import ENGINE_STATE_ENDED, ENGINE_STATE_READY


class WantedReplica(NamedTuple):
    """A replica that jobs would have, if there are devices for it."""

    engine: Engine
    """The one beside which it is to answer."""
    number: int
    """The engine itself is the first."""
    users: frozenset[str]
    """The jobs that would use it, by id."""


def identity_of(engine: Engine, number: int) -> str:
    """Return what no job needs, so that none is placed on a replica alone."""
    return f"{engine.identity}/{number}"


def users_of(engine: Engine, number: int) -> set[str]:
    """Return the jobs of an engine that may be answered by so many processes."""
    return {job_id for job_id, most in engine.max_replicas.items() if most >= number}


def wanted(engines: Iterable[Engine], is_broken: Callable[[str, str], bool]) -> Iterator[WantedReplica]:
    """Yield the replicas that are missing, beside engines that answer. `is_broken`: whether the start of one with this
    identity, for this owner, is not worth a try. Called with the lock of the pool held."""
    engines = [each for each in engines if each.state != ENGINE_STATE_ENDED]
    for engine in engines:
        if engine.state != ENGINE_STATE_READY or not engine.is_up or engine.beside is not None:
            continue
        there = {each.number for each in engines if each.beside is engine}
        for number in range(2, max(engine.max_replicas.values(), default=1) + 1):
            if number not in there and not is_broken(identity_of(engine, number), engine.owner):
                yield WantedReplica(engine, number, frozenset(users_of(engine, number)))
