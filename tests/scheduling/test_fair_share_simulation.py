"""A cluster of 64 GPUs, simulated: who gets how much, whether anybody starves, and whether a GPU is idle that a job may use."""

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest
from clocks import ManualClock

from evalrpc.config import QuotaSettings
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.protobuf.times import seconds_of
from evalrpc.scheduling.placement import Placement, fits
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Change
from evalrpc.testing.executor import nodes_of
from evalrpc.v1 import jobs_pb2 as pb

RESERVATION_SECONDS = 600.0
HALF_LIFE_SECONDS = 24 * 3600.0
NODES = nodes_of({f"n{node}": [f"n{node}g{gpu}" for gpu in range(8)] for node in range(8)})


class Cluster:
    """Runs jobs of given lengths, as fast as can be computed."""

    def __init__(self, policy: SharePolicy) -> None:
        self.clock = ManualClock(1_000_000.0)
        self.policy = policy
        self.state = QueueState(
            lambda: NODES, 0, self.clock, entitlements=Entitlements(policy), half_life_seconds=HALF_LIFE_SECONDS
        )
        self.jobs: dict[str, pb.JobInfo] = {}
        self.seconds: dict[str, float] = {}
        self.queued: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.longest_wait_seconds: Counter[str] = Counter()
        self._ends: list[tuple[float, str]] = []

    def submit(self, owner: str, num_gpus: int, seconds: float, *, priority: int = 0) -> str:
        job = pb.JobInfo(job_id=f"job-{len(self.jobs)}", status=pb.JOB_STATUS_QUEUED, owner=owner, priority=priority)
        job.max_attempts = 1
        job.request.num_gpus = num_gpus
        job.created_at.CopyFrom(self.clock.now())
        self.jobs[job.job_id], self.seconds[job.job_id] = job, seconds
        self.queued[owner] += 1
        self._commit(job, pb.JOB_STATUS_UNSPECIFIED)
        return job.job_id

    def start_all(self) -> None:
        while (chosen := self._choose()) is not None:
            job = self.jobs[chosen.job.job_id]
            waited_seconds = self.clock.seconds - seconds_of(job.created_at)
            self.longest_wait_seconds[job.owner] = max(self.longest_wait_seconds[job.owner], waited_seconds)
            transitions.begin_attempt(job, chosen.devices, "/out", self.clock.now())
            self.queued[job.owner] -= 1
            self._commit(job, pb.JOB_STATUS_QUEUED)
            heapq.heappush(self._ends, (self.clock.seconds + self.seconds[job.job_id], job.job_id))

    def end_next(self) -> None:
        """Let time pass until a job ends."""
        self.clock.seconds, job_id = heapq.heappop(self._ends)
        job = self.jobs[job_id]
        self.used[job.owner] += int((len(job.gpus) or 1) * self.seconds[job_id])
        transitions.complete(job, {}, self.clock.now())
        self._commit(job, pb.JOB_STATUS_RUNNING)

    @property
    def is_idle(self) -> bool:
        return not self._ends

    def _choose(self) -> Placement | None:
        chosen = self.state.choose(self.state.free(), RESERVATION_SECONDS, {}, self.clock.seconds)
        assert chosen is None or isinstance(chosen, Placement)
        return chosen

    def _commit(self, job: pb.JobInfo, previous: int) -> None:
        copy = pb.JobInfo()
        copy.CopyFrom(job)
        self.state.apply([Change(1, copy, int(job.job_id.removeprefix("job-")), previous, None)])

    def check_no_gpu_idles(self) -> None:
        """No job could start that neither a quota nor a reservation keeps."""
        free, now = self.state.free(), self.clock.seconds
        waiting = [job for job in self.jobs.values() if job.status == pb.JOB_STATUS_QUEUED]
        has_reservation = any(
            job.request.num_gpus > free.most_free and now - seconds_of(job.created_at) >= RESERVATION_SECONDS for job in waiting
        )
        held = Counter[str]()
        for job in self.state.running_jobs():
            held[job.owner] += len(job.gpus)
        for job in waiting:
            limit = self.policy.quota(job.owner).max_gpus
            is_allowed = limit is None or held[job.owner] + job.request.num_gpus <= limit
            assert not (fits(job.request.num_gpus, free) and is_allowed) or has_reservation, job.job_id


def run(cluster: Cluster, until: Callable[[], bool] = lambda: False, check_every: int = 100) -> None:
    step = 0
    cluster.start_all()
    while not cluster.is_idle and not until():
        cluster.end_next()
        cluster.start_all()
        step += 1
        if step % check_every == 0:
            cluster.check_no_gpu_idles()


@pytest.mark.slow
def test_ten_thousand_jobs_of_twenty_owners_share_sixty_four_gpus_by_weight() -> None:
    dice = random.Random(20)
    weights = {f"owner-{number}": float(1 + number % 4) for number in range(20)}
    total_weight = sum(weights.values())
    cluster = Cluster(SharePolicy(weights))
    for owner, weight in weights.items():
        for _ in range(int(10_000 * weight / total_weight)):
            cluster.submit(owner, dice.choice((1, 1, 1, 2, 4, 8)), dice.uniform(60, 900))
    run(cluster, lambda: min(cluster.queued.values()) < 10, check_every=500)
    total = sum(cluster.used.values())
    shares = {owner: cluster.used[owner] / total / (weight / total_weight) for owner, weight in weights.items()}
    assert all(0.95 <= share <= 1.05 for share in shares.values()), shares
    run(cluster, check_every=500)
    assert all(job.status == pb.JOB_STATUS_COMPLETED for job in cluster.jobs.values()), "somebody starves"


def test_a_wide_job_and_a_quiet_owner_do_not_starve_among_greedy_ones() -> None:
    dice = random.Random(5)
    cluster = Cluster(SharePolicy(quotas={"capped": QuotaSettings(max_gpus=4)}))
    for owner in ("greedy-1", "greedy-2", "capped"):
        for _ in range(400):
            cluster.submit(owner, 1, dice.uniform(60, 600))
    cluster.start_all()
    wide = cluster.submit("greedy-1", 8, 60, priority=1)
    single = cluster.submit("quiet", 1, 60)
    cluster.end_next()
    cluster.start_all()
    assert cluster.jobs[single].status == pb.JOB_STATUS_RUNNING, "it has used nothing, so it is next"
    run(cluster, lambda: cluster.jobs[wide].status == pb.JOB_STATUS_RUNNING, check_every=10)
    assert cluster.queued["greedy-1"] > 100, "it starts long before the others have"
    run(cluster, check_every=10)
    assert cluster.longest_wait_seconds["quiet"] < 600


@pytest.mark.parametrize("kept_half_lives", [0.0, 2.0])
def test_who_used_much_long_ago_is_served_again(kept_half_lives: float) -> None:
    cluster = Cluster(SharePolicy())
    for _ in range(64):
        cluster.submit("early", 1, 3600)
    run(cluster)
    cluster.clock.seconds += kept_half_lives * HALF_LIFE_SECONDS
    for number in range(1600):
        cluster.submit("early" if number % 2 else "late", 1, 600)
    cluster.start_all()
    running = Counter(job.owner for job in cluster.state.running_jobs())
    assert running == {"late": 64}, "it has used nothing"
    for _ in range(700):
        cluster.end_next()
        cluster.start_all()
    used_before = 64 * 3600 * 0.5**kept_half_lives
    late, early = cluster.used["late"], cluster.used["early"] - 64 * 3600
    assert abs(late - early - used_before) < 0.25 * used_before + 64 * 600, (late, early)
