"""The queue in memory with jobs of several owners: who is next, and what those who wait are told."""

from collections.abc import Sequence

from clocks import ManualClock
from queue_jobs import QueueJobs

from evalrpc.config import QuotaSettings
from evalrpc.executors.base import Resources
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.scheduling.placement import Placement, Preemption
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import AttemptUse, QueuedRow
from evalrpc.testing.executor import nodes_of
from evalrpc.v1 import jobs_pb2 as pb

QUEUED, RUNNING, COMPLETED = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED
NODES = nodes_of({"local": ("0", "1", "2", "3")})
NOW = 36_000.0


class Queue(QueueJobs):
    """A QueueState, and the changes that a store would make."""

    def __init__(self, policy: SharePolicy | None = None, uses: Sequence[AttemptUse] = ()) -> None:
        super().__init__(ManualClock(NOW))
        self.entitlements = Entitlements(policy)
        self.state = QueueState(lambda: NODES, 0, self.clock, entitlements=self.entitlements)
        self.state.load([], [], uses)

    def submit(self, owner: str, num_gpus: int = 1, **fields: int) -> str:
        job = pb.JobInfo(owner=owner, **fields)
        job.request.num_gpus = num_gpus
        return self.add(job)

    def run(self, owner: str, gpus: Sequence[str], started: float = NOW) -> str:
        return self.start(self.submit(owner, len(gpus)), gpus, started)

    def choose(self) -> Placement | Preemption | None:
        return self.state.choose(self.state.free(), 600.0, {}, self.clock.seconds)

    def next_id(self) -> str:
        chosen = self.choose()
        assert isinstance(chosen, Placement)
        return chosen.job.job_id

    def reason(self, job_id: str, *, names_others: bool = True) -> str:
        described = self.state.described(self.jobs[job_id], names_others=names_others)
        job = pb.JobInfo.FromString(
            self.state.describe(job_id, QUEUED, self.jobs[job_id].SerializeToString(), names_others=names_others)
        )
        assert job == described
        return described.wait_reason


def used(owner: str, gpu_seconds: int, ended: float = NOW) -> AttemptUse:
    return AttemptUse(owner, int((ended - gpu_seconds) * 1e9), int(ended * 1e9), 1)


def test_the_owner_with_the_least_use_per_weight_is_next_whatever_arrived_first() -> None:
    queue = Queue(SharePolicy({"carol": 10.0}), [used("alice", 3600), used("carol", 7200)])
    alice, bob, carol = queue.submit("alice"), queue.submit("bob"), queue.submit("carol")
    for expected in (bob, carol, alice):
        assert queue.next_id() == expected
        queue.end(expected)
    assert not queue.state.queued_job_ids(9)


def test_an_urgent_job_comes_before_those_of_others_and_a_high_priority_does_not() -> None:
    queue = Queue(uses=[used("alice", 3600)])
    high, bob = queue.submit("alice", priority=500), queue.submit("bob")
    assert queue.next_id() == bob
    urgent = queue.submit("alice", priority=501)
    assert queue.next_id() == urgent
    assert queue.state.queued_job_ids(9) == [urgent, bob, high]
    assert queue.state.position_for(501, "bob") == 0, "urgent ones by use, too"
    assert queue.state.position_for(501, "alice") == 1
    assert queue.state.position_for(0, "") == 2, "behind the urgent one, and one who has used as little"


def test_without_owners_a_high_priority_is_just_that() -> None:
    queue = Queue()
    first, second = queue.submit(""), queue.submit("", priority=1000)
    assert queue.state.queued_job_ids(9) == [second, first]
    assert queue.reason(first) == "needs 1 GPU, 4 free; the jobs before it come first"


def test_those_who_wait_are_told_who_comes_first_with_figures_and_without_names_where_these_are_hidden() -> None:
    queue = Queue(uses=[used("alice", 7200), used("bob", 3600)])
    queue.run("bob", ("0", "1", "2", "3"), started=NOW)
    queue.submit("bob")
    alice = queue.submit("alice")
    assert queue.choose() is None
    assert queue.reason(alice) == (
        "needs 1 GPU, 0 free; bob comes first: 0.986 GPU hours of recent use per weight, and alice has 1.94"
    )
    hidden = queue.reason(alice, names_others=False)
    assert hidden == "needs 1 GPU, 0 free; 1 other comes first: 0.986 GPU hours of recent use per weight, and alice has 1.94"
    queue.submit("")
    assert "; anonymous and 1 other come first: 0 GPU hours" in queue.reason(alice)
    queue.submit("carol", priority=900)
    assert queue.reason(alice) == "needs 1 GPU, 0 free; 1 urgent job comes first"


