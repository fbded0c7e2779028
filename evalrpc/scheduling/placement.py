"""Which queued job starts next, and on which devices of which node. Pure: no threads, no clock, no processes.

Jobs start in the order of service, which `shares` gives. All GPUs of a job lie on one node: of those that have enough free,
the one with the fewest, so that wide jobs find room on the others. A smaller job may pass a wide one that does not fit yet, but
only until the wide one has waited for `reservation_seconds`; from then on the GPUs that come free on one node are kept for it.
Jobs that need no GPU have slots of their own, and so have those with a served model, so no kind keeps another waiting.

For a job that fits nowhere, engines without jobs end: those that start fastest, and no more than make room. A job whose engine
that is comes first, as long as the other has not waited for `reservation_seconds`. Or else running jobs give way that are
preemptible and come after it: the fewest that make room, and of these the youngest. An engine is like a job that is as wide as
the engine, and gives way with all its jobs. What they free is kept for the one that waits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Protocol, TypeVar

from evalrpc.executors.base import Node, Resources
from evalrpc.jobs.defaults import HERE
from evalrpc.jobs.served_models import needs_of
from evalrpc.v1.jobs_pb2 import JobInfo

_Width = tuple[str, int, bool]
"""The executor of a job, how many GPUs it needs, and whether it takes a slot of those with a served model."""

ALONE: Final = "local"
"""The name of the node of a server that is alone."""

Order = tuple[float, ...]
"""The place of a job in the order of service: what sorts first is served first. No two jobs have the same. The first number is
0 for urgent jobs and 1 for all others; the second is what the owner has used."""


class QueuedJob(NamedTuple):
    """What matters about a queued job. Sorts in the order in which the jobs of one owner are served."""

    negated_priority: int
    sequence: int
    job_id: str
    num_gpus: int
    """How many it needs, those of engines that have to be started included."""
    created_seconds: float
    """Time of day."""
    ready_seconds: float = 0.0
    """Time of day before which it must not start: after a failed attempt."""
    owner: str = ""
    engine: str = ""
    """The engines that it needs: see `jobs.served_models.needs_text`. Empty without one."""
    executor: str = ""
    """The executor whose nodes it may be placed on; empty: all machines with servers; HERE: that of the scheduler."""
    is_served: bool = False
    """Whether engines or endpoints answer for its model, and its run has no GPUs: it takes a slot of such jobs."""


class Head(NamedTuple):
    """A queued job that may start, with its place."""

    order: Order
    job: QueuedJob

    @property
    def is_urgent(self) -> bool:
        """Whether it comes before the jobs of all other owners."""
        return not self.order[0]


class RunningJob(NamedTuple):
    """A running job that may give way to others, or is about to; or an engine with its jobs."""

    order: Order
    job_id: str
    node: str
    num_gpus: int
    started_seconds: float
    """Time of day."""
    owner: str = ""
    is_served: bool = False
    """Whether an engine answers for its model."""
    engine_id: str = ""
    """The engine that this is; empty of a job."""
    users: tuple["RunningJob", ...] = ()
    """The jobs of the engine, which give way with it."""

    @property
    def jobs(self) -> tuple["RunningJob", ...]:
        """The jobs that give way."""
        return self.users if self.engine_id else (self,)


class PlacedEngine(NamedTuple):
    """An engine that holds GPUs and is not about to end."""

    engine_id: str
    identity: str
    """As in the needs of jobs."""
    node: str
    num_gpus: int
    start_seconds: float
    """How long its start took."""
    is_idle: bool
    """Whether it has no jobs, and could end at once."""


class Running(NamedTuple):
    """What running jobs and engines may free."""

    preemptible: Sequence[RunningJob] = ()
    """Those that may be asked to give way."""
    giving_way: Sequence[RunningJob] = ()
    """Those that have been asked to, so that what they hold comes free shortly."""
    engines: Sequence[PlacedEngine] = ()
    """Those that are there."""


NONE_RUNNING: Final = Running()


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


class Placement(NamedTuple):
    """A job, and what it is to start on."""

    job: QueuedJob
    node: str
    devices: tuple[str, ...]


class Preemption(NamedTuple):
    """A job, and the running jobs that are to give way to it."""

    job: QueuedJob
    victims: tuple[RunningJob, ...]


class Eviction(NamedTuple):
    """A job, and the engines without jobs that are to end, so that it has room."""

    job: QueuedJob
    engine_ids: tuple[str, ...]


class Reservation(NamedTuple):
    """A job and the node whose GPUs are kept for it: since it has waited long, or since others give way to it."""

    job: QueuedJob
    node: str
    is_made_room_for: bool = False
    is_urgent: bool = False
    draining: tuple[str, ...] = ()
    """The engines there that are to serve no further job, or it would never have room."""


Choice = Placement | Preemption | Eviction
"""What can be done for a job."""


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


def next_placement(
    heads: Iterable[Head],
    free: Capacity,
    now_seconds: float,
    reservation_seconds: float,
    running: Running = NONE_RUNNING,
    earlier: Reservation | None = None,
) -> tuple[Choice | None, Reservation | None]:
    """Return the job to start now, or one for which engines are to end or others to give way, or None while nothing can be
    done; and the first job that GPUs are kept for, if any.

    `heads` yields, in the order of service, for each owner and each number of GPUs that is asked for, the first job that may
    start. `earlier`: the reservation that the last call returned, if its job still waits. It holds against all other owners
    until that starts, since they may come before it and behind it in turn; but not against urgent jobs. At most one node is
    kept for jobs of the same width.
    """
    if not any(running) and all(max(each.slots.total, each.slots.served) < 1 for each in free.by_executor.values()):
        return None, None
    withheld = _node_to_keep(earlier.job.num_gpus, free.of(earlier.job.executor).nodes) if earlier is not None else None
    reservation = earlier if withheld is not None else None
    kept: set[str] = set()  # nodes
    failed: set[tuple[_Width, bool]] = set()
    eviction: Eviction | None = None
    reserved = {_width_of(earlier.job): earlier.job.job_id} if earlier is not None else {}  # for whom
    for head in heads:
        job, width = head.job, _width_of(head.job)
        own = free.of(job.executor)
        is_withheld = withheld is not None and job.num_gpus > 0 and not _may_use_kept(head, reservation)
        if eviction is not None:
            node = _node_for(0, own.nodes, own.slots, is_served=True)
            if node is not None and _needs_one_of(job, eviction, running.engines):
                return Placement(job, node.name, ()), reservation
            continue
        is_first = reserved.get(width, job.job_id) == job.job_id
        has_waited = is_first and now_seconds - job.created_seconds >= reservation_seconds
        if (width, is_withheld) in failed and not has_waited and not running.preemptible:
            continue  # as one of the same width before it
        open_nodes: Sequence[NodeCapacity] = own.nodes
        if job.num_gpus:
            open_nodes = [node for node in own.nodes if node.name not in kept and not (is_withheld and node is withheld)]
        node = _node_for(job.num_gpus, open_nodes, own.slots, is_served=job.is_served)
        if node is not None:
            return Placement(job, node.name, node.free[: job.num_gpus]), reservation
        failed.add((width, is_withheld))
        giving_way, preemptible = _on(own.nodes, running.giving_way), _on(own.nodes, running.preemptible)
        freed = _freed(open_nodes, own.slots, giving_way)
        coming = _node_for(job.num_gpus, *freed, is_served=job.is_served) if giving_way else None
        if coming is None and (idle := _idle_engines_to_end(job, *freed, running.engines)):
            eviction = Eviction(job, idle)
            if now_seconds - job.created_seconds >= reservation_seconds:
                return eviction, reservation
            continue
        if coming is None and (victims := _victims(head, *freed, preemptible)):
            return Preemption(job, victims), reservation
        keep = coming or (_node_to_keep(job.num_gpus, open_nodes) if has_waited else None)
        if job.num_gpus and keep is not None:
            kept.add(keep.name)
            reserved[width] = job.job_id
            if reservation is None or (reservation is earlier and job.owner == reservation.job.owner):
                draining = _engines_to_drain(job.num_gpus, keep, running.engines) if coming is None else ()
                reservation = Reservation(job, keep.name, coming is not None, head.is_urgent, draining)
    return eviction, reservation


def _may_use_kept(head: Head, reservation: Reservation | None) -> bool:
    """Return whether a job may use what is kept by a reservation, if it comes before that."""
    if reservation is None or head.job.owner == reservation.job.owner:
        return True
    return head.is_urgent and not reservation.is_urgent


def _width_of(job: QueuedJob) -> _Width:
    return job.executor, job.num_gpus, job.is_served


def _on(nodes: Sequence[NodeCapacity], jobs: Sequence[RunningJob]) -> Sequence[RunningJob]:
    """Return the jobs that run on one of these nodes."""
    names = {node.name for node in nodes} if jobs else ()
    return [job for job in jobs if job.node in names]


def fits(num_gpus: int, free: Capacity, *, is_served: bool = False) -> bool:
    """Tell whether a job of this width can start on what is free for its executor."""
    return _node_for(num_gpus, free.nodes, free.slots, is_served=is_served) is not None


def _node_for(num_gpus: int, nodes: Sequence[NodeCapacity], free: Slots, *, is_served: bool) -> NodeCapacity | None:
    """Return the node with the fewest free devices that suffice."""
    if not free.are_free_for(num_gpus, is_served=is_served):
        return None
    suitable = (node for node in nodes if num_gpus <= len(node.free) and node.has_run_for(num_gpus, is_served=is_served))
    return min(suitable, key=lambda node: _reluctance(node, num_gpus), default=None)


def _reluctance(node: NodeCapacity, num_gpus: int) -> tuple[int, int]:
    """Return by what nodes sort that could take a job: runs without GPUs are spread, those with GPUs fill one node first."""
    return (-(node.free_runs_without_gpus or 0) if not num_gpus else 0), len(node.free)


def _freed(nodes: Sequence[NodeCapacity], free: Slots, leaving: Sequence[RunningJob]) -> tuple[Sequence[NodeCapacity], Slots]:
    """Return what will be free once these jobs have ended."""
    if not leaving:
        return nodes, free
    gpus = {node.name: sum(job.num_gpus for job in leaving if job.node == node.name) for node in nodes}
    served = sum(job.is_served for job in leaving)
    others = [job for job in leaving if not job.is_served and not job.engine_id]
    without_gpus = sum(not job.num_gpus for job in others)
    return (
        [_with_freed(node, gpus[node.name], [job for job in others if job.node == node.name]) for node in nodes],
        Slots(free.total + len(others), free.without_gpus + without_gpus, free.served + served),
    )


def _with_freed(node: NodeCapacity, gpu_count: int, leaving: Sequence[RunningJob]) -> NodeCapacity:
    """Return a node with so many GPUs more, once these jobs have left their slots."""
    without_gpus = sum(not job.num_gpus for job in leaving)
    return node._replace(
        free=(*node.free, *[""] * gpu_count),
        free_runs=node.free_runs if node.free_runs is None else node.free_runs + len(leaving),
        free_runs_without_gpus=node.free_runs_without_gpus
        if node.free_runs_without_gpus is None
        else node.free_runs_without_gpus + without_gpus,
    )


def _idle_engines_to_end(
    job: QueuedJob, nodes: Sequence[NodeCapacity], free: Slots, engines: Sequence[PlacedEngine]
) -> tuple[str, ...]:
    """Return which engines without jobs are to end so that a job has room; none, where that does not help."""
    if not job.num_gpus or not free.are_free_for(job.num_gpus, is_served=job.is_served):
        return ()
    idle = [engine for engine in engines if engine.is_idle]
    rooms = [
        _cheapest([engine for engine in idle if engine.node == node.name], job.num_gpus - len(node.free))
        for node in nodes
        if job.num_gpus <= node.usable_count
    ]
    return tuple(engine.engine_id for engine in min(filter(None, rooms), key=_cost_of_restarts, default=()))


def _needs_one_of(job: QueuedJob, eviction: Eviction, engines: Sequence[PlacedEngine]) -> bool:
    """Return whether a job could use one of the engines that are to end."""
    if job.num_gpus or not job.is_served:
        return False
    needed = {need.identity for need in needs_of(job.engine)}
    return any(each.identity in needed and each.engine_id in eviction.engine_ids for each in engines)


def _engines_to_drain(num_gpus: int, node: NodeCapacity, engines: Sequence[PlacedEngine]) -> tuple[str, ...]:
    """Return which engines of a node have to end so that so many GPUs come free there, besides all that jobs hold."""
    there = [engine for engine in engines if engine.node == node.name]
    missing = num_gpus - (node.usable_count - sum(engine.num_gpus for engine in there))
    return tuple(engine.engine_id for engine in _cheapest(there, missing))


def _cheapest(engines: Sequence[PlacedEngine], num_gpus: int) -> tuple[PlacedEngine, ...]:
    """Return the engines that hold so many GPUs together and start fastest, and of these the fewest; none, where all together
    don't."""
    return _covering(engines, num_gpus, _cost_of_restarts)


