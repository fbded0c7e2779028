"""What owners use, and which of their jobs comes first."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config import QuotaSettings
from evalrpc.jobs.share_policy import URGENT_PRIORITY, SharePolicy
from evalrpc.scheduling.placement import QueuedJob
from evalrpc.scheduling.shares import Allowed, Holding, RunUse, Shares, Standing, quota_reason, service_order, within_quota

HALF_LIFE = 100.0
RESERVATION = 600.0
KEPT = "kept for job job-1, which needs 4 and has waited long"

attempts = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0, 500), st.floats(0, 300)), max_size=12
)  # GPUs, when it began, for how long


def use(gpus: int) -> RunUse:
    return RunUse(gpus, gpus or 1)


def expected_use(attempts: Sequence[tuple[int, float, float]], now: float) -> float:
    """The sum over the attempts, each second by itself: the integral, where the attempt has so many steps that it is one."""
    total = 0.0
    for gpus, began, seconds in attempts:
        end = min(began + seconds, now)
        if end > began:
            steps = 400
            width = (end - began) / steps
            middles = (began + (step + 0.5) * width for step in range(steps))
            total += (gpus or 1) * sum(width * 0.5 ** ((now - middle) / HALF_LIFE) for middle in middles)
    return total


@settings(deadline=None)
@given(attempts)
def test_use_is_each_second_of_each_gpu_halved_every_half_life(script: list[tuple[int, float, float]]) -> None:
    shares, now = Shares(HALF_LIFE), 600.0
    happenings = [(began, 0, gpus, began) for gpus, began, _ in script]
    happenings += [(began + seconds, 1, gpus, began) for gpus, began, seconds in script if began + seconds < now]
    for time, is_end, gpus, began in sorted(happenings):
        if is_end:
            shares.end("alice", use(gpus), began, time, time)
        else:
            shares.begin("alice", use(gpus), began, time)
    assert shares.used("alice", now) == pytest.approx(expected_use(script, now), rel=1e-3, abs=1e-3)


@settings(deadline=None)
@given(attempts)
def test_a_restart_changes_nothing(script: list[tuple[int, float, float]]) -> None:
    before, after, now = Shares(HALF_LIFE), Shares(HALF_LIFE), 900.0
    for gpus, began, _ in sorted(script, key=lambda each: each[1]):
        before.begin("alice", use(gpus), began, began)
    for gpus, began, seconds in sorted(script, key=lambda each: each[1] + each[2]):
        before.end("alice", use(gpus), began, began + seconds, max(500.0, began + seconds))
        after.restore("alice", gpus or 1, began, began + seconds, now)
    assert after.used("alice", now) == pytest.approx(before.used("alice", now), rel=1e-6, abs=1e-6)
    assert after.holding("alice") == before.holding("alice") == Holding()


def test_what_runs_counts_while_it_runs() -> None:
    shares = Shares(HALF_LIFE)
    shares.begin("alice", use(4), 0.0, 0.0)
    assert shares.used("alice", 0.0) == 0.0
    assert shares.used("alice", 1.0) == pytest.approx(4.0, rel=0.01)
    assert shares.used("alice", 1e6) == pytest.approx(4 * HALF_LIFE / math.log(2)), "what it can't exceed"
    assert shares.used("bob", 1.0) == 0.0


def test_a_clock_that_is_set_back_makes_no_use_negative() -> None:
    shares = Shares(HALF_LIFE)
    shares.begin("alice", use(1), 1000.0, 1000.0)
    shares.end("alice", use(1), 1000.0, 400.0, 400.0)
    assert shares.used("alice", 400.0) == 0.0
    shares.begin("alice", use(1), 400.0, 400.0)
    assert shares.used("alice", 500.0) == pytest.approx(expected_use([(1, 400.0, 100.0)], 500.0), rel=1e-3)
    assert shares.holding("alice") == Holding(1, 1, 1)


def test_the_order_of_service_is_urgency_then_use_per_weight_then_what_is_held_then_priority_then_arrival() -> None:
    policy = SharePolicy(weights={"heavy": 10.0})
    shares = Shares(HALF_LIFE)
    shares.begin("heavy", use(5), 0.0, 0.0)
    shares.begin("light", use(1), 0.0, 0.0)
    heavy, light, idle = (shares.standing(owner, policy, 50.0) for owner in ("heavy", "light", "idle"))
    assert idle < heavy < light, "half as much per weight"
    held = Standing(idle.used_per_weight, 1.0)
    places = [
        service_order("light", -(URGENT_PRIORITY + 1), 9, light),
        service_order("", -(URGENT_PRIORITY + 1), 8, idle),  # nobody signed in, so it is not urgent
        service_order("idle", -URGENT_PRIORITY, 7, idle),
        service_order("idle", 0, 5, idle),
        service_order("idle", 0, 6, idle),
        service_order("other", -9, 1, held),
        service_order("heavy", -9, 0, heavy),
    ]
    assert sorted(places) == places


def queued(sequence: int, num_gpus: int, created: float = 0.0) -> QueuedJob:
    return QueuedJob(0, sequence, f"job-{sequence}", num_gpus, created, owner="alice")


def test_no_more_jobs_start_than_the_quota_has_and_no_more_gpus_are_held() -> None:
    jobs = [queued(1, 4), queued(2, 2), queued(3, 0)]
    assert within_quota(jobs, Holding(9, 9, 9), QuotaSettings(), 0.0, RESERVATION) == Allowed(jobs)
    assert within_quota(jobs, Holding(2, 0, 2), QuotaSettings(max_running=2), 0.0, RESERVATION) == Allowed(())
    assert within_quota(jobs, Holding(1, 0, 1), QuotaSettings(max_running=2), 0.0, RESERVATION) == Allowed(jobs)
    quota = QuotaSettings(max_gpus=6)
    assert within_quota(jobs, Holding(1, 4, 4), quota, 0.0, RESERVATION) == Allowed([jobs[1], jobs[2]])
    assert within_quota(jobs, Holding(1, 6, 6), quota, 0.0, RESERVATION) == Allowed([jobs[2]])


def test_a_wide_job_that_has_waited_long_has_the_quota_kept_for_it_unless_it_exceeds_that_alone() -> None:
    jobs = [queued(1, 4), queued(2, 2), queued(3, 0)]
    allowed = within_quota(jobs, Holding(1, 4, 4), QuotaSettings(max_gpus=6), RESERVATION, RESERVATION)
    assert allowed == Allowed([jobs[2]], jobs[0])
    allowed = within_quota(jobs, Holding(), QuotaSettings(max_gpus=3), RESERVATION, RESERVATION)
    assert allowed == Allowed([jobs[1], jobs[2]])


@pytest.mark.parametrize(
    ("num_gpus", "holding", "quota", "kept_for", "reason"),
    [
        (1, Holding(4, 4, 4), QuotaSettings(max_running=4), None, "alice runs 4 of at most 4 jobs"),
        (1, Holding(1, 4, 4), QuotaSettings(max_running=1), None, "alice runs 1 of at most 1 job"),
        (2, Holding(6, 6, 6), QuotaSettings(max_gpus=6), None, "needs 2 GPUs; alice holds 6 of at most 6 GPUs"),
        (8, Holding(), QuotaSettings(max_gpus=6), None, "needs 8 GPUs, and alice may hold at most 6"),
        (0, Holding(6, 6, 6), QuotaSettings(max_gpus=6), None, ""),
        (2, Holding(4, 4, 4), QuotaSettings(max_gpus=6), None, ""),
        (2, Holding(9, 9, 9), QuotaSettings(), None, ""),
        (
            1,
            Holding(2, 2, 2),
            QuotaSettings(max_gpus=4),
            queued(1, 4),
            f"needs 1 GPU; alice holds 2 of at most 4 GPUs, and the others are {KEPT}",
        ),
    ],
)
def test_the_reason_says_in_figures_which_quota_it_is(
    num_gpus: int, holding: Holding, quota: QuotaSettings, kept_for: QueuedJob | None, reason: str
) -> None:
    assert quota_reason(queued(9, num_gpus), num_gpus, holding, quota, kept_for) == reason