def test_no_reason_names_another_owner_or_a_job_of_theirs_where_these_are_hidden() -> None:
    queue = Queue(uses=[used("bob", 3600)])
    queue.run("alice", ("0",))
    wide, narrow = queue.submit("alice", 4), queue.submit("bob")
    own = queue.submit("alice")
    queue.clock.seconds += 601
    assert queue.choose() is None, "all are kept for the wide one, whoever has used less by now"
    assert f"GPUs are kept for job {wide}" in queue.reason(narrow)
    hidden = queue.reason(narrow, names_others=False)
    assert hidden == "needs 1 GPU, 3 free; GPUs are kept for another job, which needs 4 and has waited long"
    assert f"kept for job {wide}" in queue.reason(own, names_others=False), "it is one of their own"


def test_who_follows_a_job_of_another_is_not_told_whose_where_these_are_hidden() -> None:
    queue = Queue()
    source = queue.submit("bob")
    follower = pb.JobInfo(job_id="job-9", status=QUEUED, owner="alice", cached_from=source)
    queue.commit(follower)
    assert queue.reason("job-9") == f"follows job {source}"
    assert queue.reason("job-9", names_others=False) == "follows another job"


def test_a_quota_keeps_an_owner_from_starting_more_and_leaves_the_others_alone() -> None:
    queue = Queue(SharePolicy(quotas={"alice": QuotaSettings(max_gpus=2)}), [used("bob", 3600)])
    running = queue.run("alice", ("0", "1"))
    alice, bob = queue.submit("alice"), queue.submit("bob")
    assert queue.next_id() == bob
    assert queue.reason(alice) == "needs 1 GPU; alice holds 2 of at most 2 GPUs"
    queue.end(running)
    assert queue.next_id() == alice
    assert queue.reason(alice) == "about to start"


def test_a_job_that_is_placed_and_does_not_run_yet_counts_for_the_quota() -> None:
    queue = Queue(SharePolicy(quotas={"alice": QuotaSettings(max_running=1)}))
    first, second = queue.submit("alice"), queue.submit("alice")
    chosen = queue.state.choose(queue.state.free(), 600.0, {first: Resources("local", ("0",))}, NOW)
    assert chosen is None
    queue.entitlements.policy = SharePolicy()
    chosen = queue.state.choose(queue.state.free(), 600.0, {first: Resources("local", ("0",))}, NOW)
    assert chosen is not None
    assert chosen.job.job_id == second, "another policy holds from its exchange on"


def test_a_restart_keeps_the_order() -> None:
    queue = Queue()
    running = queue.run("alice", ("0",), started=NOW)
    queue.clock.seconds += 1800
    alice, bob = queue.submit("alice"), queue.submit("bob")
    assert queue.state.queued_job_ids(9) == [bob, alice], "what runs counts"
    rows = [QueuedRow(job_id, int(job_id[4:]), 0, 1, 0, 0, owner=queue.jobs[job_id].owner) for job_id in (alice, bob)]
    queue.end(running)
    assert queue.state.queued_job_ids(9) == [bob, alice], "so does what has ended"
    again = QueueState(lambda: NODES, 0, queue.clock)
    again.load(rows, [], [AttemptUse("alice", int(NOW * 1e9), int((NOW + 1800) * 1e9), 1)])
    assert again.queued_job_ids(9) == [bob, alice]


def test_the_queue_shows_what_each_owner_has_used_holds_and_may_have() -> None:
    policy = SharePolicy({"alice": 2.0}, {"alice": QuotaSettings(max_queued=9, max_running=8, max_gpus=7, max_bytes=600)})
    queue = Queue(policy, [used("alice", 3600)])
    queue.entitlements.kept_bytes = {"alice": 123}
    queue.run("alice", ("0", "1"))
    queue.run("carol", ())
    queue.submit("alice")
    queue.submit("bob")
    bob, alice, carol = queue.state.owner_shares(9)
    assert (bob.owner, alice.owner, carol.owner) == ("bob", "alice", "carol")
    assert (alice.weight, alice.queued_count, alice.running_count, alice.held_gpu_count) == (2.0, 1, 1, 2)
    assert 3500 < alice.used_gpu_seconds < 3600
    assert (alice.max_queued, alice.max_running, alice.max_gpus, alice.max_bytes, alice.kept_bytes) == (9, 8, 7, 600, 123)
    assert (carol.queued_count, carol.running_count, carol.held_gpu_count) == (0, 1, 0)
    assert (bob.weight, bob.used_gpu_seconds) == (1.0, 0.0)
    assert not any(map(bob.HasField, ("max_queued", "max_running", "max_gpus", "max_bytes", "kept_bytes")))
    assert [share.owner for share in queue.state.owner_shares(9, "alice")] == ["alice"]
    assert queue.state.queued_job_ids(9, "alice") == ["job-2"]


def test_time_alone_changes_who_is_next() -> None:
    queue = Queue(uses=[used("bob", 60)])
    queue.run("alice", ("0",))
    alice, bob = queue.submit("alice"), queue.submit("bob")
    assert queue.state.queued_job_ids(9) == [alice, bob]
    before = queue.state.state
    queue.clock.seconds += 600
    assert queue.state.state != before
    assert queue.state.queued_job_ids(9) == [bob, alice]
    assert queue.state.described(queue.jobs[alice]).position_in_queue == 1
