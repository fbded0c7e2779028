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

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from evalrpc.jobs.served_models import needs_of
from evalrpc.scheduling.capacity import Capacity, NodeCapacity, Slots

_Width = tuple[str, int, bool]
"""The executor of a job, how many GPUs it needs, and whether it takes a slot of those with a served model."""

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
    search = _Search(free, now_seconds, reservation_seconds, running, earlier)
    for head in heads:
        choice = search.choice_for(head)
        if choice is not None:
            return choice, search.reservation
    return search.eviction, search.reservation


class _Search:
    """A search for what to do next, from head to head; see `next_placement`."""

    def __init__(
        self, free: Capacity, now_seconds: float, reservation_seconds: float, running: Running, earlier: Reservation | None
    ) -> None:
        self.reservation: Reservation | None = None
        self.eviction: Eviction | None = None
        """Of idle engines, for the first job for which only these are in the way. A job that needs one of them may start."""
        self._free = free
        self._running = running
        self._now_seconds = now_seconds
        self._reservation_seconds = reservation_seconds
        self._earlier = earlier
        self._withheld: NodeCapacity | None = None
        """What is kept by the earlier reservation."""
        self._kept: set[str] = set()
        """Nodes that are kept for jobs further ahead."""
        self._kept_for: dict[_Width, str] = {}
        """The only job of a width for which GPUs are kept."""
        self._failed: set[tuple[_Width, bool]] = set()
        """What has fitted nowhere, without and with what is withheld."""
        if earlier is not None:
            self._withheld = _node_to_keep(earlier.job.num_gpus, free.of(earlier.job.executor).nodes)
            self._kept_for[_width_of(earlier.job)] = earlier.job.job_id
            if self._withheld is not None:
                self.reservation = earlier

    def choice_for(self, head: Head) -> Choice | None:
        """Return what is to be done for a job, if it is the one that something is to be done for; note what it keeps from those
        behind it."""
        job, own = head.job, self._free.of(head.job.executor)
        if self.eviction is not None:
            return _beside(self.eviction, job, own, self._running.engines)
        is_first = self._kept_for.get(_width_of(job), job.job_id) == job.job_id
        has_waited = is_first and self._has_waited(job)
        withheld = self._withheld if job.num_gpus and not _may_use_kept(head, self.reservation) else None
        failure = (_width_of(job), withheld is not None)
        if failure in self._failed and not has_waited and not self._running.preemptible:
            return None  # as one of the same width before it
        open_nodes: Sequence[NodeCapacity] = own.nodes
        if job.num_gpus:
            open_nodes = [node for node in own.nodes if node.name not in self._kept and node is not withheld]
        node = _node_for(job.num_gpus, open_nodes, own.slots, is_served=job.is_served)
        if node is not None:
            return Placement(job, node.name, node.free[: job.num_gpus])
        self._failed.add(failure)
        return self._room_for(head, own, open_nodes, has_waited=has_waited)

    def _has_waited(self, job: QueuedJob) -> bool:
        """Return whether a job has waited for long enough to have GPUs kept for it."""
        return self._now_seconds - job.created_seconds >= self._reservation_seconds

    def _room_for(self, head: Head, own: Capacity, open_nodes: Sequence[NodeCapacity], *, has_waited: bool) -> Choice | None:
        """Return who is to make room for a job that fits nowhere; if nobody is, note what is kept for it."""
        job, engines = head.job, self._running.engines
        giving_way, preemptible = _on(own.nodes, self._running.giving_way), _on(own.nodes, self._running.preemptible)
        freed = _freed(open_nodes, own.slots, giving_way)
        coming = _node_for(job.num_gpus, *freed, is_served=job.is_served) if giving_way else None
        if coming is None and (idle := _idle_engines_to_end(job, *freed, engines)):
            self.eviction = Eviction(job, idle)
            return self.eviction if self._has_waited(job) else None
        if coming is None and (victims := _victims(head, *freed, preemptible)):
            return Preemption(job, victims)
        keep = coming or (_node_to_keep(job.num_gpus, open_nodes) if has_waited else None)
        if job.num_gpus and keep is not None:
            self._keep(keep, head, is_coming=coming is not None)
        return None

    def _keep(self, node: NodeCapacity, head: Head, *, is_coming: bool) -> None:
        """Keep a node for a job. The first one is the reservation, also if another job of the same owner had it."""
        job, reserved = head.job, self.reservation
        self._kept.add(node.name)
        self._kept_for[_width_of(job)] = job.job_id
        if reserved is None or (reserved is self._earlier and job.owner == reserved.job.owner):
            draining = () if is_coming else _engines_to_drain(job.num_gpus, node, self._running.engines)
            self.reservation = Reservation(job, node.name, is_coming, head.is_urgent, draining)


def _beside(eviction: Eviction, job: QueuedJob, own: Capacity, engines: Sequence[PlacedEngine]) -> Placement | None:
    """Return where a job can start that needs one of the engines that are to end: they stay for it instead."""
    node = _node_for(0, own.nodes, own.slots, is_served=True)
    if node is not None and _needs_one_of(job, eviction, engines):
        return Placement(job, node.name, ())
    return None


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
