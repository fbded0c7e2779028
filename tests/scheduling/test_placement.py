"""Which queued job starts next."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.executors.base import Device, Node, Resources
from evalrpc.jobs.defaults import HERE
from evalrpc.scheduling import capacity, placement, wait_reasons
from evalrpc.scheduling.capacity import Capacity, NodeCapacity, Slots
from evalrpc.scheduling.placement import Head, Placement, Preemption, QueuedJob, Reservation
from evalrpc.testing.executor import nodes_of
from evalrpc.v1.jobs_pb2 import JobAttempt, JobInfo

RESERVATION = 600.0


def queued(sequence: int, num_gpus: int, *, priority: int = 0, created: float = 0.0) -> QueuedJob:
    return QueuedJob(-priority, sequence, f"job-{sequence}", num_gpus, created)


def free(gpus: int, slots_without_gpus: int = 2, slots: int = 10, quarantined: int = 0) -> Capacity:
    """A server with one node of eight GPUs, of which some are free."""
    return Capacity((node("local", gpus, 8, quarantined),), Slots(slots, slots_without_gpus))


def node(name: str, free_count: int, device_count: int, quarantined: int = 0) -> NodeCapacity:
    devices = tuple(f"{name}{index}" for index in range(free_count))
    return NodeCapacity(name, devices, device_count - quarantined, device_count)


def cluster(*nodes: NodeCapacity) -> Capacity:
    return Capacity(nodes, Slots(99, 99))


def heads(jobs: Sequence[QueuedJob]) -> list[Head]:
    """Return what next_placement is promised: the first of each width, here of one owner."""
    first: dict[int, QueuedJob] = {}
    for job in sorted(jobs):
        first.setdefault(job.num_gpus, job)
    return [Head((1, 0, job.negated_priority, job.sequence), job) for job in first.values()]


def chosen(jobs: Sequence[QueuedJob], capacity: Capacity, now: float = 0.0) -> int | None:
    chosen = placed(jobs, capacity, now)
    return None if chosen is None else chosen.job.sequence


def placed(jobs: Sequence[QueuedJob], capacity: Capacity, now: float = 0.0) -> Placement | None:
    chosen = placement.next_placement(heads(jobs), capacity, now, RESERVATION)[0]
    assert not isinstance(chosen, Preemption), "nothing is preemptible"
    return chosen


def reservation(jobs: Sequence[QueuedJob], capacity: Capacity, now: float = RESERVATION) -> Reservation | None:
    return placement.next_placement(heads(jobs), capacity, now, RESERVATION)[1]


def test_equals_start_in_order_of_arrival() -> None:
    assert chosen([queued(3, 1), queued(1, 1), queued(2, 1)], free(1)) == 1


def test_a_higher_priority_goes_first_whatever_came_before() -> None:
    assert chosen([queued(1, 1), queued(2, 1, priority=5), queued(3, 1, priority=-5)], free(1)) == 2


def test_order_holds_between_jobs_with_and_without_gpus() -> None:
    assert chosen([queued(1, 0), queued(2, 1)], free(1)) == 1
    assert chosen([queued(2, 0), queued(1, 1)], free(1)) == 1


def test_nothing_starts_from_an_empty_queue() -> None:
    assert chosen([], free(8)) is None


def test_nothing_starts_while_all_slots_are_taken() -> None:
    assert chosen([queued(1, 0), queued(2, 1)], free(8, slots=0)) is None


def test_a_small_job_passes_a_wide_one_that_does_not_fit_yet() -> None:
    assert chosen([queued(1, 4), queued(2, 1)], free(2)) == 2


def test_a_small_job_passes_a_wide_one_of_higher_priority_too() -> None:
    assert chosen([queued(1, 4, priority=9), queued(2, 1)], free(2)) == 2


def test_a_wide_job_that_waited_long_enough_has_the_gpus_kept_for_it() -> None:
    jobs = [queued(1, 4), queued(2, 1, created=1.0)]
    assert chosen(jobs, free(2), now=RESERVATION - 0.001) == 2
    assert chosen(jobs, free(2), now=RESERVATION) is None
    assert chosen(jobs, free(4), now=RESERVATION) == 1


def test_a_job_that_is_served_before_the_reserved_one_still_starts() -> None:
    jobs = [queued(1, 4), queued(2, 1, priority=1, created=RESERVATION)]
    assert chosen(jobs, free(2), now=RESERVATION) == 2


def test_a_reservation_never_holds_up_jobs_without_gpus() -> None:
    jobs = [queued(1, 4), queued(2, 1), queued(3, 0), queued(4, 0)]
    assert chosen(jobs, free(2), now=RESERVATION) == 3
    assert chosen(jobs, free(2, slots_without_gpus=0), now=RESERVATION) is None


def test_jobs_without_gpus_that_wait_for_a_slot_reserve_nothing() -> None:
    jobs = [queued(1, 0), queued(2, 1, created=RESERVATION)]
    assert chosen(jobs, free(1, slots_without_gpus=0), now=10 * RESERVATION) == 2


def test_busy_gpus_never_hold_up_jobs_without_gpus() -> None:
    assert chosen([queued(1, 1), queued(2, 0)], free(0)) == 2


@pytest.mark.parametrize(
    ("gpus", "max_running", "expected"),
    [
        (0, 0, Slots(2, 2)),
        (2, 0, Slots(4, 2)),
        (2, 8, Slots(8, 6)),
        (2, 2, Slots(2, 1)),
        (4, 1, Slots(1, 1)),
        (0, 1, Slots(1, 1)),
    ],
)
def test_the_slots_follow_from_gpus_and_max_running(gpus: int, max_running: int, expected: Slots) -> None:
    assert capacity.slots(gpus, max_running) == expected


def test_a_job_that_is_bound_to_the_machine_of_the_scheduler_says_what_that_lacks() -> None:
    bound = queued(1, 2)._replace(executor=HERE)
    there = cluster(node("alpha", 1, 1), node("beta", 8, 8)._replace(is_remote=True))
    reason = "needs 2 GPUs of alpha, where engines are started and models prepared, and that has 1 in all"
    assert wait_reasons.wait_reason(bound, 0, there) == reason
    assert placement.next_placement(heads([bound]), there, 0.0, RESERVATION)[0] is None
    there = cluster(node("alpha", 1, 1)._replace(is_remote=True), node("beta", 8, 8))
    assert wait_reasons.wait_reason(bound, 0, there) == "about to start"


def test_the_wait_reason_says_what_is_missing() -> None:
    none, one, four = queued(1, 0), queued(2, 1), queued(3, 4)
    assert wait_reasons.wait_reason(one, 0, free(1)) == "about to start"
    assert wait_reasons.wait_reason(none, 5, free(0)) == "about to start", "jobs with GPUs don't keep it waiting"
    assert wait_reasons.wait_reason(four, 0, free(1)) == "needs 4 GPUs, 1 free"
    assert wait_reasons.wait_reason(one, 1, free(0)) == "needs 1 GPU, 0 free"
    assert wait_reasons.wait_reason(one, 1, free(1)) == "needs 1 GPU, 1 free; the jobs before it come first"
    assert wait_reasons.wait_reason(one, 0, free(0, quarantined=2)) == "needs 1 GPU, 0 free, 2 quarantined, see GetQueue"
    assert wait_reasons.wait_reason(none, 2, free(1, slots_without_gpus=0)) == "all slots for jobs without GPUs are taken"
    assert wait_reasons.wait_reason(one, 2, free(1, slots=0)) == "all slots for running jobs are taken"


def test_the_wait_reason_names_the_job_that_gpus_are_kept_for() -> None:
    jobs = [queued(1, 4), queued(2, 1, created=1.0), queued(3, 1, priority=1, created=1.0)]
    assert reservation(jobs, free(0), RESERVATION - 1) is None
    kept = reservation(jobs[:2], free(2))
    assert kept == Reservation(jobs[0], "local")
    assert (
        wait_reasons.wait_reason(jobs[1], 1, free(2), kept)
        == "needs 1 GPU, 2 free; GPUs are kept for job job-1, which needs 4 and has waited long"
    )
    assert wait_reasons.wait_reason(jobs[0], 0, free(2), kept) == "needs 4 GPUs, 2 free"


# Several nodes.


def test_a_job_gets_the_tightest_node_that_suffices_whatever_their_order() -> None:
    nodes = node("a", 4, 4), node("b", 2, 2), node("c", 3, 4)
    for order in (nodes, nodes[::-1]):
        assert placed([queued(1, 1)], cluster(*order)) == Placement(queued(1, 1), "b", ("b0",))
        assert placed([queued(1, 3)], cluster(*order)) == Placement(queued(1, 3), "c", ("c0", "c1", "c2"))
        assert placed([queued(1, 4)], cluster(*order)) == Placement(queued(1, 4), "a", ("a0", "a1", "a2", "a3"))


def test_gpus_of_two_nodes_are_never_put_together() -> None:
    assert placed([queued(1, 4)], cluster(node("a", 3, 4), node("b", 3, 4))) is None


def test_one_node_is_kept_for_a_wide_job_and_the_others_go_on() -> None:
    jobs = [queued(1, 4), queued(2, 1, created=1.0)]
    nodes = cluster(node("a", 1, 4), node("b", 2, 4), node("c", 2, 2))
    assert reservation(jobs, nodes) == Reservation(jobs[0], "b"), "it lacks least"
    for _ in range(3):
        chosen = placed(jobs, nodes, RESERVATION)
        assert chosen is not None
        assert (chosen.job, chosen.node) != (jobs[1], "b")
        taken = [each._replace(free=each.free[1:]) if each.name == chosen.node else each for each in nodes.nodes]
        nodes = cluster(*taken)
    assert placed(jobs, nodes, RESERVATION) is None


def test_the_wait_reason_names_no_job_of_another_owner_where_that_must_stay_hidden() -> None:
    alices, bobs = (queued(number, 1)._replace(owner=owner) for number, owner in ((2, "alice"), (3, "bob")))
    kept = Reservation(queued(1, 4)._replace(owner="alice"), "local")
    assert "GPUs are kept for job job-1," in wait_reasons.wait_reason(alices, 1, free(2), kept, names_others=False)
    assert wait_reasons.wait_reason(bobs, 1, free(2), kept, names_others=False) == (
        "needs 1 GPU, 2 free; GPUs are kept for another job, which needs 4 and has waited long"
    )
    assert "GPUs are kept for job job-1," in wait_reasons.wait_reason(bobs, 1, free(2), kept)


def test_no_node_is_kept_that_lacks_gpus_for_the_job() -> None:
    jobs = [queued(1, 4), queued(2, 3, created=1.0)]
    nodes = cluster(node("a", 3, 4, quarantined=1), node("b", 0, 4))
    assert reservation(jobs, nodes) == Reservation(jobs[0], "b")
    assert chosen(jobs, nodes, RESERVATION) == 2
    assert reservation(jobs, cluster(node("a", 3, 4, quarantined=1), node("b", 2, 2))) is None


def test_the_wait_reason_counts_by_node_where_there_are_several() -> None:
    nodes = cluster(node("a", 1, 4), node("b", 3, 4))
    one, four = queued(2, 1), queued(1, 4)
    assert wait_reasons.wait_reason(four, 0, nodes) == "needs 4 GPUs on one node, at most 3 free on one"
    assert wait_reasons.wait_reason(one, 1, nodes) == "needs 1 GPU, 4 free; the jobs before it come first"
    kept = wait_reasons.wait_reason(one, 1, nodes, Reservation(four, "b"))
    assert "; GPUs of node b are kept for job job-1, which needs 4 and has waited long" in kept
    too_wide = "needs 5 GPUs on one node, and no node of this server has more than 4"
    assert wait_reasons.wait_reason(queued(3, 5), 0, nodes) == too_wide
    quarantined = cluster(node("a", 1, 4, quarantined=3), node("b", 0, 4, quarantined=1))
    assert "at most 1 free on one, 4 quarantined, see GetQueue" in wait_reasons.wait_reason(four, 0, quarantined)


def test_without_a_node_nothing_starts() -> None:
    assert placed([queued(1, 0), queued(2, 1)], cluster()) is None
    assert wait_reasons.wait_reason(queued(1, 0), 0, cluster()) == "there is no node to run on"


def test_where_a_job_was_placed_follows_from_its_devices() -> None:
    nodes = nodes_of({"a": ("a0",), "b": ("b0", "b1")})
    assert capacity.resources_of(JobInfo(gpus=["b1"]), nodes) == Resources("b", ("b1",))
    assert capacity.resources_of(JobInfo(), nodes) == Resources("a")
    assert capacity.resources_of(JobInfo(gpus=["gone"]), nodes) == Resources("a", ("gone",))
    assert capacity.resources_of(JobInfo(), []) == Resources("")


def test_where_a_job_was_placed_is_what_its_attempt_says() -> None:
    job = JobInfo(attempts=[JobAttempt(node="b")])
    assert capacity.resources_of(job, nodes_of({"a": (), "b": ()})) == Resources("b")


def on_cluster(sequence: int, num_gpus: int = 0, *, created: float = 0.0) -> QueuedJob:
    return queued(sequence, num_gpus, created=created)._replace(executor="cluster")


def with_cluster(local_free: int, cluster_free: int, free_runs: int, slots: int = 10) -> Capacity:
    far = node("cluster", cluster_free, 8)._replace(executor="cluster", free_runs=free_runs)
    return Capacity((node("local", local_free, 8), far), Slots(slots, 2))


def test_each_executor_gets_the_jobs_that_are_for_it() -> None:
    capacity = with_cluster(local_free=1, cluster_free=2, free_runs=3)
    assert placed([on_cluster(1, 2)], capacity) == Placement(on_cluster(1, 2), "cluster", ("cluster0", "cluster1"))
    assert placed([queued(1, 1)], capacity) == Placement(queued(1, 1), "local", ("local0",))
    assert chosen([queued(1, 2)], capacity) is None
    assert chosen([on_cluster(1, 3)], capacity) is None


def test_a_job_that_can_not_start_on_its_executor_keeps_none_of_another_waiting() -> None:
    capacity = with_cluster(local_free=2, cluster_free=1, free_runs=3)
    wide = on_cluster(1, 2)
    heads_ = [Head((1, 0, 0, job.sequence), job) for job in (wide, queued(2, 2))]
    chosen_now, kept_for = placement.next_placement(heads_, capacity, RESERVATION, RESERVATION)
    assert isinstance(chosen_now, Placement)
    assert chosen_now.node == "local"
    assert kept_for == Reservation(wide, "cluster")


def test_a_cluster_takes_as_many_runs_as_it_is_allowed_whatever_slots_the_server_has() -> None:
    assert chosen([on_cluster(1)], with_cluster(0, 0, free_runs=1, slots=0)) == 1
    assert chosen([on_cluster(1)], with_cluster(8, 8, free_runs=0)) is None
    reason = wait_reasons.wait_reason(on_cluster(1), 0, with_cluster(8, 8, free_runs=0))
    assert reason == "all slots of cluster for running jobs are taken"


def test_a_job_of_an_executor_that_is_gone_says_so() -> None:
    assert chosen([on_cluster(1)], free(8)) is None
    assert wait_reasons.wait_reason(on_cluster(1), 0, free(8)) == "this server has no executor 'cluster' any more"


@settings(deadline=None)
@given(
    num_gpus=st.integers(0, 9),
    position=st.integers(0, 5),
    gpus=st.integers(0, 4),
    cpu=st.integers(0, 2),
    slots=st.integers(0, 3),
)
def test_every_waiting_job_has_a_wait_reason_of_one_line(num_gpus: int, position: int, gpus: int, cpu: int, slots: int) -> None:
    reason = wait_reasons.wait_reason(queued(1, num_gpus), position, free(gpus, cpu, slots))
    assert reason
    assert "\n" not in reason


class Model:
    """A server whose jobs start only by next_placement and end when told to."""

    def __init__(self, nodes: Sequence[Node], max_running: int) -> None:
        self.nodes = nodes
        self.slots = capacity.slots(sum(len(node.devices) for node in nodes), max_running)
        self.queue: list[QueuedJob] = []
        self.running: dict[QueuedJob, Placement] = {}
        self.now = 0.0

    def free(self) -> Capacity:
        held = [device for placed in self.running.values() for device in placed.devices]
        assert len(held) == len(set(held)), "a GPU was given twice"
        without_gpus = sum(1 for job in self.running if not job.num_gpus)
        slots = Slots(self.slots.total - len(self.running), self.slots.without_gpus - without_gpus)
        return Capacity(tuple(capacity.node_capacity(node, set(held)) for node in self.nodes), slots)

    def start_all(self) -> None:
        while (chosen := placed(self.queue, self.free(), self.now)) is not None:
            job, name, devices = chosen
            assert placement.fits(job.num_gpus, self.free())
            assert len(devices) == job.num_gpus
            assert set(devices) <= {device.id for node in self.nodes if node.name == name for device in node.devices}
            self.queue.remove(job)
            self.running[job] = chosen
        self.check_nothing_idles()

    def check_nothing_idles(self) -> None:
        available = self.free()
        reserved = False
        for job in sorted(self.queue):
            fits = placement.fits(job.num_gpus, available)
            assert not fits or (reserved and job.num_gpus > 0), "a job that fits was left waiting with nothing reserved"
            reserved = reserved or (job.num_gpus > 0 and not fits and self.now - job.created_seconds >= RESERVATION)


def nodes_with(*gpus: int) -> Sequence[Node]:
    return nodes_of({str(number): [f"{number}-{index}" for index in range(count)] for number, count in enumerate(gpus)})


operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 4), st.integers(-1, 1)),
        st.tuples(st.just("end"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pass"), st.integers(1, 700), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(gpus=st.lists(st.integers(0, 4), min_size=1, max_size=3), max_running=st.integers(0, 7), steps=operations)
def test_no_gpu_twice_none_idle_without_reason_and_everyone_runs_in_the_end(
    gpus: list[int], max_running: int, steps: list[tuple[str, int, int]]
) -> None:
    model = Model(nodes_with(*gpus), max_running)
    for sequence, (kind, number, priority) in enumerate(steps):
        if kind == "submit":
            model.queue.append(queued(sequence, min(number, max(gpus)), priority=priority, created=model.now))
        elif kind == "pass":
            model.now += number
        elif model.running:
            del model.running[sorted(model.running)[number % len(model.running)]]
        model.start_all()
    rounds = len(model.queue) + len(model.running)
    for _ in range(rounds):
        if not model.running:
            break
        del model.running[min(model.running)]
        model.start_all()
    assert not model.queue


@pytest.mark.parametrize("others", [(), (1,), (2, 2)])
def test_a_wide_job_does_not_starve_under_an_endless_stream_of_small_ones(others: tuple[int, ...]) -> None:
    model = Model(nodes_with(2, *others), max_running=0)
    wide = queued(0, 2)
    sequence = 0
    model.queue.append(wide)
    model.queue += [queued(-2, 1), queued(-1, 1)]  # came before it
    model.start_all()
    while wide not in model.running:
        sequence += 1
        model.now += 60
        assert model.now < 2 * RESERVATION + 600, "the wide job starved"
        model.queue.append(queued(sequence, 1, created=model.now))
        small = next((job for job in model.running if job.num_gpus == 1), None)
        if small is not None:
            del model.running[small]
        model.start_all()


def test_a_cordoned_device_is_not_free_and_is_counted_by_itself() -> None:
    devices = (Device("0", is_cordoned=True), Device("1", quarantine_reason="hot"), Device("2"), Device("3", "", "hot", True))
    known_node = capacity.node_capacity(Node("local", devices), frozenset())
    assert known_node.free == ("2",)
    known = Capacity((known_node,), Slots(4, 1))
    assert (known.quarantined_count, known.cordoned_count) == (1, 2)
    wide = queued(1, 2)
    assert wait_reasons.wait_reason(wide, 0, known) == "needs 2 GPUs, 1 free, 1 quarantined, 2 cordoned, see GetQueue"
