"""Which queued job starts next."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.jobs import defaults
from evalrpc.scheduling import placement
from evalrpc.scheduling.placement import Capacity, QueuedJob
from evalrpc.v1.job_pb2 import EvaluateRequest

RESERVATION = 600.0


def queued(sequence: int, num_gpus: int, *, priority: int = 0, created: float = 0.0) -> QueuedJob:
    return QueuedJob(-priority, sequence, f"job-{sequence}", num_gpus, created)


def free(gpus: int, slots_without_gpus: int = 2, slots: int = 10) -> Capacity:
    return Capacity(tuple(str(index) for index in range(gpus)), slots_without_gpus, slots)


def heads(jobs: Sequence[QueuedJob]) -> list[QueuedJob]:
    """Return what next_job is promised: the first of each width."""
    first: dict[int, QueuedJob] = {}
    for job in sorted(jobs):
        first.setdefault(job.num_gpus, job)
    return list(first.values())


def chosen(jobs: Sequence[QueuedJob], capacity: Capacity, now: float = 0.0) -> int | None:
    job = placement.next_job(heads(jobs), capacity, now, RESERVATION)
    return None if job is None else job.sequence


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
        (0, 0, Capacity((), 2, 2)),
        (2, 0, Capacity(("0", "1"), 2, 4)),
        (2, 8, Capacity(("0", "1"), 6, 8)),
        (2, 2, Capacity(("0", "1"), 1, 2)),
        (4, 1, Capacity(("0", "1", "2", "3"), 1, 1)),
        (0, 1, Capacity((), 1, 1)),
    ],
)
def test_the_slots_follow_from_gpus_and_max_running(gpus: int, max_running: int, expected: Capacity) -> None:
    assert placement.capacity([str(index) for index in range(gpus)], max_running) == expected


def test_a_request_without_num_gpus_asks_for_one() -> None:
    assert defaults.gpus_needed(EvaluateRequest()) == 1
    assert defaults.gpus_needed(EvaluateRequest(num_gpus=0)) == 0
    assert defaults.gpus_needed(EvaluateRequest(num_gpus=3)) == 3


def test_the_wait_reason_says_what_is_missing() -> None:
    none, one, four = queued(1, 0), queued(2, 1), queued(3, 4)
    assert placement.wait_reason(one, 0, free(1)) == "about to start"
    assert placement.wait_reason(none, 5, free(0)) == "about to start", "jobs with GPUs don't keep it waiting"
    assert placement.wait_reason(four, 0, free(1)) == "needs 4 GPUs, 1 free; 0 jobs before this one"
    assert placement.wait_reason(one, 1, free(0)) == "needs 1 GPU, 0 free; 1 job before this one"
    assert placement.wait_reason(one, 0, free(0), 2) == "needs 1 GPU, 0 free, 2 set aside, see GetQueue; 0 jobs before this one"
    assert placement.wait_reason(none, 2, free(1, slots_without_gpus=0)).startswith("all slots for jobs without GPUs are taken")
    assert placement.wait_reason(one, 2, free(1, slots=0)).startswith("all slots for running jobs are taken")


def test_the_wait_reason_names_the_job_that_gpus_are_kept_for() -> None:
    jobs = [queued(1, 4), queued(2, 1, created=1.0), queued(3, 1, priority=1, created=1.0)]
    assert placement.reserving_job(heads(jobs), free(0), RESERVATION - 1, RESERVATION) is None
    wide = placement.reserving_job(heads(jobs[:2]), free(2), RESERVATION, RESERVATION)
    assert wide == jobs[0]
    reason = placement.wait_reason(jobs[1], 1, free(2), reserving=wide)
    assert (
        reason
        == f"needs 1 GPU, 2 free; GPUs are kept for job {wide.job_id}, which needs 4 and has waited long; 1 job before this one"
    )
    assert placement.wait_reason(jobs[2], 0, free(2), reserving=wide) == "about to start", "it is served before that one"
    assert placement.wait_reason(wide, 0, free(2), reserving=wide) == "needs 4 GPUs, 2 free; 0 jobs before this one"


@settings(deadline=None)
@given(
    num_gpus=st.integers(0, 9),
    position=st.integers(0, 5),
    gpus=st.integers(0, 4),
    cpu=st.integers(0, 2),
    slots=st.integers(0, 3),
)
def test_every_waiting_job_has_a_wait_reason_of_one_line(num_gpus: int, position: int, gpus: int, cpu: int, slots: int) -> None:
    reason = placement.wait_reason(queued(1, num_gpus), position, free(gpus, cpu, slots))
    assert reason
    assert "\n" not in reason


class Model:
    """A server whose jobs start only by next_job and end when told to."""

    def __init__(self, gpus: int, max_running: int) -> None:
        self.capacity = placement.capacity([str(index) for index in range(gpus)], max_running)
        self.queue: list[QueuedJob] = []
        self.running: dict[QueuedJob, tuple[str, ...]] = {}
        self.now = 0.0

    def free(self) -> Capacity:
        held = [gpu for gpus in self.running.values() for gpu in gpus]
        assert len(held) == len(set(held)), "a GPU was given twice"
        return Capacity(
            tuple(gpu for gpu in self.capacity.gpus if gpu not in held),
            self.capacity.slots_without_gpus - sum(1 for gpus in self.running.values() if not gpus),
            self.capacity.slots - len(self.running),
        )

    def start_all(self) -> None:
        while (job := placement.next_job(heads(self.queue), self.free(), self.now, RESERVATION)) is not None:
            available = self.free()
            assert placement.fits(job.num_gpus, available)
            self.queue.remove(job)
            self.running[job] = available.gpus[: job.num_gpus]
        self.check_nothing_idles()

    def check_nothing_idles(self) -> None:
        available = self.free()
        reserved = False
        for job in sorted(self.queue):
            fits = placement.fits(job.num_gpus, available)
            assert not fits or (reserved and job.num_gpus > 0), "a job that fits was left waiting with nothing reserved"
            reserved = reserved or (job.num_gpus > 0 and not fits and self.now - job.created_seconds >= RESERVATION)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 4), st.integers(-1, 1)),
        st.tuples(st.just("end"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pass"), st.integers(1, 700), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(gpus=st.integers(0, 4), max_running=st.integers(0, 7), steps=operations)
def test_no_gpu_twice_none_idle_without_reason_and_everyone_runs_in_the_end(
    gpus: int, max_running: int, steps: list[tuple[str, int, int]]
) -> None:
    model = Model(gpus, max_running)
    for sequence, (kind, number, priority) in enumerate(steps):
        if kind == "submit":
            model.queue.append(queued(sequence, min(number, gpus), priority=priority, created=model.now))
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


def test_a_wide_job_does_not_starve_under_an_endless_stream_of_small_ones() -> None:
    model = Model(gpus=2, max_running=0)
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
