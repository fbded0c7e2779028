"""The queue in memory with engines: who starts, which engine ends, who gives way, who pays, what those who wait are told."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from clocks import ManualClock
from queue_jobs import QueueJobs

from evalrpc.config import QuotaSettings
from evalrpc.engines.holdings import EngineHolding
from evalrpc.executors.base import Resources
from evalrpc.jobs.served_models import EngineNeed, identity
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.scheduling.placement import Choice, Eviction, Placement, Preemption
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.testing.executor import nodes_of
from evalrpc.v1 import jobs_pb2 as pb

QUEUED, RUNNING, COMPLETED = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED
NODES = nodes_of({"local": ("0", "1", "2", "3")})
NOW = 36_000.0
RESERVATION = 600.0


class Engines:
    """Engines as a test wants them, by the model that they serve."""

    def __init__(self) -> None:
        self.by_model: dict[str, EngineHolding] = {}

    def put(self, model: str, *gpus: str, **changes: Any) -> EngineHolding:
        known = self.by_model.get(model)
        if known is None:
            served = pb.EvaluateRequest(served_model=pb.ServedModel(engine="e", model=f"/{model}", num_gpus=len(gpus)))
            known = EngineHolding(
                *(f"engine-{model}", identity(served.served_model, ""), f"/{model}", "", "", "local", gpus, frozenset()),
                *(False, True, False, 60.0, 0.0),
            )
        self.by_model[model] = known._replace(**changes)
        return self.by_model[model]

    def is_up(self, need: EngineNeed, owner: str) -> bool:
        return any(each.identity == need.identity and not each.is_leaving for each in self.holdings())

    def is_loading(self, need: EngineNeed, owner: str) -> bool:
        return any(each.identity == need.identity and each.is_loading for each in self.holdings())

    def holdings(self) -> Sequence[EngineHolding]:
        return tuple(self.by_model.values())


class Queue(QueueJobs):
    """A QueueState, the engines, and the changes that a store would make."""

    def __init__(self, policy: SharePolicy | None = None, max_running_served: int = 8) -> None:
        super().__init__(ManualClock(NOW))
        self.engines = Engines()
        entitlements = Entitlements(policy)
        self.state = QueueState(
            lambda: NODES,
            0,
            self.clock,
            entitlements=entitlements,
            engines=self.engines,
            max_running_served=max_running_served,
        )
        self.state.load([], [])

    def submit(self, model: str = "", num_gpus: int = 1, owner: str = "", **fields: Any) -> str:
        job = pb.JobInfo(owner=owner, **fields)
        if model:
            job.request.served_model.CopyFrom(pb.ServedModel(engine="e", model=f"/{model}", num_gpus=num_gpus))
        else:
            job.request.num_gpus = num_gpus
        return self.add(job)

    def run(self, model: str = "", *gpus: str, **fields: Any) -> str:
        """Have a job run, on an engine that is there if it names a model."""
        width = len(self.engines.by_model[model].devices) if model else len(gpus)
        job_id = self.submit(model, width, **fields)
        if model:
            engine = self.engines.by_model[model]
            self.engines.put(model, users=engine.users | {job_id})
        return self.start(job_id, gpus, self.clock.seconds)

    def end(self, job_id: str) -> None:
        for model, engine in self.engines.by_model.items():
            self.engines.put(model, users=engine.users - {job_id})
        super().end(job_id)

    def choose(self) -> Choice | None:
        return self.state.choose(self.state.free(), RESERVATION, {}, self.clock.seconds)

    def placed(self) -> str:
        chosen = self.choose()
        assert isinstance(chosen, Placement), chosen
        return chosen.job.job_id

    def reason(self, job_id: str) -> str:
        return self.state.described(self.jobs[job_id]).wait_reason

    def used(self, owner: str) -> float:
        (share,) = self.state.owner_shares(9, owner)
        return share.used_gpu_seconds


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_the_engines_end_that_start_fastest_and_none_that_need_not(queue: Queue) -> None:
    for model, gpu, seconds in (("a", "0", 30.0), ("b", "1", 10.0), ("c", "2", 20.0)):
        queue.engines.put(model, gpu, start_seconds=seconds)
    queue.run("", "3")
    job = queue.submit(num_gpus=1)
    assert queue.choose() == Eviction(queue.state._queued.find(job), ("engine-b",))
    queue.engines.put("d", "0", "2", start_seconds=40.0)
    del queue.engines.by_model["a"], queue.engines.by_model["c"]
    queue.end(job)
    wide = queue.submit(num_gpus=2)
    assert queue.choose() == Eviction(queue.state._queued.find(wide), ("engine-d",)), "the one that starts fastest is no help"


def test_engines_that_end_are_waited_for_and_no_second_one_ends(queue: Queue) -> None:
    queue.engines.put("a", "0", is_leaving=True)
    queue.engines.put("b", "1", "2", "3")
    first = queue.submit(num_gpus=1)
    assert queue.choose() is None
    assert "other jobs give way to it" in queue.reason(first)
    queue.submit(num_gpus=2)
    assert queue.choose() is None


def test_an_engine_that_is_about_to_get_a_job_does_not_end_for_another_one_within_a_bound(queue: Queue) -> None:
    queue.engines.put("m", "0", "1", "2", "3")
    waiting = queue.submit(num_gpus=1)
    served = queue.submit("m", 4)
    assert queue.placed() == served
    queue.clock.seconds += RESERVATION
    assert queue.choose() == Eviction(queue.state._queued.find(waiting), ("engine-m",))


def test_an_engine_in_use_serves_no_further_job_once_another_one_has_waited_long_for_its_gpus(queue: Queue) -> None:
    queue.engines.put("m", "0", "1", "2")
    queue.engines.put("n", "3")
    queue.run("m")
    queue.run("n")
    queue.submit(num_gpus=1)
    assert queue.choose() is None
    assert not queue.state.engines_to_drain()
    queue.clock.seconds += RESERVATION
    assert queue.choose() is None
    assert queue.state.engines_to_drain() == ("engine-m",), "both start as fast, and it was there first"


def test_a_job_whose_engine_is_up_starts_before_one_that_needs_a_start_within_a_bound() -> None:
    queue = Queue(max_running_served=1)
    queue.engines.put("up", "0")
    start, up = queue.submit("new", 1), queue.submit("up", 1)
    assert queue.placed() == up
    queue.clock.seconds += RESERVATION
    assert queue.placed() == start
    first = queue.submit("new", 1, priority=1)
    assert queue.placed() == first, "priorities come first"


def test_jobs_wait_in_the_queue_while_their_engine_loads_and_are_told_so(queue: Queue) -> None:
    first = queue.submit("m", 2)
    assert queue.placed() == first
    queue.engines.put("m", "0", "1", users=frozenset({first}), is_loading=True, has_answered=False, loading_seconds=43.4)
    second = queue.submit("m", 2)
    assert queue.state.choose(queue.state.free(), RESERVATION, {first: Resources("local")}, NOW) is None
    assert queue.reason(second) == "engine-m is loading /m, 43 s"
    job = queue.copy(first)
    job.status, job.attempt = RUNNING, 1
    queue.commit(job)
    shown = queue.state.set_progress(first, pb.Progress(phase=pb.Progress.PHASE_SERVING))
    assert shown is not None
    assert shown.wait_reason == queue.reason(first) == "engine-m is loading /m, 43 s"
    queue.engines.put("m", is_loading=False, has_answered=True)
    assert queue.placed() == second


def test_jobs_with_a_served_model_have_slots_of_their_own() -> None:
    queue = Queue(max_running_served=2)
    queue.engines.put("m", "0")
    for _ in range(2):
        queue.run("m")
    served, plain = queue.submit("m", 1), queue.submit(num_gpus=0)
    assert queue.placed() == plain
    assert queue.reason(served) == "all slots for jobs with a served model are taken"
    assert queue.state.free().slots.without_gpus == 2


def test_an_engine_gives_way_only_with_all_its_jobs(queue: Queue) -> None:
    queue.engines.put("m", "0", "1", "2", "3")
    jobs = [queue.run("m", preemptible=True), queue.run("m", preemptible=True)]
    queue.submit(num_gpus=1, priority=5)
    chosen = queue.choose()
    assert isinstance(chosen, Preemption)
    (unit,) = chosen.victims
    assert (unit.engine_id, [job.job_id for job in unit.jobs]) == ("engine-m", jobs)
    asked = queue.state.choose(queue.state.free(), RESERVATION, {}, NOW, asked=jobs)
    assert asked is None, "it is about to"
    queue.run("m")
    assert queue.choose() is None, "one of its jobs may not"


def test_engines_count_once_for_the_quota_of_each_owner_who_uses_them() -> None:
    queue = Queue(SharePolicy(quotas={"alice": QuotaSettings(max_gpus=2)}))
    queue.engines.put("m", "0", "1")
    queue.engines.put("n", "2")
    queue.run("m", owner="bob")
    first = queue.submit("m", 2, owner="alice")
    assert queue.placed() == first, "that others use it is no matter"
    queue.engines.put("n", users=frozenset({queue.run("n", owner="alice")}))
    assert queue.choose() is None
    assert queue.reason(first) == "its engine has 2 GPUs; alice holds 1 of at most 2 GPUs"
    queue.end("job-2")
    queue.run("m", owner="alice")
    assert queue.placed() == first, "a second job counts no further GPUs"
    (alice,) = queue.state.owner_shares(9, "alice")
    (bob,) = queue.state.owner_shares(9, "bob")
    assert (alice.held_gpu_count, bob.held_gpu_count) == (2, 2)


def test_the_gpu_seconds_of_an_engine_are_shared_by_the_owners_that_use_it(queue: Queue) -> None:
    queue.engines.put("m", "0", "1")
    alice = [queue.run("m", owner="alice"), queue.run("m", owner="alice")]
    bob = queue.run("m", owner="bob")
    queue.clock.seconds += 100
    queue.state.engines_changed()
    assert [round(queue.used(owner)) for owner in ("alice", "bob")] == [100, 100]
    assert [queue.state.engine_gpu_seconds(job_id) for job_id in (*alice, bob)] == [50.0, 50.0, 100.0]
    queue.end(bob)
    queue.clock.seconds += 100
    assert round(queue.used("alice")) == 300
    for job_id in alice:
        queue.end(job_id)
    queue.clock.seconds += 100
    queue.state.engines_changed()
    queue.submit(owner="alice")
    assert round(queue.used("alice"), -1) == 300, "nobody pays for an engine without jobs"


def test_the_start_of_an_engine_is_paid_by_the_job_that_it_is_for(queue: Queue) -> None:
    queue.engines.put("m", "0", "1", is_loading=True, has_answered=False)
    first = queue.run("m", owner="alice")
    other = queue.run("m", owner="bob")
    queue.engines.put("m", asked_by=first)
    queue.state.engines_changed()
    queue.clock.seconds += 60
    queue.engines.put("m", is_loading=False, has_answered=True)
    queue.state.engines_changed()
    queue.clock.seconds += 10
    assert [queue.state.engine_gpu_seconds(job_id) for job_id in (first, other)] == [130.0, 10.0]


def test_a_job_whose_model_is_up_waits_for_the_gpus_of_its_judge_alone() -> None:
    queue = Queue()
    queue.run("", "3")
    queue.engines.put("m", "0", "1", users=frozenset({"another"}))
    job = pb.JobInfo(job_id="job-9", status=QUEUED)
    for field, model in (("served_model", "/m"), ("judge_model", "/judge")):
        getattr(job.request, field).CopyFrom(pb.ServedModel(engine="e", model=model, num_gpus=2))
    queue.commit(job)
    queue.clock.seconds += RESERVATION
    assert not isinstance(queue.choose(), Placement)
    assert "needs 2 GPUs" in queue.reason("job-9")


def with_replica(queue: Queue, **fields: Any) -> str:
    """Have a job run that asks an engine with one GPU, and a replica beside it. Return the job."""
    engine = queue.engines.put("m", "0")
    user = queue.run("m", **fields)
    queue.engines.put("replica", "1", identity="", replica_of=engine.engine_id, users=frozenset([user]))
    queue.state.engines_changed()
    return user


def test_a_replica_ends_for_whoever_needs_its_gpu_and_its_jobs_go_on(queue: Queue) -> None:
    with_replica(queue)
    wide = queue.submit(num_gpus=3)
    assert queue.choose() == Eviction(queue.state._queued.find(wide), ("engine-replica",))


def test_an_engine_gives_way_with_its_replicas(queue: Queue) -> None:
    with_replica(queue, preemptible=True)
    queue.submit(num_gpus=4, priority=5)
    chosen = queue.choose()
    assert isinstance(chosen, Preemption)
    assert [victim.engine_id for victim in chosen.victims] == ["engine-m"]


def test_a_replica_is_started_only_on_what_no_queued_job_waits_for(queue: Queue) -> None:
    queue.engines.put("m", "0")
    user = queue.run("m")
    queue.state.engines_changed()
    devices = partial(queue.state.devices_for_replica, "local", users=[user], placed={})
    assert devices(1) == ("1",)
    assert devices(4) is None
    queue.submit("m")
    assert devices(1) == ("1",), "that job needs no GPU of its own"
    queue.submit(num_gpus=4)
    assert devices(1) is None
    assert devices(0) == ()


def test_replicas_count_for_the_quotas_of_those_who_want_them() -> None:
    quotas = {"ann": QuotaSettings(max_gpus=1), "bob": QuotaSettings(max_gpus=2)}
    queue = Queue(SharePolicy(quotas=quotas))
    of_bob = with_replica(queue, owner="bob")
    of_ann = queue.run("m", owner="ann")
    queue.state.engines_changed()
    assert queue.state.replicas_over_quota() == []
    assert queue.state.devices_for_replica("local", 1, [of_bob], {}) is None
    queue.engines.put("replica", users=frozenset([of_ann, of_bob]))
    queue.state.engines_changed()
    assert queue.state.replicas_over_quota() == ["engine-replica"]
