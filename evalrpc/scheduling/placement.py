"""Which queued job starts next, and on which devices of which node. Pure: no threads, no clock, no processes.

Jobs start by priority, then in order of arrival. All GPUs of a job lie on one node: of those that have enough free, the one
with the fewest, so that wide jobs find room on the others. A smaller job may pass a wide one that does not fit yet, but only
until the wide one has waited for `reservation_seconds`; from then on the GPUs that come free on one node are kept for it. Jobs
that need no GPU have slots of their own, so neither kind keeps the other waiting.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from evalrpc.executors.base import Node, Resources


class QueuedJob(NamedTuple):
    """What matters about a queued job. Sorts in the order of service."""

    negated_priority: int
    sequence: int
    job_id: str
    num_gpus: int
    created_seconds: float
    """Time of day."""
    ready_seconds: float = 0.0
    """Time of day before which it must not start: after a failed attempt."""
    owner: str = ""


class NodeCapacity(NamedTuple):
    """What a node has."""

    name: str
    free: tuple[str, ...]
    """The devices that can be used and that no job holds."""
    usable_count: int
    """How many devices are not quarantined, whether free or not."""
    device_count: int


class Slots(NamedTuple):
    """How many jobs may run at once."""

    total: int
    """Jobs of both kinds together."""
    without_gpus: int
    """Jobs that need no GPU."""


@dataclass(frozen=True)
class Capacity:
    """What there is for new jobs."""

    nodes: tuple[NodeCapacity, ...]
    slots: Slots
    """Those that are free."""

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
        """How many devices can't be used at present."""
        return sum(node.device_count - node.usable_count for node in self.nodes)


class Placement(NamedTuple):
    """A job, and what it is to start on."""

    job: QueuedJob
    node: str
    devices: tuple[str, ...]


class Reservation(NamedTuple):
    """A job that has waited long, and the node whose GPUs are kept for it."""

    job: QueuedJob
    node: str


def slots(device_count: int, max_running: int) -> Slots:
    """Return how many jobs a server runs at once. Jobs without GPUs get the slots that GPU jobs can't fill, and at least one.

    `max_running` 0 means one per GPU and two more.
    """
    total = max_running or device_count + 2
    return Slots(total, max(1, total - device_count))


def node_capacity(node: Node, held: Set[str]) -> NodeCapacity:
    """Return what a node has, where jobs hold these devices."""
    usable = [device.id for device in node.devices if not device.quarantine_reason]
    return NodeCapacity(node.name, tuple(device for device in usable if device not in held), len(usable), len(node.devices))


def resources_of(devices: Sequence[str], nodes: Sequence[Node]) -> Resources:
    """Return where a job with these devices was placed, since their ids are unique. If no node has them any more, or the job
    holds none, this is the first node."""
    held = set(devices)
    having = (node.name for node in nodes if not held.isdisjoint(device.id for device in node.devices))
    return Resources(next(having, nodes[0].name if nodes else ""), tuple(devices))


def next_placement(
    heads: Iterable[QueuedJob], free: Capacity, now_seconds: float, reservation_seconds: float
) -> tuple[Placement | None, Reservation | None]:
    """Return the job to start now, or None while nothing fits; and the first job before it that GPUs are kept for, if any.

    `heads` holds, for each number of GPUs that is asked for, the first job in the order of service that is ready.
    """
    if free.slots.total < 1:
        return None, None
    reservation = None
    nodes = list(free.nodes)  # without those that are kept
    for job in sorted(heads):
        node = _node_for(job.num_gpus, nodes if job.num_gpus else free.nodes, free.slots)
        if node is not None:
            return Placement(job, node.name, node.free[: job.num_gpus]), reservation
        has_waited = now_seconds - job.created_seconds >= reservation_seconds
        if job.num_gpus and has_waited and (kept := _node_to_keep(job.num_gpus, nodes)):
            nodes.remove(kept)
            reservation = reservation or Reservation(job, kept.name)
    return None, reservation


def fits(num_gpus: int, free: Capacity) -> bool:
    """Tell whether a job of this width can start on what is free."""
    return _node_for(num_gpus, free.nodes, free.slots) is not None


def _node_for(num_gpus: int, nodes: Sequence[NodeCapacity], free: Slots) -> NodeCapacity | None:
    """Return the node with the fewest free devices that suffice."""
    if free.total < 1 or (not num_gpus and free.without_gpus < 1):
        return None
    best = None
    for node in nodes:
        if num_gpus <= len(node.free) and (best is None or len(node.free) < len(best.free)):
            best = node
    return best


def _node_to_keep(num_gpus: int, nodes: Sequence[NodeCapacity]) -> NodeCapacity | None:
    """Return the node to keep for a job: the one that lacks least. No later job is placed there, so it lacks ever less."""
    wide_enough = (node for node in nodes if num_gpus <= node.usable_count)
    return max(wide_enough, key=lambda node: len(node.free), default=None)


def wait_reason(
    job: QueuedJob, position: int, free: Capacity, reservation: Reservation | None = None, *, names_others: bool = True
) -> str:
    """Say in words why a queued job does not run yet. GPUs that are free may be kept for another job, which is named if its
    owner is the same or `names_others`. The position says how many jobs are before it."""
    if job.num_gpus > free.widest:
        return _too_wide(job.num_gpus, free)
    if free.slots.total < 1:
        return "all slots for running jobs are taken"
    if job.num_gpus == 0:
        return "about to start" if fits(0, free) else _missing_without_gpus(free)
    needs = _needs(job.num_gpus, free)
    if reservation is not None and reservation.job < job:
        is_named = names_others or reservation.job.owner == job.owner
        return f"{needs}; {_kept(reservation, free, is_named)}"
    if fits(job.num_gpus, free):
        return f"{needs}; the jobs before it come first" if position else "about to start"
    quarantined = f", {free.quarantined_count} quarantined, see GetQueue" if free.quarantined_count else ""
    return f"{needs}{quarantined}"


def _too_wide(num_gpus: int, free: Capacity) -> str:
    if len(free.nodes) > 1:
        return f"needs {_gpus(num_gpus)} on one node, and no node of this server has more than {free.widest}"
    return f"needs {_gpus(num_gpus)}, and this server has {free.widest} in all"


def _missing_without_gpus(free: Capacity) -> str:
    return "all slots for jobs without GPUs are taken" if free.nodes else "there is no node to run on"


def _needs(num_gpus: int, free: Capacity) -> str:
    if num_gpus == 1 or len(free.nodes) == 1:
        return f"needs {_gpus(num_gpus)}, {free.free_count} free"
    return f"needs {_gpus(num_gpus)} on one node, at most {free.most_free} free on one"


def _kept(reservation: Reservation, free: Capacity, is_named: bool) -> str:
    gpus = f"GPUs of node {reservation.node}" if len(free.nodes) > 1 else "GPUs"
    job = f"job {reservation.job.job_id}" if is_named else "another job"
    return f"{gpus} are kept for {job}, which needs {reservation.job.num_gpus} and has waited long"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
