"""What the queue has to know of engines, and what it makes of it: what they may free, and for whom they count. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from evalrpc.engines.holdings import EngineHolding
from evalrpc.jobs.served_models import EngineNeed
from evalrpc.scheduling.placement import PlacedEngine, Running, RunningJob


class EngineUse(Protocol):
    """The engines of a server, as the queue sees them."""

    def is_up(self, need: EngineNeed, owner: str) -> bool:
        """Return whether jobs of this owner that need this engine need no GPUs for it now."""

    def is_loading(self, need: EngineNeed, owner: str) -> bool:
        """Return whether that engine loads its model, so that they had better wait."""

    def holdings(self) -> Sequence[EngineHolding]:
        """Return what engines hold."""


class _NoEngines:
    """A server without engines."""

    def is_up(self, need: EngineNeed, owner: str) -> bool:  # noqa: ARG002 - as EngineUse
        return False

    def is_loading(self, need: EngineNeed, owner: str) -> bool:  # noqa: ARG002 - as EngineUse
        return False

    def holdings(self) -> Sequence[EngineHolding]:
        return ()


NO_ENGINES: Final[EngineUse] = _NoEngines()


def with_engines(
    running: Running, holdings: Iterable[EngineHolding], jobs: Mapping[str, RunningJob], is_awaited: Callable[[str], bool]
) -> Running:
    """Add the engines to what may be freed. `jobs`: the running ones by id, of which `running` says which may give way;
    `is_awaited`: whether queued jobs wait until an engine of this identity has loaded its model."""
    preemptible, giving_way, engines = list(running.preemptible), list(running.giving_way), list[PlacedEngine]()
    may_give_way = {job.job_id for job in preemptible}
    gives_way = {job.job_id for job in giving_way}
    holdings = list(holdings)
    of_replicas = Counter[str]()
    for holding in holdings:
        of_replicas[holding.replica_of] += len(holding.devices)
    for holding in holdings:
        if not holding.devices:
            continue
        users = tuple(jobs[job_id] for job_id in sorted(holding.users) if job_id in jobs)
        unit = RunningJob((), "", holding.node, len(holding.devices), 0.0, engine_id=holding.engine_id, users=users)
        if holding.users <= gives_way and (holding.users or holding.is_leaving):
            giving_way.append(unit)
        elif not holding.is_leaving:
            is_idle = holding.is_idle and not (holding.is_loading and is_awaited(holding.identity))
            width, seconds = len(holding.devices), holding.start_seconds
            engines.append(PlacedEngine(holding.engine_id, holding.identity, holding.node, width, seconds, is_idle))
            if holding.users and holding.users <= may_give_way and not holding.is_replica:
                with_replicas = width + of_replicas[holding.engine_id]  # which end with it
                started_seconds = max(job.started_seconds for job in users)
                preemptible.append(unit._replace(num_gpus=with_replicas, started_seconds=started_seconds))
    return Running(preemptible, giving_way, engines)


def gpus_by_owner(holdings: Iterable[EngineHolding], owner_of: Callable[[str], str | None]) -> Mapping[str, int]:
    """Return how many GPUs the engines have that the jobs of each owner use: each once, however many of the jobs use it."""
    counts: dict[str, int] = {}
    for holding in holdings:
        for owner in {owner_of(job_id) for job_id in holding.users} - {None}:
            assert owner is not None  # noqa: S101 - for the type checker
            counts[owner] = counts.get(owner, 0) + len(holding.devices)
    return counts


def loading_text(holding: EngineHolding) -> str:
    """Say what an engine does that loads its model, and for how long."""
    again = " again" if holding.has_answered else ""
    return f"{holding.engine_id} is loading {holding.model or 'its model'}{again}, {int(holding.loading_seconds)} s"
