"""The queue in memory against a model that sorts everything anew each time."""

from clocks import ManualClock
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.executors.base import Resources
from evalrpc.scheduling.capacity import Capacity, NodeCapacity, Slots
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.store.base import Change, JournalEvent, ListedJob, QueuedRow
from evalrpc.testing.executor import nodes_of
from evalrpc.v1 import jobs_pb2 as pb

QUEUED, RUNNING, COMPLETED = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED
DEVICES = ("0", "1", "2", "3")
NODES = nodes_of({"local": DEVICES})


def free_of(*devices: str, slots: int = 6, without_gpus: int = 2) -> Capacity:
    return Capacity((NodeCapacity("local", devices, 4, 4),), Slots(slots, without_gpus, 8))


CAPACITY = free_of(*DEVICES)


def job_at(
    number: int,
    status: int,
    *,
    priority: int = 0,
    num_gpus: int = 1,
    gpus: tuple[str, ...] = (),
    started: int = 0,
    owner: str = "",
) -> pb.JobInfo:
    job = pb.JobInfo(job_id=f"job-{number}", status=status, priority=priority, gpus=gpus, owner=owner)
    job.request.num_gpus = num_gpus
    job.created_at.FromSeconds(number)
    if started:
        job.started_at.FromSeconds(started)
    return job


def change(job: pb.JobInfo, sequence: int, previous: int = QUEUED, *, deleted: bool = False) -> Change:
    return Change(1, job, sequence, previous, JournalEvent(1, b"event"), deleted)


def state_of(*jobs: tuple[int, pb.JobInfo]) -> QueueState:
    state = QueueState(lambda: NODES, 0, ManualClock())
    state.apply([change(job, sequence, pb.JOB_STATUS_UNSPECIFIED) for sequence, job in jobs])
    return state


def chosen_id(state: QueueState, free: Capacity, reservation_seconds: float = 600.0, now: float = 0.0) -> str:
    chosen = state.choose(free, reservation_seconds, {}, now)
    assert chosen is not None
    return chosen.job.job_id


STARTED_MEANWHILE = pb.JobInfo(position_in_queue=0, wait_reason="about to start")


def describe(state: QueueState, job_id: str, status: int = QUEUED) -> pb.JobInfo:
    """What the queue adds to what the store has: the same for a message and for its bytes, however often it is asked."""
    job = pb.JobInfo(job_id=job_id, status=status)
    described = state.described(job)
    for _ in range(2):
        assert pb.JobInfo.FromString(state.describe(job_id, job.status, job.SerializeToString())) == described
    described.ClearField("job_id")
    described.ClearField("status")
    return described


def test_a_queued_job_has_its_position_and_reason() -> None:
    state = state_of((1, job_at(1, QUEUED, num_gpus=8)), (2, job_at(2, QUEUED, num_gpus=1)))
    assert describe(state, "job-1").position_in_queue == 0
    second = describe(state, "job-2")
    assert second.HasField("position_in_queue")
    assert second.position_in_queue == 1
    assert second.wait_reason


def test_what_a_job_waits_for_is_described_anew_when_the_server_is_about_to_stop() -> None:
    state = state_of((1, job_at(1, QUEUED, num_gpus=4)), (2, job_at(2, QUEUED)))
    before = describe(state, "job-2").wait_reason
    state.draining = True
    assert before != describe(state, "job-2").wait_reason == describe(state, "job-1").wait_reason


def test_a_job_that_is_not_live_has_nothing_to_describe() -> None:
    state = state_of((1, job_at(1, QUEUED)))
    state.apply([change(job_at(1, RUNNING, gpus=("0",)), 1), change(job_at(1, COMPLETED), 1, RUNNING)])
    assert describe(state, "job-1") == STARTED_MEANWHILE
    assert describe(state, "nobody", COMPLETED) == pb.JobInfo()
    assert describe(state, "job-1", RUNNING) == pb.JobInfo()
    assert state.queued_count == 0
    assert not state.running_jobs()


def test_progress_is_taken_only_for_a_running_job_and_forgotten_with_its_end() -> None:
    state = state_of((1, job_at(1, QUEUED)))
    assert state.set_progress("job-1", pb.Progress(done=1)) is None
    state.apply([change(job_at(1, RUNNING), 1)])
    described = state.set_progress("job-1", pb.Progress(done=2))
    assert described is not None
    assert described.progress.done == 2
    assert describe(state, "job-1", RUNNING).progress.done == 2
    running = state.running_job("job-1")
    assert running is not None
    assert not running.HasField("progress"), "the job in the queue state must stay as it was committed"
    state.apply([change(job_at(1, COMPLETED), 1, RUNNING)])
    assert describe(state, "job-1") == STARTED_MEANWHILE
    assert state.set_progress("job-1", pb.Progress(done=3)) is None


