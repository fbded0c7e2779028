"""The queue and the running jobs in memory, kept up with every commit of the store.

The service answers positions and GetQueue from it, and the scheduler chooses from it; neither changes it.

Threads: `apply` runs on the store's writer thread, everything else on any. One lock, held for a few steps only.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from sortedcontainers import SortedDict, SortedKeyList, SortedList

from evalrpc.clock import Clock
from evalrpc.executors.base import Node
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.defaults import gpus_needed
from evalrpc.jobs.lifecycle import Status
from evalrpc.protobuf import wire_format
from evalrpc.scheduling import placement
from evalrpc.scheduling.placement import Capacity, Placement, QueuedJob, Reservation, Slots
from evalrpc.store.base import Change, ListedJob, QueuedRow
from evalrpc.v1 import jobs_pb2 as pb

_AFTER_ALL: Final = 2**63
_MAX_TOLD: Final = 10_000
_NOTHING: Final = pb.JobInfo()
_CACHED_FROM: Final = wire_format.field_tag(pb.JobInfo.CACHED_FROM_FIELD_NUMBER)


class QueueState:
    """What is queued, in the order of service, and what runs on which GPUs.

    `nodes` is `Executor.nodes`. Of the running jobs, those that `owns` accepts when they are loaded or committed belong to this
    server: they take its slots and devices, and its scheduler sees them through. `max_running` 0 means one per GPU that there
    is now, and two more.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        max_running: int,
        clock: Clock,
        owns: Callable[[pb.JobInfo], bool] = lambda _: True,
    ) -> None:
        self.slots: Slots = placement.slots(sum(len(node.devices) for node in nodes()), max_running)
        """How many jobs may run at once."""
        self.nodes = nodes
        """What runs can be placed on."""
        self.owns = owns
        """Whether a running job belongs to this server."""
        self._clock = clock
        self._lock = threading.Lock()
        self._queued: dict[str, QueuedJob] = {}  # those that are served, so not those that follow another job
        self._following: set[str] = set()
        self._order: SortedList[QueuedJob] = SortedList()
        self._by_width: SortedDict[int, SortedList[QueuedJob]] = SortedDict()
        self._delayed = _by_readiness()  # those that are not in `_by_width` yet, since they are to be tried again later
        self._running: dict[str, pb.JobInfo] = {}
        self._held: dict[str, tuple[str, ...]] = {}  # the devices of the running jobs of this server
        self._progress: dict[str, pb.Progress] = {}
        self._known_free: tuple[Sequence[Node], Capacity] | None = None
        self.generation = 0
        """Grows with every commit that was followed: what was read before holds as long as it stays."""
        self._reservation: Reservation | None = None  # as of the last choice
        self._told: tuple[object, dict[tuple[str, bool], bytes]] = None, {}  # what `_waiting` has said of jobs, as of a state
        self.draining = False
        """Whether no more jobs are started, which those that wait are told."""

    def load(self, queued: Iterable[QueuedRow], running: Iterable[ListedJob]) -> None:
        """Take the jobs that were live when the store was opened."""
        rows = list(queued)
        self._following = {row.job_id for row in rows if row.follows}
        entries = [_entry(row) for row in rows if not row.follows]
        self._queued = {entry.job_id: entry for entry in entries}
        self._order = SortedList(entries)
        self._delayed = _by_readiness(entry for entry in entries if entry.ready_seconds)
        by_width: dict[int, list[QueuedJob]] = {}
        for entry in entries:
            if not entry.ready_seconds:
                by_width.setdefault(entry.num_gpus, []).append(entry)
        self._by_width = SortedDict({width: SortedList(of_width) for width, of_width in by_width.items()})
        self._running = {job.job_id: job for _, job in running}
        self._held = {job_id: tuple(job.gpus) for job_id, job in self._running.items() if self.owns(job)}
        self._known_free = None

    def apply(self, changes: Sequence[Change]) -> None:
        """Follow a commit. A listener of the store."""
        with self._lock:
            for change in changes:
                self._remove(change)  # also what is new: it may have been loaded already
                self._place(change)
            self.generation += 1  # last, so that nothing half done is taken for the new state

    def set_progress(self, job_id: str, progress: pb.Progress) -> pb.JobInfo | None:
        """Note how far a running job has come; return the job with it, or None if it does not run any more."""
        with self._lock:
            job = self._running.get(job_id)
            if job is None:
                return None
            self._progress[job_id] = progress
            return _with_progress(job, progress)

    def described(self, job: pb.JobInfo, *, names_others: bool = True) -> pb.JobInfo:
        """Return a copy of a job with what the store does not know of it. `names_others`: whether that may name jobs of other
        owners."""
        described = pb.JobInfo()
        described.CopyFrom(job)
        if transitions.is_follower(job):
            described.wait_reason = f"follows job {job.cached_from}"
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
        state = self.generation, self._reservation, self.draining, self.nodes()
        told_state, told = self._told
        if told_state != state or len(told) == _MAX_TOLD:
            told = {}
            self._told = state, told
        if (job_id, names_others) not in told:
            entry = self._queued.get(job_id)
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
                entry = self._queued.get(job_id)  # None: it has started meanwhile
                position = self._order.index(entry) if entry else 0
                wait_reason = self._wait_reason(entry, position, names_others) if entry else "about to start"
                return pb.JobInfo(position_in_queue=position, wait_reason=wait_reason)
            return pb.JobInfo(progress=self._progress.get(job_id))

    def position_for(self, priority: int) -> int:
        """Return the position that a new job of this priority would have."""
        with self._lock:
            return int(self._order.bisect_left(QueuedJob(-priority, _AFTER_ALL, "", 0, 0.0)))

    def choose(
        self, free: Capacity, reservation_seconds: float, passed: Mapping[str, object], now_seconds: float
    ) -> Placement | None:
        """Return the job to start now on `free`, leaving out those in `passed`: the scheduler has them already.

        A job that is wider than any node, because that has lost GPUs since or some are quarantined, waits, and none are kept
        for it.
        """
        with self._lock:
            while self._delayed and self._delayed[0].ready_seconds <= now_seconds:
                self._offer(self._delayed.pop(0))
            heads = [head for order in self._by_width.values() if (head := _first(order, passed))]
            chosen, self._reservation = placement.next_placement(heads, free, now_seconds, reservation_seconds)
            return chosen

    def seconds_until_ready(self) -> float | None:
        """Return how long it takes until a job is ready that was not so for the last `choose`; None where there is none."""
        with self._lock:
            return max(0.0, self._delayed[0].ready_seconds - self.now_seconds()) if self._delayed else None

    def now_seconds(self) -> float:
        """Return the time of day that `choose` goes by."""
        return self._clock.now().ToNanoseconds() / 1e9

    def queued_job_ids(self, limit: int, owner: str | None = None) -> list[str]:
        """Return the first queued jobs in the order of service; with `owner`, of the jobs of that owner."""
        with self._lock:
            return [entry.job_id for entry in islice((each for each in self._order if owner in (None, each.owner)), limit)]

    def running_jobs(self) -> list[pb.JobInfo]:
        """Return the running jobs, longest running first. They must not be modified."""
        with self._lock:
            return sorted(self._running.values(), key=lambda job: job.started_at.ToNanoseconds())

    def own_running_jobs(self) -> list[pb.JobInfo]:
        """Return those of the running jobs that belong to this server. They must not be modified."""
        return [job for job in self.running_jobs() if job.job_id in self._held]

    def running_job(self, job_id: str) -> pb.JobInfo | None:
        """Return a running job. It must not be modified."""
        return self._running.get(job_id)

    @property
    def queued_count(self) -> int:
        """How many jobs are queued, also those that follow another."""
        return len(self._queued) + len(self._following)

    @property
    def following_count(self) -> int:
        """How many of the queued jobs follow another."""
        return len(self._following)

    def free(self, placed: Mapping[str, tuple[str, ...]] | None = None) -> Capacity:
        """Return what no job of this server holds: neither a running one, nor one in `placed`, by job id with its devices.
        Quarantined devices are not free."""
        with self._lock:
            return self._free(self.nodes(), placed or {})

    def _free(self, nodes: Sequence[Node], placed: Mapping[str, tuple[str, ...]]) -> Capacity:
        holders = {**self._held, **placed}
        held = {device for devices in holders.values() for device in devices}
        without_gpus = sum([not devices for devices in holders.values()])
        return Capacity(
            tuple(placement.node_capacity(node, held) for node in nodes),
            Slots(self.slots.total - len(holders), self.slots.without_gpus - without_gpus),
        )

    def _free_now(self) -> Capacity:
        """Return what is free, which every queued job is told of. It is worked out anew when a run begins or ends."""
        nodes = self.nodes()
        if self._known_free is None or self._known_free[0] is not nodes:
            self._known_free = nodes, self._free(nodes, {})
        return self._known_free[1]

    def _wait_reason(self, entry: QueuedJob, position: int, names_others: bool) -> str:
        if self.draining:
            return "the server is about to stop and starts no more jobs; this one starts after the restart"
        if entry.ready_seconds and entry.ready_seconds > self.now_seconds():
            return "waits for a while before it is tried again, until retry_at"
        return placement.wait_reason(entry, position, self._free_now(), self._reservation, names_others=names_others)

    def _place(self, change: Change) -> None:
        if change.job.status == pb.JOB_STATUS_RUNNING:
            self._running[change.job.job_id] = change.job
            if self.owns(change.job):
                self._held[change.job.job_id] = tuple(change.job.gpus)
            self._known_free = None
        elif transitions.is_follower(change.job):
            self._following.add(change.job.job_id)
        elif change.job.status == pb.JOB_STATUS_QUEUED:
            self._enqueue(_entry(_row(change)))

    def _enqueue(self, entry: QueuedJob) -> None:
        self._queued[entry.job_id] = entry
        self._order.add(entry)
        if entry.ready_seconds:
            self._delayed.add(entry)
        else:
            self._offer(entry)

    def _offer(self, entry: QueuedJob) -> None:
        """Let a job be chosen."""
        self._by_width.setdefault(entry.num_gpus, SortedList()).add(entry)

    def _remove(self, change: Change) -> None:
        job_id = change.job.job_id
        if change.status_changed or change.deleted:
            self._progress.pop(job_id, None)
        self._following.discard(job_id)
        entry = self._queued.pop(job_id, None)
        if entry is not None:
            self._order.remove(entry)
            self._withdraw(entry)
        if self._running.pop(job_id, None) is not None:
            self._held.pop(job_id, None)
            self._known_free = None

    def _withdraw(self, entry: QueuedJob) -> None:
        """Let a job be chosen no more."""
        if entry in self._delayed:
            self._delayed.remove(entry)
            return
        self._by_width[entry.num_gpus].remove(entry)
        if not self._by_width[entry.num_gpus]:
            del self._by_width[entry.num_gpus]


def _by_readiness(entries: Iterable[QueuedJob] = ()) -> "SortedKeyList[QueuedJob]":
    return SortedKeyList(entries, key=lambda entry: entry.ready_seconds)


def _row(change: Change) -> QueuedRow:
    job = change.job
    return QueuedRow(
        job.job_id,
        change.sequence,
        job.priority,
        gpus_needed(job.request),
        job.created_at.ToNanoseconds(),
        job.retry_at.ToNanoseconds(),
        owner=job.owner,
    )


def _entry(row: QueuedRow) -> QueuedJob:
    created_seconds, ready_seconds = row.created_ns / 1e9, row.retry_ns / 1e9
    return QueuedJob(-row.priority, row.sequence, row.job_id, row.num_gpus, created_seconds, ready_seconds, row.owner)


def _first(order: Iterable[QueuedJob], passed: Mapping[str, object]) -> QueuedJob | None:
    return next((entry for entry in order if entry.job_id not in passed), None)


def _with_progress(job: pb.JobInfo, progress: pb.Progress) -> pb.JobInfo:
    merged = pb.JobInfo()
    merged.CopyFrom(job)
    merged.progress.CopyFrom(progress)
    return merged
