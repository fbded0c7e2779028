"""The queue and the running jobs in memory, kept up with every commit of the store.

The service answers positions and GetQueue from it, and the scheduler chooses from it; neither changes it.

Threads: `apply` runs on the store's writer thread, everything else on any. One lock, held for a few steps only.
"""

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.engines.holdings import EngineHolding
from evalrpc.executors.base import Node, Resources
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.defaults import takes_served_slot
from evalrpc.jobs.holds import NO_HOLDS, Holds
from evalrpc.jobs.lifecycle import Status
from evalrpc.jobs.served_models import engine_gpu_count, needs_of, served_models
from evalrpc.jobs.share_policy import Entitlements, charged_width, is_urgent
from evalrpc.protobuf import wire_format
from evalrpc.protobuf.times import seconds_of
from evalrpc.scheduling import capacity, placement, wait_reasons
from evalrpc.scheduling.capacity import Capacity, Slots
from evalrpc.scheduling.engine_charges import ChargedJob, EngineCharges
from evalrpc.scheduling.engine_use import NO_ENGINES, EngineUse, gpus_by_owner, loading_text, with_engines
from evalrpc.scheduling.forecast import Forecast, Line
from evalrpc.scheduling.owner_queue import OwnerQueue
from evalrpc.scheduling.placeable_nodes import PlaceableNodes
from evalrpc.scheduling.placement import Choice, Head, QueuedJob, Reservation, Running, RunningJob
from evalrpc.scheduling.queued_jobs import QueuedJobs
from evalrpc.scheduling.running_jobs import RunningJobs
from evalrpc.scheduling.shares import Holding, RunUse, Shares, Standing, quota_reason, service_order, within_quota
from evalrpc.store.base import AttemptUse, Change, ListedJob, QueuedRow
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.queue_pb2 import NodeState, OwnerShare

DEFAULT_HALF_LIFE_SECONDS: Final = 24 * 3600.0

_FORECAST_SECONDS: Final = 5.0  # for so long shares count as they were
_MAX_TOLD: Final = 10_000
_NOTHING: Final = pb.JobInfo()
_CACHED_FROM: Final = wire_format.field_tag(pb.JobInfo.CACHED_FROM_FIELD_NUMBER)