def test_a_new_attempt_begins_without_the_progress_of_the_one_before() -> None:
    state = state_of((1, job_at(1, RUNNING)))
    state.set_progress("job-1", pb.Progress(done=7, total=9))
    state.apply([change(job_at(1, QUEUED), 1, RUNNING)])
    assert not describe(state, "job-1", RUNNING).HasField("progress")
    state.apply([change(job_at(1, RUNNING), 1)])
    assert not describe(state, "job-1", RUNNING).HasField("progress")


def test_an_update_within_a_status_reorders_the_queue_and_leaves_progress_and_gpus() -> None:
    state = state_of((1, job_at(1, QUEUED)), (2, job_at(2, QUEUED)), (3, job_at(3, RUNNING, gpus=("0",))))
    state.set_progress("job-3", pb.Progress(done=7))
    state.apply([change(job_at(2, QUEUED, priority=5), 2), change(job_at(3, RUNNING, priority=1, gpus=("0",)), 3, RUNNING)])
    assert state.queued_job_ids(10) == ["job-2", "job-1"]
    assert chosen_id(state, CAPACITY) == "job-2"
    assert describe(state, "job-1").position_in_queue == 1
    assert describe(state, "job-3", RUNNING).progress.done == 7
    assert state.free() == free_of("1", "2", "3", slots=5, without_gpus=2)


def test_running_jobs_hold_their_gpus_and_the_longest_running_comes_first() -> None:
    state = state_of(
        (1, job_at(1, RUNNING, gpus=("0", "2"), started=20)),
        (2, job_at(2, RUNNING, num_gpus=0, started=10)),
        (3, job_at(3, QUEUED)),
    )
    assert [job.job_id for job in state.running_jobs()] == ["job-2", "job-1"]
    assert state.free() == free_of("1", "3", slots=4, without_gpus=1)


def test_a_deleted_job_is_gone() -> None:
    state = state_of((1, job_at(1, QUEUED)))
    state.apply([change(job_at(1, pb.JOB_STATUS_CANCELLED), 1, deleted=True)])
    assert state.queued_job_ids(10) == []


def test_choosing_leaves_out_what_the_scheduler_has_already() -> None:
    state = state_of(*((number, job_at(number, QUEUED, num_gpus=number % 3)) for number in range(1, 7)))
    taken: dict[str, Resources] = {}
    while (chosen := state.choose(CAPACITY, 600.0, taken, 0.0)) is not None:
        taken[chosen.job.job_id] = Resources("local")
    assert list(taken) == [f"job-{number}" for number in range(1, 7)]


steps = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["queue", "run", "end", "delete"]), st.integers(-2, 2), st.integers(0, 3)),
    max_size=80,
)


@settings(deadline=None)
@given(steps)
def test_positions_equal_a_model_that_sorts_anew_after_every_change(script: list[tuple[int, str, int, int]]) -> None:
    state = QueueState(lambda: NODES, 0, ManualClock())
    model: dict[str, tuple[int, int]] = {}  # priority negated, sequence
    running: set[str] = set()
    fixed: dict[int, int] = {}
    for number, kind, priority, width in script:
        priority = fixed.setdefault(number, priority)
        job_id = f"job-{number}"
        model.pop(job_id, None)
        running.discard(job_id)
        if kind == "queue":
            model[job_id] = (-priority, number)
            state.apply([change(job_at(number, QUEUED, priority=priority, num_gpus=width), number)])
        elif kind == "run":
            running.add(job_id)
            state.apply([change(job_at(number, RUNNING, priority=priority, num_gpus=width), number)])
        else:
            state.apply([change(job_at(number, COMPLETED), number, RUNNING, deleted=kind == "delete")])
        expected = sorted(model, key=lambda name: model[name])
        assert state.queued_job_ids(1000) == expected
        assert state.queued_job_ids(2) == expected[:2]
        assert state.queued_count == len(expected)
        assert {job.job_id for job in state.running_jobs()} == running
        for position, name in enumerate(expected):
            assert describe(state, name).position_in_queue == position
        if expected:
            assert chosen_id(state, free_of(*DEVICES, slots=99, without_gpus=99)) == expected[0]