def _cost_of_restarts(engines: Sequence[PlacedEngine]) -> Order:
    return sum(engine.start_seconds for engine in engines), len(engines)


class _WithGpus(Protocol):
    @property
    def num_gpus(self) -> int: ...


_U = TypeVar("_U", bound=_WithGpus)


def _covering(units: Iterable[_U], num_gpus: int, cost: Callable[[Sequence[_U]], Order]) -> tuple[_U, ...]:
    """Return the units with so many GPUs together that cost least; none, where all together have less, or none are needed."""
    best: dict[int, tuple[_U, ...]] = {0: ()}  # by the number of their GPUs
    for unit in units:
        for covered, chosen in list(best.items()):
            total, more = min(num_gpus, covered + unit.num_gpus), (*chosen, unit)
            if total > covered and (total not in best or cost(more) < cost(best[total])):
                best[total] = more
    return best.get(num_gpus, ())


def _victims(
    head: Head, nodes: Sequence[NodeCapacity], free: Slots, preemptible: Sequence[RunningJob]
) -> tuple[RunningJob, ...]:
    """Return which running jobs are to give way to one that fits nowhere; none, where they can't make room for it."""
    behind = [job for job in preemptible if all(_is_behind(each, head) for each in job.jobs)]
    num_gpus, is_served = head.job.num_gpus, head.job.is_served
    if not behind or not nodes:
        return ()
    jobs_of_kind = [job for job in behind if job.is_served == is_served and not job.engine_id]
    if not num_gpus:
        any_will_do = is_served or free.without_gpus >= 1
        return _youngest(jobs_of_kind if any_will_do else [job for job in jobs_of_kind if not job.num_gpus])
    holding = [job for job in behind if job.num_gpus]
    if not free.are_free_for(num_gpus, is_served=is_served):
        holding = [job for job in holding if not is_served and not job.engine_id]  # each frees a slot, too
    rooms = []
    for node in nodes:
        missing = num_gpus - len(node.free)
        if missing <= 0:
            on_node = [job for job in jobs_of_kind if node.free_runs is None or job.node == node.name]
            rooms.append(_youngest(on_node))  # only a slot is missing
        elif num_gpus <= node.usable_count:
            rooms.append(_fewest([job for job in holding if job.node == node.name], missing))
    return min(filter(None, rooms), key=_cost_of_ends, default=())


