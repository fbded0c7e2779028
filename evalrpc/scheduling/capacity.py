"""What there is to place jobs on: nodes with their devices, and slots. Pure."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from evalrpc.executors.base import Node, Resources
from evalrpc.jobs.defaults import HERE
from evalrpc.v1.jobs_pb2 import JobInfo

ALONE: Final = "local"
"""The name of the node of a server that is alone."""


class NodeCapacity(NamedTuple):
    """What a node has."""

    name: str
    free: tuple[str, ...]
    """The devices that can be used and that no job holds."""
    usable_count: int
    """How many devices are neither quarantined nor cordoned, whether free or not."""
    device_count: int
    cordoned_count: int = 0
    """How many devices are cordoned."""
    executor: str = ""
    """The executor that it belongs to."""
    free_runs: int | None = None
    """How many more runs it takes at once. None: as many as the server has free slots."""
    free_runs_without_gpus: int | None = None
    """How many of these may have no device. None: all."""
    is_remote: bool = False
    """Whether another machine is that of the scheduler."""

    def has_run_for(self, num_gpus: int, *, is_served: bool) -> bool:
        """Return whether it takes one more run, as far as its own bounds go. A run with a served model is in none."""
        if self.free_runs is None or is_served:
            return True
        of_kind = self.free_runs if num_gpus or self.free_runs_without_gpus is None else self.free_runs_without_gpus
        return min(self.free_runs, of_kind) >= 1


class Slots(NamedTuple):
    """How many jobs may run at once."""

    total: int
    """Jobs of both kinds together."""
    without_gpus: int
    """Jobs that need no GPU."""
    served: int = 0
    """Jobs with a served model, which are not among the others."""

    def are_free_for(self, num_gpus: int, *, is_served: bool) -> bool:
        """Return whether there is one for a job."""
        return self.served >= 1 if is_served else self.total >= 1 and (num_gpus > 0 or self.without_gpus >= 1)


_ANY_NUMBER: Final = 1 << 30


@dataclass(frozen=True)
class Capacity:
    """What there is for new jobs."""

    nodes: tuple[NodeCapacity, ...]
    slots: Slots
    """Those that are free, for jobs on nodes without a bound of their own."""

    @cached_property
    def by_executor(self) -> Mapping[str, "Capacity"]:
        """What there is for the jobs of each executor."""
        of_each: dict[str, list[NodeCapacity]] = {"": []}
        for node in self.nodes:
            of_each.setdefault(node.executor, []).append(node)
        of_each[HERE] = [node for node in of_each[""] if not node.is_remote]
        return {name: Capacity(tuple(nodes), self._slots_of(name, nodes)) for name, nodes in of_each.items()}

    def of(self, executor: str) -> "Capacity":
        """Return what there is for the jobs of an executor: nothing, if the server has none of that name any more."""
        return self.by_executor.get(executor, _NOTHING)

    def _slots_of(self, executor: str, nodes: Sequence[NodeCapacity]) -> Slots:
        bounds = [node.free_runs for node in nodes if node.free_runs is not None]
        if not bounds:
            return self.slots
        without_gpus = [node.free_runs_without_gpus for node in nodes if node.free_runs_without_gpus is not None]
        served = self.slots.served if executor in ("", HERE) else 0
        return Slots(sum(bounds), sum(without_gpus) if without_gpus else _ANY_NUMBER, served)

    @cached_property
    def free_count(self) -> int:
        """How many devices are free on all nodes together."""
        return sum(len(node.free) for node in self.nodes)

    @cached_property
    def most_free(self) -> int:
        """How many devices are free on the node that has most."""
        return max((len(node.free) for node in self.nodes), default=0)

    @cached_property
    def widest(self) -> int:
        """How many devices the largest node has, whether free or not."""
        return max((node.device_count for node in self.nodes), default=0)

    @cached_property
    def quarantined_count(self) -> int:
        """How many devices can't be used at present, without those that are cordoned."""
        return sum(node.device_count - node.usable_count for node in self.nodes) - self.cordoned_count

    @cached_property
    def cordoned_count(self) -> int:
        """How many devices operators keep from being used."""
        return sum(node.cordoned_count for node in self.nodes)


_NOTHING: Final = Capacity((), Slots(0, 0))


def slots(device_count: int, max_running: int, max_running_served: int = 0) -> Slots:
    """Return how many jobs a server runs at once. Jobs without GPUs get the slots that GPU jobs can't fill, and at least one.

    `max_running` 0 means one per GPU and two more. `max_running_served`: how many run with a served model.
    """
    total = max_running or device_count + 2
    return Slots(total, max(1, total - device_count), max_running_served)


def node_capacity(node: Node, held: Set[str], run_count: int = 0, count_without_gpus: int = 0) -> NodeCapacity:
    """Return what a node has, where jobs hold these devices, and so many runs are on it, of which some have no device."""
    usable = [device.id for device in node.devices if not device.quarantine_reason and not device.is_cordoned]
    free = tuple(device for device in usable if device not in held)
    cordoned_count = sum(1 for device in node.devices if device.is_cordoned)
    free_runs = _left(node.max_runs, run_count)
    without_gpus = _left(node.max_runs_without_gpus, count_without_gpus)
    counts = len(usable), len(node.devices), cordoned_count
    return NodeCapacity(node.name, free, *counts, node.executor, free_runs, without_gpus, node.is_remote)


def _left(bound: int | None, count: int) -> int | None:
    return None if bound is None else max(0, bound - count)


def resources_of(job: JobInfo, nodes: Sequence[Node]) -> Resources:
    """Return where the latest attempt of a job was placed: where it says so, or which node has its devices, since their ids are
    unique. If no node has them any more, or there are none, this is the first node."""
    placed = job.attempts[-1].node if job.attempts else ""
    if placed and (placed != ALONE or not nodes or nodes[0].max_runs is None):
        return Resources(placed, tuple(job.gpus))
    if placed:  # by a server that was alone then, on this machine
        return Resources(nodes[0].name, tuple(f"{nodes[0].name}/{gpu}" for gpu in job.gpus))
    held = set(job.gpus)
    having = (node.name for node in nodes if not held.isdisjoint(device.id for device in node.devices))
    return Resources(next(having, nodes[0].name if nodes else ""), tuple(job.gpus))
