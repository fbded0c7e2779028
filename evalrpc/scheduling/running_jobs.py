"""The jobs that run: what those of this server hold, and what is known of each that the store does not keep.

Threads: whoever has them guards them by a lock. Only `find` needs none.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from evalrpc.executors.base import Node, Resources
from evalrpc.jobs.defaults import takes_served_slot
from evalrpc.scheduling import capacity
from evalrpc.scheduling.capacity import Capacity, Slots
from evalrpc.scheduling.engine_use import EngineUse, loading_text
from evalrpc.scheduling.placeable_nodes import PlaceableNodes
from evalrpc.v1 import jobs_pb2 as pb

_NOTHING = pb.JobInfo()


class RunningJobs:
    """The running jobs by id. Those that `owns` accepts when they are added belong to this server."""

    def __init__(self, nodes: PlaceableNodes, owns: Callable[[pb.JobInfo], bool], engines: EngineUse) -> None:
        self._nodes = nodes
        self._engines = engines
        self.owns = owns
        self._jobs: dict[str, pb.JobInfo] = {}
        self._sequences: dict[str, int] = {}
        self._held: dict[str, Resources] = {}  # by those of this server
        self._preemptible: dict[str, None] = {}  # in order
        self._served: set[str] = set()
        self._progress: dict[str, pb.JobInfo] = {}  # with the wait reason, and nothing else
        self._usage: dict[str, pb.JobInfo] = {}  # and nothing else

    def __iter__(self) -> Iterator[pb.JobInfo]:
        return iter(self._jobs.values())

    def find(self, job_id: str) -> pb.JobInfo | None:
        """Return a running job. It must not be modified."""
        return self._jobs.get(job_id)

    def sequence(self, job_id: str) -> int:
        """Return the number of a running job in the order of submissions."""
        return self._sequences[job_id]

    def add(self, job: pb.JobInfo, sequence: int) -> None:
        """Note that a job runs, and what it has, if it belongs to this server."""
        self._jobs[job.job_id], self._sequences[job.job_id] = job, sequence
        if not self.owns(job):
            return
        self._held[job.job_id] = self.resources_of(job)
        if job.preemptible:
            self._preemptible[job.job_id] = None
        if takes_served_slot(job.request):
            self._served.add(job.job_id)

    def remove(self, job_id: str) -> bool:
        """Forget a job, but not its progress. Return whether it ran."""
        if self._jobs.pop(job_id, None) is None:
            return False
        del self._sequences[job_id]
        self._held.pop(job_id, None)
        self._preemptible.pop(job_id, None)
        self._served.discard(job_id)
        return True

    # What is held.

    def resources_of(self, job: pb.JobInfo) -> Resources:
        """Return where a running job was placed."""
        return capacity.resources_of(job, self._nodes.now())

    def is_own(self, job_id: str) -> bool:
        """Return whether a job runs and belongs to this server."""
        return job_id in self._held

    def is_served(self, job_id: str) -> bool:
        """Return whether a job of this server takes a slot of those with a served model."""
        return job_id in self._served

    @property
    def has_preemptible(self) -> bool:
        """Whether `preemptible` has any."""
        return bool(self._preemptible)

    def preemptible(self) -> list[pb.JobInfo]:
        """Return the jobs of this server that may be asked to give way, or are about to, in the order of their starts."""
        return [self._jobs[job_id] for job_id in self._preemptible]

    def counts_by_node(self) -> Counter[str]:
        """Return how many jobs of this server run on each node."""
        return Counter(each.node for each in self._held.values())

    def free(self, slots: Slots, placed: Mapping[str, Resources], is_served: Callable[[str], bool]) -> Capacity:
        """Return what neither jobs of this server hold, nor engines, nor those that are `placed`, by job id. `is_served` tells
        which of these take a slot of jobs with a served model."""
        nodes, holders = self._nodes.now(), {**self._held, **placed}
        held = {device for each in holders.values() for device in each.devices}
        held |= {device for holding in self._engines.holdings() for device in holding.devices}
        in_bounds = [each for job_id, each in holders.items() if not is_served(job_id)]
        in_slots = _without_bounded(in_bounds, nodes)
        without_gpus = sum(not each.devices for each in in_slots)
        run_counts = Counter(each.node for each in in_bounds)
        counts_without_gpus = Counter(each.node for each in in_bounds if not each.devices)
        return Capacity(
            tuple(capacity.node_capacity(node, held, run_counts[node.name], counts_without_gpus[node.name]) for node in nodes),
            Slots(
                slots.total - len(in_slots),
                slots.without_gpus - without_gpus,
                slots.served - (len(holders) - len(in_bounds)),
            ),
        )

    # What the store does not know.

    def set_progress(self, job_id: str, unstored: pb.JobInfo, attempt: int | None = None) -> bool:
        """Note progress, wait reason and usage of a running job. Return False if it, or that attempt, does not run any more."""
        job = self._jobs.get(job_id)
        if job is None or attempt not in (None, job.attempt):
            return False
        self._progress[job_id] = unstored
        return True

    def set_usage(self, job_id: str, usage: pb.JobInfo) -> None:
        """Note what has become of the questions of a running job so far, as a job with nothing else."""
        if job_id in self._jobs:
            self._usage[job_id] = usage

    def forget_progress(self, job_id: str) -> None:
        """Forget how far a job has come: it begins anew, or has ended."""
        self._progress.pop(job_id, None)
        self._usage.pop(job_id, None)

    def unstored(self, job_id: str) -> pb.JobInfo:
        """Return the progress of a job, what its run waits for, and what has become of its questions, and nothing else."""
        unstored = self._progress.get(job_id, _NOTHING)
        out_of_reach = self._nodes.out_of_reach
        if out_of_reach and job_id in self._held and (node := self._held[job_id].node) in out_of_reach:
            return pb.JobInfo(progress=unstored.progress, wait_reason=_out_of_reach_text(node))
        if job_id in self._usage:
            known, unstored = unstored, pb.JobInfo()
            unstored.CopyFrom(known)
            unstored.MergeFrom(self._usage[job_id])
        if unstored.progress.phase != pb.Progress.PHASE_SERVING:
            return unstored
        loading = (each for each in self._engines.holdings() if job_id in each.users and each.is_loading)
        return pb.JobInfo(progress=unstored.progress, wait_reason=next(map(loading_text, loading), ""))

    def with_progress(self, job_id: str) -> pb.JobInfo:
        """Return a running job with all that."""
        unstored, merged = self.unstored(job_id), pb.JobInfo()
        merged.CopyFrom(self._jobs[job_id])
        merged.progress.CopyFrom(unstored.progress)
        merged.wait_reason = unstored.wait_reason
        if unstored.HasField("usage"):
            merged.usage.CopyFrom(unstored.usage)
        if unstored.HasField("judge_usage"):
            merged.judge_usage.CopyFrom(unstored.judge_usage)
        return merged

    def of_changed_reach(self, before: frozenset[str]) -> list[str]:
        """Return the jobs on nodes that have come into reach or out of it since `before` was out of it."""
        changed = before ^ self._nodes.out_of_reach
        return [job_id for job_id, held in self._held.items() if held.node in changed] if changed else []


def _without_bounded(held: Sequence[Resources], nodes: Sequence[Node]) -> Sequence[Resources]:
    """Return what is not on nodes that have slots of their own."""
    bounded = {node.name for node in nodes if node.max_runs is not None}
    return [each for each in held if each.node not in bounded]


def _out_of_reach_text(node: str) -> str:
    return f"host {node} is out of reach: its runs are seen to once it is back, or given up by `evalrpc node lost {node}`"