def _is_behind(running: RunningJob, head: Head) -> bool:
    """Return whether a running job comes after a queued one. What owners hold just now is no reason to end a run: it only says
    whose turn it is among those who have used the same."""
    if running.owner == head.job.owner:
        return head.order < running.order
    return head.order[:2] < running.order[:2]


def _youngest(jobs: Sequence[RunningJob]) -> tuple[RunningJob, ...]:
    """Return the job that was started last, if there is one."""
    return tuple(sorted(jobs, key=lambda job: -job.started_seconds)[:1])


def _fewest(jobs: Sequence[RunningJob], num_gpus: int) -> tuple[RunningJob, ...]:
    """Return the fewest jobs that hold so many GPUs together, and of these the youngest, which come first; none, where all
    together don't."""
    return tuple(sorted(_covering(jobs, num_gpus, _cost_of_ends), key=lambda job: -job.started_seconds))


def _cost_of_ends(units: Sequence[RunningJob]) -> Order:
    jobs = [job for unit in units for job in unit.jobs]
    return len(jobs), *sorted(-job.started_seconds for job in jobs)


def _node_to_keep(num_gpus: int, nodes: Sequence[NodeCapacity]) -> NodeCapacity | None:
    """Return the node to keep for a job: the one that lacks least. No later job is placed there, so it lacks ever less."""
    wide_enough = (node for node in nodes if num_gpus <= node.usable_count)
    return max(wide_enough, key=lambda node: len(node.free), default=None)