def test_what_was_queued_and_running_when_the_store_was_opened_is_loaded_in_order() -> None:
    state = QueueState(lambda: NODES, 0, ManualClock())
    rows = [QueuedRow("late", 3, 0, 1, 0, 0), QueuedRow("early", 1, 0, 2, 0, 0), QueuedRow("urgent", 4, 5, 0, 0, 0)]
    state.load(rows, [ListedJob(2, job_at(2, RUNNING, gpus=("1",)))])
    assert state.queued_job_ids(9) == ["urgent", "early", "late"]
    assert state.free().nodes[0].free == ("0", "2", "3")


def test_a_job_that_is_to_be_tried_again_waits_until_it_is_ready_and_lets_others_pass() -> None:
    clock = ManualClock()
    state = QueueState(lambda: NODES, 0, clock)
    state.load([QueuedRow("again", 1, 0, 1, 0, 5 * 10**9), QueuedRow("other", 2, 0, 1, 0, 0)], [])
    assert chosen_id(state, CAPACITY, now=clock.seconds) == "other"
    assert state.choose(CAPACITY, 600.0, {"other": Resources("local")}, clock.seconds) is None
    assert state.seconds_until_ready() == 5.0
    assert "tried again" in describe(state, "again").wait_reason
    clock.seconds = 5.0
    assert chosen_id(state, CAPACITY, now=clock.seconds) == "again"
    assert state.seconds_until_ready() is None


def test_only_what_fits_the_status_of_the_answer_is_added_to_it() -> None:
    state = state_of((1, job_at(1, QUEUED)))
    assert describe(state, "job-1", RUNNING) == pb.JobInfo()
    state.apply([change(job_at(1, RUNNING), 1)])
    state.set_progress("job-1", pb.Progress(done=2))
    assert describe(state, "job-1", QUEUED) == STARTED_MEANWHILE


def test_a_job_that_is_cancelled_is_not_chosen_whether_its_time_to_be_tried_again_has_come_or_not() -> None:
    for seconds in (0.0, 5.0):
        clock = ManualClock()
        state = QueueState(lambda: NODES, 0, clock)
        state.load([QueuedRow("job-1", 1, 0, 1, 0, 5 * 10**9)], [])
        clock.seconds = seconds
        state.choose(CAPACITY, 600.0, {"job-1": Resources("local")}, seconds)
        state.apply([change(job_at(1, pb.JOB_STATUS_CANCELLED), 1)])
        assert state.choose(CAPACITY, 600.0, {}, 5.0) is None
        assert state.seconds_until_ready() is None


def test_what_a_job_of_another_owner_is_called_depends_on_who_asks() -> None:
    wide, narrow = job_at(1, QUEUED, num_gpus=4, owner="alice"), job_at(2, QUEUED, owner="bob")
    state = state_of((1, wide), (2, narrow))
    state.apply([change(job_at(3, RUNNING, gpus=("0",)), 3)])
    assert state.choose(state.free(), 600.0, {}, 601.0) is None
    for _ in range(2):  # the second time from memory
        for names_others, name in ((True, "kept for job job-1"), (False, "kept for another job")):
            described = state.described(narrow, names_others=names_others)
            assert name in described.wait_reason
            serialized = state.describe("job-2", QUEUED, narrow.SerializeToString(), names_others=names_others)
            assert pb.JobInfo.FromString(serialized) == described


def test_the_queue_is_listed_of_all_owners_or_of_one() -> None:
    owners = ["alice", "bob", "", "alice"]
    state = state_of(*((number, job_at(number, QUEUED, owner=owner)) for number, owner in enumerate(owners)))
    state.load([QueuedRow(f"job-{number}", number, 0, 1, 0, 0, owner=owner) for number, owner in enumerate(owners)], [])
    assert state.queued_job_ids(10) == ["job-0", "job-1", "job-2", "job-3"]
    assert state.queued_job_ids(10, "alice") == ["job-0", "job-3"]
    assert state.queued_job_ids(1, "alice") == ["job-0"]
    assert state.queued_job_ids(10, "") == ["job-2"]


def test_a_job_behind_one_that_has_waited_long_says_for_whom_the_gpus_are_kept() -> None:
    wide, narrow = job_at(1, QUEUED, num_gpus=4), job_at(2, QUEUED)
    state = state_of((1, wide), (2, narrow))
    state.apply([change(job_at(3, RUNNING, gpus=("0",)), 3)])
    assert state.choose(state.free(), 600.0, {}, 601.0) is None
    assert "GPUs are kept for job job-1" in describe(state, "job-2").wait_reason
    state.apply([change(job_at(1, pb.JOB_STATUS_CANCELLED), 1)])
    assert chosen_id(state, state.free(), now=601.0) == "job-2"
    assert describe(state, "job-2").wait_reason == "about to start"


