"""Which running jobs give way to a queued one."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.scheduling.capacity import Capacity, NodeCapacity, Slots
from evalrpc.scheduling.placement import (
    Head,
    Placement,
    Preemption,
    QueuedJob,
    Reservation,
    Running,
    RunningJob,
    next_placement,
)
from evalrpc.scheduling.wait_reasons import wait_reason

RESERVATION = 600.0
PLENTY = Slots(99, 99)


def head(num_gpus: int, order: float = 0.0, created: float = 0.0) -> Head:
    return Head((1, order), QueuedJob(0, int(order * 10), f"queued-{order}", num_gpus, created))


def runs(name: str, num_gpus: int, order: float = 1.0, started: float = 0.0, node: str = "n") -> RunningJob:
    return RunningJob((1, order), name, node, num_gpus, started)


def node(name: str, free_count: int, device_count: int = 8) -> NodeCapacity:
    return NodeCapacity(name, tuple(f"{name}{index}" for index in range(free_count)), device_count, device_count)


def server(*nodes: NodeCapacity, slots: Slots = PLENTY) -> Capacity:
    return Capacity(nodes, slots)


def victims(
    heads: list[Head], capacity: Capacity, preemptible: list[RunningJob], giving_way: tuple[RunningJob, ...] = ()
) -> list[str] | None:
    """Return who is to give way; None if nobody is."""
    chosen, _ = next_placement(heads, capacity, 0.0, RESERVATION, Running(preemptible, giving_way))
    return [job.job_id for job in chosen.victims] if isinstance(chosen, Preemption) else None


def test_a_job_that_fits_nowhere_has_one_that_comes_after_it_give_way() -> None:
    assert victims([head(1)], server(node("n", 0)), [runs("a", 1)]) == ["a"]
    assert victims([head(1)], server(node("n", 0)), []) is None
    assert victims([head(1)], server(node("n", 0)), [runs("a", 1, order=-1.0)]) is None, "it comes first"
    assert victims([head(1)], server(node("n", 1)), [runs("a", 1)]) is None, "it fits as it is"
    assert victims([head(4)], server(node("n", 0)), [runs("a", 3)]) is None, "that would not help"
    assert victims([head(9)], server(node("n", 8)), [runs("a", 1, node="m")]) is None, "it is wider than the node"


def test_the_fewest_give_way_and_of_these_the_youngest() -> None:
    old, young = runs("old", 1, started=1.0), runs("young", 1, started=2.0)
    wide = runs("wide", 2, started=0.0)
    assert victims([head(1)], server(node("n", 0)), [old, young, wide]) == ["young"]
    assert victims([head(2)], server(node("n", 0)), [old, young, wide]) == ["wide"]
    assert victims([head(2)], server(node("n", 1)), [old, young, wide]) == ["young"]
    assert victims([head(3)], server(node("n", 0)), [old, young, wide]) == ["young", "wide"]
    assert victims([head(4)], server(node("n", 0)), [old, young, wide]) == ["young", "old", "wide"]


def test_all_gpus_are_made_free_on_one_node() -> None:
    there = [runs("a", 2, node="n", started=5.0), runs("b", 2, node="m", started=6.0), runs("c", 4, node="m", started=1.0)]
    assert victims([head(4)], server(node("n", 0, 4), node("m", 0, 8)), there) == ["c"]
    assert victims([head(2)], server(node("n", 0, 4), node("m", 0, 8)), there) == ["b"], "the youngest on any node"
    assert victims([head(4)], server(node("n", 2, 4), node("m", 0, 8)), there) == ["a"], (
        "the youngest of those who suffice alone"
    )


def test_slots_are_made_free_too() -> None:
    full = Slots(0, 0)
    gpu, plain = runs("gpu", 1, started=9.0), runs("plain", 0, started=1.0)
    assert victims([head(0)], server(node("n", 0), slots=full), [gpu, plain]) == ["plain"]
    assert victims([head(0)], server(node("n", 0), slots=Slots(0, 1)), [gpu, plain]) == ["gpu"], "any slot will do"
    assert victims([head(1)], server(node("n", 1), slots=full), [gpu, plain]) == ["gpu"]
    assert victims([head(1)], server(node("n", 0), slots=full), [plain]) is None, "a GPU is missing too"


def test_while_others_give_way_nobody_else_is_asked_to_and_what_comes_free_is_kept() -> None:
    first, second = head(2, order=0.0), head(1, order=0.5)
    capacity, giving_way = server(node("n", 1)), (runs("a", 1),)
    assert victims([first], capacity, [runs("b", 1)], giving_way) is None
    chosen, reservation = next_placement([first, second], capacity, 0.0, RESERVATION, Running((), giving_way))
    assert (chosen, reservation) == (None, Reservation(first.job, "n", is_made_room_for=True))
    assert wait_reason(first.job, 0, capacity, reservation) == "needs 2 GPUs, 1 free; other jobs give way to it"
    reason = wait_reason(second.job, 1, capacity, reservation)
    assert reason == "needs 1 GPU, 1 free; GPUs are kept for job queued-0.0, which needs 2 and comes first"
    before, _ = next_placement([head(1, order=-1.0), first], capacity, 0.0, RESERVATION, Running((), giving_way))
    assert isinstance(before, Placement), "who comes before it may have them"


def test_another_one_behind_may_have_others_give_way_elsewhere() -> None:
    capacity = server(node("n", 0), node("m", 0))
    heads = [head(1, order=0.0), head(2, order=0.5)]
    preemptible = [runs("b", 2, node="n"), runs("c", 2, node="m")]
    assert victims(heads, capacity, preemptible, (runs("a", 1, node="n"),)) == ["c"]


@settings(deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 1), st.floats(-1, 1)), max_size=7),
    free=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    num_gpus=st.integers(0, 6),
    slots=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_no_smaller_set_would_make_room_and_the_chosen_one_does(
    jobs: list[tuple[int, int, int, float]], free: tuple[int, int], num_gpus: int, slots: tuple[int, int]
) -> None:
    preemptible = [
        runs(f"job-{number}", gpus, order, float(started), node="nm"[place])
        for number, (gpus, started, place, order) in enumerate(jobs)
    ]
    capacity = server(
        *(
            node(name, count, count + sum(job.num_gpus for job in preemptible if job.node == name))
            for name, count in zip("nm", free, strict=True)
        ),
        slots=Slots(*slots),
    )
    chosen, _ = next_placement([head(num_gpus)], capacity, 0.0, RESERVATION, Running(preemptible))

    def makes_room(leaving: tuple[RunningJob, ...]) -> bool:
        total = slots[0] + len(leaving)
        without = slots[1] + sum(not job.num_gpus for job in leaving)
        widest = max(
            count + sum(job.num_gpus for job in leaving if job.node == name) for name, count in zip("nm", free, strict=True)
        )
        return total >= 1 and (widest >= num_gpus if num_gpus else without >= 1)

    behind = [job for job in preemptible if job.order > (1, 0.0)]
    sets = [leaving for count in range(len(behind) + 1) for leaving in combinations(behind, count) if makes_room(leaving)]
    if sets and not sets[0]:
        assert isinstance(chosen, Placement)
    elif not sets:
        assert chosen is None
    else:
        assert isinstance(chosen, Preemption)
        assert set(chosen.victims) <= set(behind)
        assert makes_room(chosen.victims)
        assert len(chosen.victims) == len(sets[0])


def test_between_owners_only_less_use_counts_and_not_what_they_hold_just_now() -> None:
    def of(owner: str, used: float, held: float, *, urgent: bool = False) -> Head:
        return Head((not urgent, used, held, 0, 1), QueuedJob(0, 1, "q", 1, 0.0, owner=owner))

    running = RunningJob((True, 5.0, 3.0, 0, 0), "a", "n", 1, 0.0, "alice")
    full = server(node("n", 0))
    assert victims([of("bob", 4.0, 3.0)], full, [running]) == ["a"]
    assert victims([of("bob", 5.0, 0.0)], full, [running]) is None, "they would take turns at once"
    assert victims([of("bob", 9.0, 9.0, urgent=True)], full, [running]) == ["a"]
    assert victims([of("alice", 5.0, 3.0)], full, [running]) is None, "it arrived later"
    higher = Head((True, 5.0, 3.0, -1, 1), QueuedJob(-1, 1, "q", 1, 0.0, owner="alice"))
    assert victims([higher], full, [running]) == ["a"]