class QueueState:
    """What is queued, in the order of service, and what runs on which GPUs.

    `nodes` is `Executor.nodes`. Of the running jobs, those that `owns` accepts when they are loaded or committed belong to this
    server: they take its slots and devices, and its scheduler sees them through. `max_running` 0 means one per GPU that there
    is now, and two more; jobs with a served model are not among these.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        max_running: int,
        clock: Clock,
        owns: Callable[[pb.JobInfo], bool] = lambda _: True,
        *,
        entitlements: Entitlements | None = None,
        half_life_seconds: float = DEFAULT_HALF_LIFE_SECONDS,
        preemption_interval_seconds: float = 0.0,
        holds: Callable[[], Holds] = lambda: NO_HOLDS,
        engines: EngineUse = NO_ENGINES,
        max_running_served: int = 8,
    ) -> None:
        device_count = sum(len(node.devices) for node in nodes() if node.max_runs is None)
        self._slots: Slots = capacity.slots(device_count, max_running, max_running_served)
        self._nodes = PlaceableNodes(nodes, holds)
        self._engines = engines
        self._entitlements = entitlements or Entitlements()
        self._clock = clock
        self._preemption_interval_seconds = preemption_interval_seconds
        self._lock = threading.Lock()
        self._queued = QueuedJobs()
        self._running = RunningJobs(self._nodes, owns, engines)
        self._shares = Shares(half_life_seconds)
        self._charges = EngineCharges()
        self._holdings_of_engines: Sequence[EngineHolding] = ()  # as of the last change of them
        self._gpus_of_engines: Mapping[str, int] = {}  # by the owner of jobs that use them, as of then
        self._known_free: tuple[Sequence[Node], Capacity] | None = None
        self.generation = 0
        """Grows with every commit that was followed: what was read before holds as long as it stays."""
        self._reservation: Reservation | None = None  # as of the last choice
        self._quotas_kept_for: dict[str, QueuedJob] = {}  # by owner, as of the last choice
        self._forecast: tuple[object, Forecast] | None = None  # as of a state
        self._told: tuple[object, dict[tuple[str, bool], bytes]] = None, {}  # what `_waiting` has said of jobs, as of a state
        self.draining = False
        """Whether no more jobs are started, which those that wait are told."""

    @property
    def state(self) -> object:
        """What the order of service, and all that GetQueue says of jobs, depends on: equal as long as they may be kept."""
        return (
            self.generation,
            self.nodes(),
            self.is_paused,
            self._entitlements.policy,
            int(self._clock.monotonic() / _FORECAST_SECONDS),
        )

    @property
    def is_paused(self) -> bool:
        """Whether an operator keeps queued jobs from starting."""
        return self._nodes.is_paused

    def owns(self, job: pb.JobInfo) -> bool:
        """Return whether a running job belongs to this server."""
        return self._running.owns(job)

    def nodes(self) -> Sequence[Node]:
        """Return what runs can be placed on, with what is cordoned. The same object until that changes."""
        return self._nodes.now()

    @property
    def slots(self) -> Slots:
        """How many jobs may run at once, on clusters apart."""
        bounded = [node for node in self.nodes() if not node.executor and node.max_runs is not None]
        if not bounded:
            return self._slots
        without_gpus = sum(node.max_runs_without_gpus or 0 for node in bounded)
        return Slots(sum(node.max_runs or 0 for node in bounded), without_gpus, self._slots.served)

    @property
    def uses_since_ns(self) -> int:
        """The time of day since when attempts that have ended count for the shares."""
        return max(0, int((self.now_seconds() - self._shares.kept_seconds) * 1e9))

    def load(self, queued: Iterable[QueuedRow], running: Iterable[ListedJob], uses: Iterable[AttemptUse] = ()) -> None:
        """Take the jobs that were live when the store was opened, and what earlier attempts have used."""
        self._queued.load(queued)
        now_seconds = self.now_seconds()
        for use in uses:
            self._shares.restore(use.owner, use.width, use.started_ns / 1e9, use.ended_ns / 1e9, now_seconds)
        for sequence, job in running:
            self._running.add(job, sequence)
            self._shares.begin(job.owner, _use_of(job), seconds_of(job.started_at), now_seconds)
        self._known_free = None

    def apply(self, changes: Sequence[Change]) -> None:
        """Follow a commit. A listener of the store."""
        with self._lock:
            for change in changes:
                self._charge(change)
                self._remove(change)  # also what is new: it may have been loaded already
                self._place(change)
            if any(served_models(change.job.request) for change in changes):
                self._charge_engines()
            self.generation += 1  # last, so that nothing half done is taken for the new state

    def set_progress(self, job_id: str, progress: pb.Progress, wait_reason: str = "") -> pb.JobInfo | None:
        """Note how far a running job has come, and why its run waits where it does; return the job with both, or None if it
        does not run any more."""
        with self._lock:
            unstored = pb.JobInfo(progress=progress, wait_reason=wait_reason)
            return self._running.with_progress(job_id) if self._running.set_progress(job_id, unstored) else None

    def take_progress(self, job_id: str, attempt: int, unstored: pb.JobInfo) -> pb.JobInfo | None:
        """Note what another server says of a running job of its own: progress, wait reason and usage. Return the job with that,
        or None if that attempt does not run any more."""
        with self._lock:
            return self._running.with_progress(job_id) if self._running.set_progress(job_id, unstored, attempt) else None

    def set_usage(self, job_id: str, usage: pb.JobInfo) -> None:
        """Note what has become of the questions of a running job so far, as a job with nothing else."""
        with self._lock:
            self._running.set_usage(job_id, usage)

    def described(self, job: pb.JobInfo, *, names_others: bool = True) -> pb.JobInfo:
        """Return a copy of a job with what the store does not know of it. `names_others`: whether that may name other owners,
        and jobs of theirs."""
        described = pb.JobInfo()
        described.CopyFrom(job)
        if transitions.is_follower(job):
            described.wait_reason = self._follow_reason(job, names_others)
        else:
            described.MergeFrom(self._unstored(job.job_id, job.status, names_others))
        return described

    def describe(self, job_id: str, status: Status, serialized: bytes, *, names_others: bool = True) -> bytes:
        """Do the same for a serialised job: what is appended to a message is merged into it."""
        if status == pb.JOB_STATUS_QUEUED:
            if _CACHED_FROM in serialized:
                return self.described(pb.JobInfo.FromString(serialized), names_others=names_others).SerializeToString()
            return serialized + self._waiting(job_id, names_others)
        return serialized + self._unstored(job_id, status, names_others).SerializeToString()

    def _waiting(self, job_id: str, names_others: bool) -> bytes:
        """Return the position and wait reason of a queued job, serialised. They are kept until what they say may change."""
        state = self.state, self._reservation, self.draining
        told_state, told = self._told
        if told_state != state or len(told) == _MAX_TOLD:
            told = {}
            self._told = state, told
        if (job_id, names_others) not in told:
            entry = self._queued.find(job_id)
            waiting = self._unstored(job_id, pb.JOB_STATUS_QUEUED, names_others).SerializeToString()
            if entry is not None and entry.ready_seconds:
                return waiting  # a wait for a time ends by itself
            told[job_id, names_others] = waiting
        return told[job_id, names_others]

    def _unstored(self, job_id: str, status: Status, names_others: bool) -> pb.JobInfo:
        """Return what the store does not know of a job that follows no other: position and wait reason, or progress.

        The caller's job may be a moment older or newer than what is known here: only what fits its status is given.
        """
        if status in lifecycle.TERMINAL:
            return _NOTHING
        with self._lock:
            if status == pb.JOB_STATUS_QUEUED:
                entry = self._queued.find(job_id)  # None: it has started meanwhile
                position = self._position(entry) if entry else 0
                wait_reason = self._wait_reason(entry, position, names_others) if entry else "about to start"
                return pb.JobInfo(position_in_queue=position, wait_reason=wait_reason)
            return self._running.unstored(job_id)

    def position_for(self, priority: int, owner: str = "") -> int:
        """Return the position that a new job of this priority would have."""
        with self._lock:
            queue = self._queued.by_owner.get(owner) or OwnerQueue(owner)
            line, index = self._line(queue, owner, self.now_seconds()), queue.count_before_new(priority)
            return self._forecast_now().position_of_new(line, index, is_urgent=is_urgent(owner, priority))

    def choose(
        self,
        free: Capacity,
        reservation_seconds: float,
        passed: Mapping[str, Resources],
        now_seconds: float,
        asked: Container[str] = (),
    ) -> Choice | None:
        """Return the job to start now on `free`, leaving out those in `passed`, by job with its place: the scheduler has them
        already. Or else a job for which engines are to end, or others to give way; those in `asked` have been asked to.

        A job that is wider than any node, because that has lost GPUs since or some are quarantined, waits, and none are kept
        for it.
        """
        with self._lock:
            self._queued.offer_ready(now_seconds)
            engines = self._engines.holdings()
            terms = _Terms(passed, self._holdings(passed, engines), engines, now_seconds, reservation_seconds)
            self._quotas_kept_for = {}
            running = self._may_be_freed(terms, asked, engines)
            without_gpus = not free.most_free and not any(running)
            heads, earlier = self._heads(terms, without_gpus), self._reservation_that_holds(terms)
            chosen, self._reservation = placement.next_placement(
                heads, free, now_seconds, reservation_seconds, running, earlier
            )
            return chosen

    def engines_to_drain(self) -> Sequence[str]:
        """Return the engines that, by the last choice, are to serve no further job, since another one waits for their GPUs."""
        return self._reservation.draining if self._reservation is not None else ()

    def devices_for_replica(
        self, node: str, num_gpus: int, users: Iterable[str], placed: Mapping[str, Resources]
    ) -> tuple[str, ...] | None:
        """Return devices of a node for one process more that answers these jobs, which no job has or waits for. None: there are
        too few, or their owners may not have them."""
        with self._lock:
            free = next((each.free for each in self._free(placed).nodes if each.name == node), ())
            if not num_gpus:
                return ()
            if len(free) < num_gpus or any(self._as_placed(each).num_gpus for each in self._queued):
                return None
            engines = self._engines.holdings()
            holdings, policy = self._holdings(placed, engines), self._entitlements.policy
            for owner in {owner for user in users if (owner := self._owner_of(user)) is not None}:
                most = policy.quota(owner).max_gpus
                if most is not None and holdings[owner].gpu_count + num_gpus > most:
                    return None
            return free[:num_gpus]

    def replicas_over_quota(self) -> Sequence[str]:
        """Return the replicas with which an owner has more GPUs than allowed, since further jobs have come to use them."""
        with self._lock:
            policy, over = self._entitlements.policy, []
            for each in self._engines.holdings():
                owners = {self._owner_of(user) for user in each.users} if each.is_replica and each.devices else set()
                quotas = ((owner, policy.quota(owner).max_gpus) for owner in owners if owner is not None)
                if any(most is not None and self._holding(owner).gpu_count > most for owner, most in quotas):
                    over.append(each.engine_id)
            return over

    def _holdings(self, placed: Mapping[str, Resources], engines: Sequence[EngineHolding]) -> Mapping[str, Holding]:
        """Return what each owner holds, also for jobs that are placed and do not run yet."""
        of_engines = gpus_by_owner(engines, self._owner_of)
        owners = {*self._queued.by_owner, *self._shares.owners(), *of_engines}
        holdings = {owner: self._shares.holding(owner).with_engines(of_engines.get(owner, 0)) for owner in owners}
        for job_id, resources in placed.items():
            entry = self._queued.find(job_id)
            if entry is not None:
                gpu_count = len(resources.devices)
                width = gpu_count or int(not any(need.num_gpus for need in needs_of(entry.engine)))
                holdings[entry.owner] = holdings[entry.owner].plus(gpu_count, width)
        return holdings

    def _holding(self, owner: str) -> Holding:
        """Return what an owner holds, as of the last change."""
        return self._shares.holding(owner).with_engines(self._gpus_of_engines.get(owner, 0))

    def _owner_of(self, job_id: str) -> str | None:
        """Return the owner of a live job."""
        job = self._running.find(job_id) or self._queued.find(job_id)
        return job.owner if job is not None else None

    def _heads(self, terms: "_Terms", without_gpus: bool) -> Iterator[Head]:
        """Yield the first job of each owner and width that may start, as far as quotas go, in the order of service; or only of
        the owners that have some without GPUs. An owner's turn costs something only when it comes."""
        owners = [owner for owner, queue in self._queued.by_owner.items() if not without_gpus or queue.may_need_no_gpus]
        standings = [(self._standing(owner, terms), owner) for owner in owners]
        hurried = ((standing, owner) for standing, owner in standings if self._queued.by_owner[owner].has_urgent)
        yield from sorted(head for each in hurried for head in self._heads_of(*each, terms) if head.is_urgent)
        standings.sort()
        for _, equals in groupby(standings, key=itemgetter(0)):
            yield from sorted(head for each in equals for head in self._heads_of(*each, terms) if not head.is_urgent)

    def _heads_of(self, standing: Standing, owner: str, terms: "_Terms") -> Iterator[Head]:
        """Yield the first job of each width of one owner."""
        for job in self._allowed(owner, terms):
            needs_start = job.is_served and job.num_gpus > 0 and not terms.has_waited(job)
            order = service_order(owner, job.negated_priority, job.sequence, standing, needs_start=needs_start)
            yield Head(order, job)

    def _as_placed(self, job: QueuedJob) -> QueuedJob:
        """Return a job as it can be placed now: without the GPUs of the engines that are up."""
        if not job.engine:
            return job
        not_needed = sum(need.num_gpus for need in needs_of(job.engine) if self._engines.is_up(need, job.owner))
        return job._replace(num_gpus=job.num_gpus - not_needed)

    def _allowed(self, owner: str, terms: "_Terms") -> Sequence[QueuedJob]:
        """Return the first job of each width of one owner, as far as the quota goes."""
        heads = sorted(
            self._as_placed(job) for job in self._queued.by_owner[owner].heads(terms.passed) if not self._is_loading(job)
        )
        quota, needs = self._entitlements.policy.quota(owner), partial(self._gpus_counted_for, terms.engines)
        allowed = within_quota(heads, terms.holdings[owner], quota, terms.now_seconds, terms.reservation_seconds, needs)
        if allowed.kept_for is not None:
            self._quotas_kept_for[owner] = allowed.kept_for
        return allowed.jobs

    def _gpus_counted_for(self, engines: Sequence[EngineHolding], job: QueuedJob) -> int:
        """Return how many GPUs more a queued job counts for: none if its owner has jobs with the same engine."""
        if not job.engine:
            return job.num_gpus
        used = {each.identity for each in engines if any(self._owner_of(user) == job.owner for user in each.users)}
        not_counted = sum(need.num_gpus for need in needs_of(job.engine) if need.identity in used)
        return self._queued[job.job_id].num_gpus - not_counted

    def _standing(self, owner: str, terms: "_Terms") -> Standing:
        return self._shares.standing(owner, self._entitlements.policy, terms.now_seconds, terms.holdings[owner])

    def _reservation_that_holds(self, terms: "_Terms") -> Reservation | None:
        """Return the reservation of the last choice, if its job may still start and is the first of its width."""
        reservation = self._reservation
        if reservation is None or reservation.job.owner not in self._queued.by_owner:
            return None
        return reservation if reservation.job in self._allowed(reservation.job.owner, terms) else None

    def _may_be_freed(self, terms: "_Terms", asked: Container[str], engines: Sequence[EngineHolding]) -> Running:
        """Return the running jobs that may give way to others, those that are about to, and the engines."""
        preemptible, giving_way = [], []
        for job in self._running.preemptible():
            if transitions.is_giving_way(job) or job.job_id in asked:
                giving_way.append(self._running_job(job, terms))
            elif self._may_preempt(job, terms.now_seconds):
                preemptible.append(self._running_job(job, terms))
        running = Running(preemptible, giving_way)
        jobs = {job.job_id: job for job in (*preemptible, *giving_way)}
        return with_engines(running, engines, jobs, self._is_awaited) if engines else running

    def _is_awaited(self, identity_: str) -> bool:
        """Return whether queued jobs name an engine."""
        return any(queue.has_offers_for(identity_) for queue in self._queued.by_owner.values())

    def _may_preempt(self, job: pb.JobInfo, now_seconds: float) -> bool:
        """Return whether a preemptible job may be asked to give way: not if that was so shortly before, or if it is ending."""
        preempted_at = transitions.last_preempted_at(job)
        has_rested = preempted_at is None or now_seconds - seconds_of(preempted_at) >= self._preemption_interval_seconds
        return has_rested and not job.HasField("cancel_requested_at")

    def _running_job(self, job: pb.JobInfo, terms: "_Terms") -> RunningJob:
        order = service_order(job.owner, -job.priority, self._running.sequence(job.job_id), self._standing(job.owner, terms))
        node, width = self._running.resources_of(job).node, len(job.gpus)
        started_seconds, is_served = seconds_of(job.started_at), takes_served_slot(job.request)
        return RunningJob(order, job.job_id, node, width, started_seconds, job.owner, is_served)

    def may_preempt_later(self) -> bool:
        """Return whether time alone may bring it about that a running job has to give way to a queued one."""
        with self._lock:
            is_waiting = any(queue.has_offers for queue in self._queued.by_owner.values())
            return is_waiting and self._running.has_preemptible

    def seconds_until_ready(self) -> float | None:
        """Return how long it takes until a job is ready that was not so for the last `choose`; None where there is none."""
        with self._lock:
            ready_seconds = self._queued.next_ready_seconds
            return None if ready_seconds is None else max(0.0, ready_seconds - self.now_seconds())

    def width_of(self, job_id: str) -> int:
        """Return how many GPUs a queued job asks for; 0 for one that is queued no more."""
        entry = self._queued.find(job_id)
        return entry.num_gpus if entry is not None else 0

    def now_seconds(self) -> float:
        """Return the time of day that `choose` goes by."""
        return seconds_of(self._clock.now())

    def queued_job_ids(self, limit: int, owner: str | None = None) -> list[str]:
        """Return the first queued jobs in the expected order of service; with `owner`, of the jobs of that owner."""
        with self._lock:
            if owner is None:
                return [entry.job_id for entry in self._forecast_now().first(limit)]
            queue = self._queued.by_owner.get(owner)
            return [entry.job_id for entry in queue.order.islice(stop=limit)] if queue else []

    def owner_shares(self, limit: int, owner: str | None = None) -> list[OwnerShare]:
        """Return the first owners in the order of service, then those that only run jobs; with `owner`, that one alone."""
        with self._lock:
            queued = [line.owner for line in self._forecast_now().lines]
            owners = [*queued, *sorted(set(self._shares.owners()).difference(queued))]
            return [self._owner_share(each) for each in owners if owner in (None, each)][:limit]

    def node_states(self) -> list[NodeState]:
        """Return what jobs are placed on, in the order of `nodes`."""
        with self._lock:
            counts = self._running.counts_by_node()
            return [
                NodeState(
                    name=node.name,
                    executor=node.executor,
                    running_count=counts[node.name],
                    max_running=self._slots.total if node.max_runs is None else node.max_runs,
                    out_of_reach=node.is_out_of_reach,
                )
                for node in self.nodes()
            ]

    def _owner_share(self, owner: str) -> OwnerShare:
        policy, queue, holding = self._entitlements.policy, self._queued.by_owner.get(owner), self._holding(owner)
        quota = policy.quota(owner)
        return OwnerShare(
            owner=owner,
            weight=policy.weight(owner),
            used_gpu_seconds=self._shares.used(owner, self.now_seconds()),
            queued_count=len(queue.order) if queue else 0,
            running_count=holding.running_count,
            held_gpu_count=holding.gpu_count,
            max_queued=quota.max_queued,
            max_running=quota.max_running,
            max_gpus=quota.max_gpus,
            max_bytes=quota.max_bytes,
            kept_bytes=None if quota.max_bytes is None else self._entitlements.kept_bytes.get(owner, 0),
        )

    def running_jobs(self) -> list[pb.JobInfo]:
        """Return the running jobs, longest running first. They must not be modified."""
        with self._lock:
            return sorted(self._running, key=lambda job: job.started_at.ToNanoseconds())

    def own_running_jobs(self) -> list[pb.JobInfo]:
        """Return those of the running jobs that belong to this server. They must not be modified."""
        return [job for job in self.running_jobs() if self._running.is_own(job.job_id)]

    def running_job(self, job_id: str) -> pb.JobInfo | None:
        """Return a running job. It must not be modified."""
        return self._running.find(job_id)

    @property
    def queued_count(self) -> int:
        """How many jobs are queued, also those that follow another."""
        return self._queued.count

    @property
    def following_count(self) -> int:
        """How many of the queued jobs follow another."""
        return self._queued.following_count

    def free(self, placed: Mapping[str, Resources] | None = None) -> Capacity:
        """Return what no job of this server holds: neither a running one, nor one in `placed`, by job id with its place.
        Quarantined devices are not free."""
        with self._lock:
            return self._free(placed or {})

    def _free(self, placed: Mapping[str, Resources]) -> Capacity:
        return self._running.free(self._slots, placed, self._is_served)

    def _is_served(self, job_id: str) -> bool:
        """Return whether a live job takes a slot of those with a served model."""
        entry = self._queued.find(job_id)
        return self._running.is_served(job_id) or (entry is not None and entry.is_served)

    def nodes_changed(self) -> Sequence[pb.JobInfo]:
        """Note that other machines have come, gone, or changed. Return the running jobs of those that came into reach or out
        of it since, as they are to be shown."""
        with self._lock:
            before = self._nodes.were_out_of_reach
            self._known_free = None
            self.generation += 1
            return [self._running.with_progress(job_id) for job_id in self._running.of_changed_reach(before)]

    def engines_changed(self) -> None:
        """Note that engines hold other devices than before, or are up. Thread-safe."""
        with self._lock:
            self._known_free = None
            self._charge_engines()
            self.generation += 1

    def engine_gpu_seconds(self, job_id: str) -> float:
        """Return how many GPU seconds of engines a running job has used."""
        with self._lock:
            return self._charges.taken(job_id, self.now_seconds())

    def _charge_engines(self) -> None:
        """Have the owners pay from now on for what engines there are now."""
        self._holdings_of_engines = self._engines.holdings()
        self._gpus_of_engines = gpus_by_owner(self._holdings_of_engines, self._owner_of)
        jobs = {
            job.job_id: ChargedJob(job.owner, seconds_of(job.started_at)) for job in self._running if served_models(job.request)
        }
        now_seconds = self.now_seconds()
        self._shares.charge_engines(self._charges.follow(self._holdings_of_engines, jobs, now_seconds), now_seconds)

    def _free_now(self) -> Capacity:
        """Return what is free, which every queued job is told of. It is worked out anew when a run begins or ends."""
        nodes = self.nodes()
        if self._known_free is None or self._known_free[0] is not nodes:
            self._known_free = nodes, self._free({})
        return self._known_free[1]

    def _forecast_now(self) -> Forecast:
        """Return the expected order of service. It is worked out anew when the state changes, and every few seconds."""
        state = self.state
        if self._forecast is None or self._forecast[0] != state:
            now_seconds = self.now_seconds()
            lines = [self._line(queue, owner, now_seconds) for owner, queue in self._queued.by_owner.items()]
            self._forecast = state, Forecast(lines, self._shares.typical_use)
        return self._forecast[1]

    def _line(self, queue: OwnerQueue, owner: str, now_seconds: float) -> Line:
        policy = self._entitlements.policy
        standing = self._shares.standing(owner, policy, now_seconds, self._holding(owner))
        return Line(owner, queue.order, queue.urgent_count, standing, policy.weight(owner))

    def _position(self, entry: QueuedJob) -> int:
        return self._forecast_now().position(entry.owner, self._queued.by_owner[entry.owner].order.index(entry))

    def _wait_reason(self, entry: QueuedJob, position: int, names_others: bool) -> str:
        if self.draining:
            return "the server is about to stop and starts no more jobs; this one starts after the restart"
        if self.is_paused:
            return "an operator has paused the queue"
        if entry.ready_seconds and entry.ready_seconds > self.now_seconds():
            return "waits for a while before it is tried again, until retry_at"
        free = self._free_now()
        if entry.num_gpus <= free.of(entry.executor).widest and (reason := self._quota_reason(entry)):
            return reason
        if self._is_loading(entry):
            return self._loading_reason(entry)
        return wait_reasons.wait_reason(
            self._as_placed(entry),
            position,
            free,
            self._reservation_before(entry, position),
            self._forecast_now().who_comes_before(entry.owner, -entry.negated_priority, names_others=names_others),
            names_others=names_others,
        )

    def _loading_reason(self, entry: QueuedJob) -> str:
        needed = {need.identity for need in needs_of(entry.engine)}
        loading = (each for each in self._engines.holdings() if each.identity in needed and each.is_loading)
        return next((loading_text(each) for each in loading if each.owner in ("", entry.owner)), "about to start")

    def _is_loading(self, job: QueuedJob) -> bool:
        """Return whether a queued job had better wait until an engine that it needs has loaded its model."""
        return any(self._engines.is_loading(need, job.owner) for need in needs_of(job.engine))

    def _quota_reason(self, entry: QueuedJob) -> str:
        quota, holding = self._entitlements.policy.quota(entry.owner), self._holding(entry.owner)
        needed = self._gpus_counted_for(self._holdings_of_engines, entry)
        return quota_reason(entry, needed, holding, quota, self._quotas_kept_for.get(entry.owner))

    def _reservation_before(self, entry: QueuedJob, position: int) -> Reservation | None:
        """Return the reservation of the last choice, if it keeps a job waiting, or is for that job."""
        reservation = self._reservation
        # Of the job itself a reservation has only what is missing, so its place is looked up.
        if reservation is None or (first := self._queued.find(reservation.job.job_id)) is None:
            return None
        is_urgent_alone = is_urgent(entry.owner, -entry.negated_priority) and not is_urgent(
            reservation.job.owner, -reservation.job.negated_priority
        )
        if reservation.job.owner != entry.owner and not is_urgent_alone:
            return reservation
        return reservation if self._position(first) <= position else None

    def _follow_reason(self, job: pb.JobInfo, names_others: bool) -> str:
        """Say which job another one follows."""
        with self._lock:
            source = self._queued.find(job.cached_from) or self._running.find(job.cached_from)
            is_named = names_others or source is None or source.owner == job.owner
        return f"follows job {job.cached_from}" if is_named else "follows another job"

    def _charge(self, change: Change) -> None:
        """Count an attempt that begins or ends for its owner's share."""
        before = self._running.find(change.job.job_id)
        after = change.job if change.job.status == pb.JOB_STATUS_RUNNING and not change.deleted else None
        if before is not None and after is not None and before.attempt == after.attempt:
            return
        now_seconds = self.now_seconds()
        if before is not None:
            attempts = change.job.attempts
            ended_at = attempts[-1].completed_at if attempts and attempts[-1].HasField("completed_at") else self._clock.now()
            self._shares.end(before.owner, _use_of(before), seconds_of(before.started_at), seconds_of(ended_at), now_seconds)
        if after is not None:
            self._shares.begin(after.owner, _use_of(after), seconds_of(after.started_at), now_seconds)

    def _place(self, change: Change) -> None:
        if change.job.status == pb.JOB_STATUS_RUNNING:
            self._running.add(change.job, change.sequence)
            self._known_free = None
        elif change.job.status == pb.JOB_STATUS_QUEUED:
            self._queued.add(change)

    def _remove(self, change: Change) -> None:
        job_id = change.job.job_id
        if change.status_changed or change.deleted:
            self._running.forget_progress(job_id)
        self._queued.remove(job_id)
        if self._running.remove(job_id):
            self._known_free = None


class _Terms(NamedTuple):
    """What a choice goes by."""

    passed: Container[str]
    holdings: Mapping[str, Holding]
    engines: Sequence[EngineHolding]
    now_seconds: float
    reservation_seconds: float

    def has_waited(self, job: QueuedJob) -> bool:
        """Return whether a job has waited long."""
        return self.now_seconds - job.created_seconds >= self.reservation_seconds


def _use_of(job: pb.JobInfo) -> RunUse:
    return RunUse(len(job.gpus), charged_width(job.gpus, engine_gpu_count(job.request)))