def test_a_job_that_needs_a_quarantined_gpu_says_so_and_keeps_the_others_from_nobody() -> None:
    quarantined: dict[str, str] = {}
    state = QueueState(lambda: nodes_of({"local": DEVICES}, quarantined), 0, ManualClock())
    wide, narrow = job_at(1, QUEUED, num_gpus=4), job_at(2, QUEUED)
    state.apply([change(job, number, pb.JOB_STATUS_UNSPECIFIED) for number, job in enumerate((wide, narrow), 1)])
    quarantined["3"] = "its memory is still in use"
    assert chosen_id(state, state.free(), 0.0, 9.0) == "job-2"
    assert "3 free, 1 quarantined, see GetQueue" in describe(state, "job-1").wait_reason
    quarantined.clear()
    assert chosen_id(state, state.free(), 0.0, 9.0) == "job-1"


# Jobs that follow another.


def follower(number: int, source: int, **fields: int) -> pb.JobInfo:
    job = job_at(number, QUEUED, **fields)
    job.cached_from = f"job-{source}"
    return job


def test_a_follower_is_counted_and_never_served() -> None:
    state = state_of((1, follower(1, 9, priority=9)), (2, job_at(2, QUEUED)), (3, job_at(3, RUNNING, gpus=("0",))))
    assert (state.queued_count, state.following_count, state.queued_job_ids(9)) == (2, 1, ["job-2"])
    assert describe(state, "job-2").position_in_queue == 0
    assert chosen_id(state, CAPACITY) == "job-2"
    assert state.choose(CAPACITY, 600.0, {"job-2": Resources("local")}, 0.0) is None
    assert state.position_for(9) == 0


def test_a_follower_says_whom_it_follows_and_has_no_position() -> None:
    job = follower(1, 9)
    for state in (state_of((1, job)), state_of(), state_of((1, job_at(1, QUEUED)))):  # the answer may be older or newer
        state.draining = True
        described = state.described(job)
        assert pb.JobInfo.FromString(state.describe(job.job_id, QUEUED, job.SerializeToString())) == described
        assert (described.cached_from, described.wait_reason) == ("job-9", "follows job job-9")
        assert not described.HasField("position_in_queue")


def test_bytes_that_look_like_the_field_of_followers_make_no_follower() -> None:
    state = state_of((1, job_at(1, QUEUED)))
    job = job_at(1, QUEUED)
    job.supersede_key = "x" * 210  # its length is written like the tag of `cached_from`
    assert b"\xd2\x01" in job.SerializeToString()
    described = state.described(job)
    assert described.HasField("position_in_queue")
    assert pb.JobInfo.FromString(state.describe(job.job_id, QUEUED, job.SerializeToString())) == described


def test_a_follower_that_runs_itself_takes_its_old_place() -> None:
    state = state_of(*((number, job_at(number, QUEUED)) for number in (1, 3)), (2, follower(2, 9)), (4, follower(4, 9)))
    generation = state.generation
    state.apply([Change(1, job_at(2, QUEUED), 2, QUEUED, None), Change(2, follower(4, 2), 4, QUEUED, None)])
    assert state.generation > generation
    assert state.queued_job_ids(9) == ["job-1", "job-2", "job-3"]
    assert (state.queued_count, state.following_count) == (4, 1)


def test_a_follower_that_ends_is_counted_no_more() -> None:
    state = state_of((1, follower(1, 9)), (2, follower(2, 9)), (3, follower(3, 9)))
    done = job_at(1, COMPLETED)
    done.cached_from = "job-9"
    state.apply([change(done, 1), change(job_at(2, pb.JOB_STATUS_CANCELLED), 2)])
    assert (state.queued_count, state.following_count) == (1, 1)


def test_a_source_whose_priority_is_raised_moves_in_the_queue_and_in_what_it_says() -> None:
    state = state_of((1, job_at(1, QUEUED)), (2, job_at(2, QUEUED)))
    assert describe(state, "job-2").position_in_queue == 1
    state.apply([Change(1, job_at(2, QUEUED, priority=4), 2, QUEUED, None)])
    assert state.queued_job_ids(9) == ["job-2", "job-1"]
    assert describe(state, "job-2").position_in_queue == 0


def test_followers_are_loaded_as_followers() -> None:
    state = QueueState(lambda: NODES, 0, ManualClock())
    state.load([QueuedRow("source", 1, 0, 1, 0, 0), QueuedRow("late", 2, 9, 1, 0, 0, "source")], [])
    assert (state.queued_job_ids(9), state.queued_count, state.following_count) == (["source"], 2, 1)
    assert chosen_id(state, CAPACITY) == "source"
