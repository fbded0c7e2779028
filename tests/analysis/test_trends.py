"""The trend of a run and the alarm when it falls, held against SciPy and against simulated runs."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy

from evalrpc.analysis.trends import MIN_ALARM_POINTS, Point, look, share_of_look, trend, watch

ALPHA = 0.05


def points(values: Sequence[float], sample_count: int = 1000) -> list[Point]:
    return [Point(100.0 * number, value, sample_count) for number, value in enumerate(values)]


def noisy(level: float, count: int, seed: int = 1) -> list[float]:
    return list(np.random.default_rng(seed).normal(level, 0.01, count))


def test_a_straight_line_has_its_slope_and_no_noise() -> None:
    found = trend(points([0.1, 0.2, 0.3, 0.4, 0.5]), ALPHA)
    assert found is not None
    assert found == pytest.approx((0.001, 0.001, 0.001, 0.0), abs=1e-12)


def test_two_wild_points_of_twenty_hardly_move_the_slope_and_the_noise() -> None:
    values = [0.3 + 0.001 * number for number in range(20)] + np.random.default_rng(1).normal(0, 0.005, 20)
    wild = values.copy()
    wild[[4, 15]] = 0.9, 0.0
    steady, shaken = trend(points(values), ALPHA), trend(points(wild), ALPHA)
    assert steady is not None
    assert shaken is not None
    assert steady.lower < shaken.slope < steady.upper
    assert shaken.noise < 2 * steady.noise


def test_the_interval_of_a_slope_has_its_level() -> None:
    drawn = (points(0.5 + np.random.default_rng(seed).standard_t(3, 12)) for seed in range(400))
    found = [trend(each, ALPHA) for each in drawn]
    assert 0.90 <= np.mean([each is not None and each.lower <= 0 <= each.upper for each in found]) <= 0.98


@pytest.mark.parametrize("values", [[0.5] * 4, []])
def test_too_few_points_have_neither_trend_nor_alarm(values: list[float]) -> None:
    assert trend(points(values), ALPHA) is None
    assert watch(points(values), ALPHA, 0) is None


def test_points_of_one_step_have_no_slope() -> None:
    assert trend([Point(5, value, 9) for value in noisy(0.5, 8)], ALPHA) is None


def test_steps_as_far_apart_as_numbers_are_have_no_slope_and_make_no_noise() -> None:
    assert trend([Point(step, step, 0) for step in (1.7e308, -1.7e308, 0, 1, 2)], ALPHA) is None, "and no warning in the log"


def test_a_look_is_the_smallest_of_students_p_values_times_their_number() -> None:
    values = np.array(noisy(0.6, 10))
    expected = [
        scipy.stats.ttest_ind(values[-after:], values[-after - before : -after], alternative="less").pvalue
        for after, before in ((2, 4), (2, 8), (4, 4))
    ]
    assert look(values, 0.0, 0.0).p_value == pytest.approx(min(1, 3 * min(expected)), rel=1e-9)


def test_looks_spend_no_more_than_alpha_however_many_there_are() -> None:
    assert sum(map(share_of_look, range(MIN_ALARM_POINTS, 100_000))) <= 0.8


def test_a_steady_run_raises_no_alarm_and_a_fall_does_when_two_points_show_it() -> None:
    steady = noisy(0.6, 20)
    calm = watch(points(steady), ALPHA, 0)
    assert calm is not None
    assert calm.fall is None
    assert calm.p_value > ALPHA
    fallen = watch(points([*steady, *noisy(0.5, 5, seed=2)]), ALPHA, 0)
    assert fallen is not None
    assert fallen.fall is not None
    assert fallen.fall.place == 21
    assert (fallen.fall.before, fallen.fall.after) == pytest.approx((0.6, 0.5), abs=0.02)
    assert fallen.p_value <= ALPHA


def test_an_alarm_stays_when_the_run_recovers() -> None:
    found = watch(points([*noisy(0.6, 10), *noisy(0.3, 4, seed=2), *noisy(0.7, 30, seed=3)]), ALPHA, 0)
    assert found is not None
    assert found.fall is not None
    assert found.fall.place in range(10, 14)


def test_a_fall_is_seen_of_a_run_that_has_risen_by_more() -> None:
    rising = np.linspace(0.2, 0.7, 50) + noisy(0, 50)
    found = watch(points([*rising, *noisy(0.55, 6, seed=2)]), ALPHA, 0)
    assert found is not None
    assert found.fall is not None


def test_one_bad_checkpoint_is_no_fall_of_a_run_of_twenty() -> None:
    found = watch(points([*noisy(0.6, 20), 0.0, *noisy(0.6, 20, seed=2)]), ALPHA, 0)
    assert found is not None
    assert found.fall is None


def test_a_fall_within_the_tolerance_is_none() -> None:
    values = points([*noisy(0.6, 20), *noisy(0.5, 5, seed=2)])
    found = watch(values, ALPHA, 0.12)
    assert found is not None
    assert found.fall is None


def test_a_single_document_of_a_run_without_noise_is_no_fall_but_many_are() -> None:
    one, many = (watch(points([0.62] * 40 + [0.62 - lost / 1000] * 2), ALPHA, 0) for lost in (1, 20))
    assert one is not None
    assert one.fall is None
    assert many is not None
    assert many.fall is not None


def test_without_noise_and_without_a_number_of_documents_nothing_can_be_tested() -> None:
    found = watch(points([0.62] * 10 + [0.1] * 4, sample_count=0), ALPHA, 0)
    assert found is not None
    assert found.fall is None


def test_points_count_in_the_order_of_their_steps_and_looks_in_that_of_their_arrival() -> None:
    """Newest first: the checkpoints of before are evaluated after those of the fall."""
    values = points([*noisy(0.6, 16), *noisy(0.4, 4, seed=2)])
    arrived = [*values[::-1][:4], *values[:16]]
    found = watch(arrived, ALPHA, 0)
    assert found is not None
    assert found.fall is not None
    assert arrived[found.fall.place].step < values[16].step
    assert found.fall.after < found.fall.before


def test_huge_and_tiny_values_make_no_trouble() -> None:
    for scale in (1e-300, 1e300):
        values = points([scale * value for value in noisy(0.6, 12)])
        assert trend(values, ALPHA)
        found = watch(values, ALPHA, 0)
        assert found is not None
        assert math.isfinite(found.p_value)


def test_over_many_looks_false_alarms_are_rare() -> None:
    """What benchmarks/falling.py measures, for 300 runs."""
    alarms = 0
    for seed in range(300):
        chances = np.random.default_rng(seed).beta(0.6, 0.4, 200)
        values = (np.random.default_rng((seed, 1)).random((60, 200)) < chances).mean(axis=1)
        spent = (look(values[:count], 1 / 200, 0).p_value / share_of_look(count) for count in range(MIN_ALARM_POINTS, 61))
        alarms += any(float(each) <= ALPHA for each in spent)
    assert alarms <= 15