def wait_reason(
    job: QueuedJob,
    position: int,
    free: Capacity,
    reservation: Reservation | None = None,
    others: str = "",
    *,
    names_others: bool = True,
) -> str:
    """Say in words why a queued job does not run yet. The position says how many jobs are before it, `others` who comes first
    for another owner's share. A reservation counts if its job comes before this one. `names_others`: whether the jobs of other
    owners may be named."""
    is_among_others = len(free.of("").nodes) > 1
    free = free.of(job.executor)
    executor = "" if job.executor == HERE else job.executor
    if executor and not free.nodes:
        return f"this server has no executor {job.executor!r} any more"
    if job.executor == HERE and is_among_others and free.nodes and job.num_gpus > free.widest:
        machine = f"{free.nodes[0].name}, where engines are started and models prepared"
        return f"needs {gpus_text(job.num_gpus)} of {machine}, and that has {free.widest} in all"
    if job.num_gpus > free.widest:
        return _too_wide(job.num_gpus, free)
    if job.is_served and free.slots.served < 1:
        return _joined("all slots for jobs with a served model are taken", others)
    if not job.is_served and free.slots.total < 1:
        where = f" of {executor}" if executor else ""
        return _joined(f"all slots{where} for running jobs are taken", others)
    if job.num_gpus == 0:
        return (
            "about to start"
            if fits(job.num_gpus, free, is_served=job.is_served)
            else _joined(_missing_without_gpus(free), others)
        )
    needs = _needs(job.num_gpus, free)
    if reservation is not None and reservation.job.job_id != job.job_id:
        return _joined(needs, _kept(reservation, free, is_named=names_others or reservation.job.owner == job.owner))
    if fits(job.num_gpus, free, is_served=job.is_served):
        first = others or ("the jobs before it come first" if position else "")
        return _joined(needs, first) if first else "about to start"
    counts = ((free.quarantined_count, "quarantined"), (free.cordoned_count, "cordoned"))
    unusable = "".join(f", {count} {what}" for count, what in counts if count)
    quarantined = f"{unusable}, see GetQueue" if unusable else ""
    is_made_room_for = reservation is not None and reservation.is_made_room_for
    return _joined(f"{needs}{quarantined}", "other jobs give way to it" if is_made_room_for else others)


