"""Placement, transitions and the queue together, as a machine that hypothesis drives: any order of what can happen."""

from clocks import ManualClock
from example_count import example_count
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from evalrpc.config import QuotaSettings
from evalrpc.jobs import lifecycle, transitions
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.protobuf.times import seconds_of
from evalrpc.scheduling.placement import Preemption, fits
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Change, JournalEvent
from evalrpc.testing.executor import nodes_of
from evalrpc.v1 import jobs_pb2 as pb

NODES = nodes_of({"a": ("a0", "a1", "a2", "a3"), "b": ("b0", "b1")})
NODE_OF = {device.id: node.name for node in NODES for device in node.devices}
RESERVATION_SECONDS = 100.0
PREEMPTION_SECONDS = 50.0
MAX_RUNNING, MAX_GPUS = 3, 4
POLICY = SharePolicy({"alice": 2.0}, {"bob": QuotaSettings(max_running=MAX_RUNNING, max_gpus=MAX_GPUS)})
"""Of the owners `alice`, `bob` and nobody."""


class SchedulingMachine(RuleBasedStateMachine):
    queued = Bundle("queued")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.state = QueueState(
            lambda: NODES,
            0,
            self.clock,
            entitlements=Entitlements(POLICY),
            half_life_seconds=200.0,
            preemption_interval_seconds=PREEMPTION_SECONDS,
        )
        self.jobs: dict[str, pb.JobInfo] = {}
        self.sequences: dict[str, int] = {}
        self.nodes: list[tuple[str, tuple[str, ...]]] = []

    def commit(self, job: pb.JobInfo) -> None:
        """What the store does: refuse what the lifecycle does not have, then tell the queue."""
        previous = self.jobs[job.job_id].status if job.job_id in self.jobs else pb.JOB_STATUS_UNSPECIFIED
        if job.status != previous:
            lifecycle.require_transition(previous, job.status)
        self.jobs[job.job_id] = job
        sequence = self.sequences.setdefault(job.job_id, len(self.sequences))
        self.state.apply([Change(1, job, sequence, previous, JournalEvent(1, b"event"))])

    def changed(self, job_id: str) -> pb.JobInfo:
        job = pb.JobInfo()
        job.CopyFrom(self.jobs[job_id])
        return job

    @rule(
        target=queued,
        width=st.integers(0, 4),
        priority=st.sampled_from([-2, 0, 0, 2, 600]),
        attempts=st.integers(1, 3),
        owner=st.sampled_from(["alice", "bob", ""]),
        preemptible=st.booleans(),
    )
    def submit(self, width: int, priority: int, attempts: int, owner: str, preemptible: bool) -> str:
        job = pb.JobInfo(job_id=f"job-{len(self.jobs)}", status=pb.JOB_STATUS_QUEUED, priority=priority, max_attempts=attempts)
        job.owner, job.preemptible = owner, preemptible
        job.request.num_gpus = width
        job.created_at.CopyFrom(self.clock.now())
        self.commit(job)
        return job.job_id

    @rule(target=running)
    def start_all_that_can_start(self) -> object:
        started = []
        while (chosen := self.state.choose(self.state.free(), RESERVATION_SECONDS, {}, self.clock.seconds)) is not None:
            if isinstance(chosen, Preemption):
                self.ask_to_give_way(chosen)
                continue
            job = self.changed(chosen.job.job_id)
            transitions.begin_attempt(job, chosen.devices, "/out", self.clock.now())
            self.commit(job)
            started.append(job.job_id)
            self.nodes.append((chosen.node, chosen.devices))
        self.nothing_that_fits_is_left_waiting()
        return multiple(*started)

    def ask_to_give_way(self, preemption: Preemption) -> None:
        for victim in preemption.victims:
            job = self.changed(victim.job_id)
            assert job.preemptible
            last = transitions.last_preempted_at(job)
            assert last is None or self.clock.seconds - seconds_of(last) >= PREEMPTION_SECONDS
            transitions.request_preemption(job)
            self.commit(job)

    @rule()
    def those_that_give_way_have_ended(self) -> None:
        for job_id in [job_id for job_id, job in self.jobs.items() if transitions.is_giving_way(job)]:
            job = self.changed(job_id)
            transitions.preempt(job, self.clock.now())
            self.commit(job)

    @rule(job_id=consumes(running), how=st.sampled_from(["complete", "fail", "lose", "cancel"]))
    def end(self, job_id: str, how: str) -> None:
        if self.jobs[job_id].status != pb.JOB_STATUS_RUNNING:
            return  # an earlier attempt of a job that was tried again
        job, now = self.changed(job_id), self.clock.now()
        if how == "complete":
            transitions.complete(job, {}, now)
        elif how == "cancel":
            transitions.request_cancel(job, "", now)
            transitions.cancel(job, now)
        else:
            transitions.fail(job, pb.JobError(reason="RUN_LOST" if how == "lose" else "HARNESS_FAILED"), now)
        self.commit(job)

    @rule(job_id=queued)
    def cancel_if_queued(self, job_id: str) -> None:
        if self.jobs[job_id].status == pb.JOB_STATUS_QUEUED:
            job = self.changed(job_id)
            transitions.request_cancel(job, "no more", self.clock.now())
            self.commit(job)

    @rule(seconds=st.floats(0.1, 200))
    def time_goes_on(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def nothing_that_fits_is_left_waiting(self) -> None:
        """No GPU is idle while a job could use it, unless it is kept: for a wide one that has waited too long, or for one that
        others give way to, or by a quota."""
        free, now = self.state.free(), self.clock.seconds
        waiting = [job for job in self.jobs.values() if job.status == pb.JOB_STATUS_QUEUED and self.ready(job, now)]
        kept = any(map(transitions.is_giving_way, self.jobs.values())) or any(
            job.request.num_gpus and not fits(job.request.num_gpus, free) and now - self.created(job) >= RESERVATION_SECONDS
            for job in waiting
        )
        for job in waiting:
            if fits(job.request.num_gpus, free) and not self.is_limited(job, waiting):
                assert job.request.num_gpus, f"{job.job_id} needs no GPU, so nothing may keep it"
                assert kept, f"{job.job_id} fits and waits though nothing is kept"

    def is_limited(self, job: pb.JobInfo, waiting: list[pb.JobInfo]) -> bool:
        """Whether its owner's quota keeps it waiting, or keeps GPUs for another job of the owner."""
        if job.owner != "bob":
            return False
        running, gpus = self.held_by_bob()
        left = MAX_GPUS - gpus
        kept = any(
            other.owner == "bob"
            and other.request.num_gpus > left
            and self.clock.seconds - self.created(other) >= RESERVATION_SECONDS
            for other in waiting
        )
        return running >= MAX_RUNNING or (job.request.num_gpus > 0 and (job.request.num_gpus > left or kept))

    def held_by_bob(self) -> tuple[int, int]:
        running = [job for job in self.jobs.values() if job.owner == "bob" and job.status == pb.JOB_STATUS_RUNNING]
        return len(running), sum(len(job.gpus) for job in running)

    @invariant()
    def no_quota_is_exceeded(self) -> None:
        running, gpus = self.held_by_bob()
        assert running <= MAX_RUNNING
        assert gpus <= MAX_GPUS

    @invariant()
    def positions_are_the_places_in_the_queue(self) -> None:
        for place, job_id in enumerate(self.state.queued_job_ids(1000)):
            assert self.state.described(self.jobs[job_id]).position_in_queue == place

    def ready(self, job: pb.JobInfo, now: float) -> bool:
        return seconds_of(job.retry_at) <= now

    def created(self, job: pb.JobInfo) -> float:
        return seconds_of(job.created_at)

    @invariant()
    def no_gpu_is_held_twice(self) -> None:
        held = [gpu for job in self.jobs.values() if job.status == pb.JOB_STATUS_RUNNING for gpu in job.gpus]
        assert len(held) == len(set(held))
        free = [device for node in self.state.free().nodes for device in node.free]
        assert sorted(held + free) == sorted(NODE_OF)

    @invariant()
    def every_run_lies_on_the_node_that_it_was_placed_on(self) -> None:
        assert all(NODE_OF[device] == node for node, devices in self.nodes for device in devices)

    @invariant()
    def every_job_holds_just_what_it_asked_for_and_only_while_it_runs(self) -> None:
        for job in self.jobs.values():
            assert len(job.gpus) == (job.request.num_gpus if job.status == pb.JOB_STATUS_RUNNING else 0)

    @invariant()
    def every_attempt_that_is_over_has_an_end(self) -> None:
        for job in self.jobs.values():
            open_attempts = [attempt for attempt in job.attempts if not attempt.HasField("completed_at")]
            assert len(open_attempts) == (job.status == pb.JOB_STATUS_RUNNING)
            assert len(job.attempts) == job.attempt == job.attempt_count
            assert transitions.counted_attempts(job) <= job.max_attempts

    def teardown(self) -> None:
        """Whatever happened, everything comes to an end: nobody starves."""
        for _ in range(4 * len(self.jobs) + 1):
            if all(job.status in lifecycle.TERMINAL for job in self.jobs.values()):
                return
            self.clock.seconds += 2 * RESERVATION_SECONDS
            self.start_all_that_can_start()
            self.those_that_give_way_have_ended()
            for job_id in [job_id for job_id, job in self.jobs.items() if job.status == pb.JOB_STATUS_RUNNING]:
                job = self.changed(job_id)
                transitions.complete(job, {}, self.clock.now())
                self.commit(job)
        raise AssertionError("a job starves")


TestScheduling = SchedulingMachine.TestCase
TestScheduling.settings = settings(max_examples=example_count(60), stateful_step_count=40, deadline=None)