def _joined(reason: str, more: str) -> str:
    return f"{reason}; {more}" if more else reason


def _too_wide(num_gpus: int, free: Capacity) -> str:
    if len(free.nodes) > 1:
        return f"needs {gpus_text(num_gpus)} on one node, and no node of this server has more than {free.widest}"
    if free.nodes and free.nodes[0].executor:
        return f"needs {gpus_text(num_gpus)}, and {free.nodes[0].executor} has {free.widest} in all"
    return f"needs {gpus_text(num_gpus)}, and this server has {free.widest} in all"


def _missing_without_gpus(free: Capacity) -> str:
    return "all slots for jobs without GPUs are taken" if free.nodes else "there is no node to run on"


def _needs(num_gpus: int, free: Capacity) -> str:
    if num_gpus == 1 or len(free.nodes) == 1:
        return f"needs {gpus_text(num_gpus)}, {free.free_count} free"
    return f"needs {gpus_text(num_gpus)} on one node, at most {free.most_free} free on one"


def _kept(reservation: Reservation, free: Capacity, *, is_named: bool) -> str:
    gpus = f"GPUs of node {reservation.node}" if len(free.nodes) > 1 else "GPUs"
    job = f"job {reservation.job.job_id}" if is_named else "another job"
    why = "comes first" if reservation.is_made_room_for else "has waited long"
    return f"{gpus} are kept for {job}, which needs {reservation.job.num_gpus} and {why}"


def gpus_text(count: int) -> str:
    """Return a number of GPUs in words."""
    return "1 GPU" if count == 1 else f"{count} GPUs"
