"""The alarm for a run that falls, on simulated runs: false alarms over 200 looks, and how soon it sees a fall."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.report import Row, at_most
from benchmarks.scale import Scale
from evalrpc.analysis.trends import MIN_ALARM_POINTS, look, share_of_look

RUNS: Final = 2000
LOOKS: Final = 200
ALPHA: Final = 0.05

_NOISE: Final = 0.01
_FALL_RUNS: Final = 200
_PATIENCE: Final = 40

Draw = Callable[[np.random.Generator], NDArray[np.float64]]


class _Runs(NamedTuple):
    """Runs that can be simulated, and never get worse."""

    name: str
    draw: Draw
    """Draw the values of all looks at one run."""
    sample_count: int
    claims: bool = True
    """Whether the alarm claims its level here; docs/statistics.md says where it does not."""


def alarms(scale: Scale) -> Iterator[Row]:
    """False alarms of runs that never get worse, beside a t-test at each look; then falls of several sizes."""
    count = RUNS if scale.name == "full" else RUNS // 10
    bound = 100 * ALPHA + (0 if scale.name == "full" else 300 * (ALPHA * (1 - ALPHA) / count) ** 0.5)
    for runs in _all_runs():
        values = np.stack([runs.draw(np.random.default_rng((2030, n))) for n in range(count)])
        ours = 100 * float(np.mean(_first_alarms(values, 1 / runs.sample_count) <= LOOKS))
        naive = 100 * float(np.mean(_has_naive_alarm(values, 1 / runs.sample_count)))
        note = f"{count} runs; yardstick: a t-test at {ALPHA:g} of the newest value at each look"
        aim = at_most(bound) if runs.claims else None
        yield Row(
            f"false alarms in {LOOKS} looks: {runs.name}", "%", ours, naive, ours / naive if naive else None, aim=aim, note=note
        )
    for before in (10, 100):
        for size in (2, 3, 5, 10):
            yield _power(before, size)


def _first_alarms(values: NDArray[np.float64], least_noise: float) -> NDArray[np.int64]:
    """Return for each run after how many points the alarm is raised; more than LOOKS if never."""
    first = np.full(len(values), LOOKS + 1)
    for count in range(MIN_ALARM_POINTS, values.shape[1] + 1):
        is_alarm = look(values[:, :count], least_noise, 0.0).p_value <= ALPHA * share_of_look(count)
        first[is_alarm] = np.minimum(first[is_alarm], count)
    return first


def _has_naive_alarm(values: NDArray[np.float64], least_noise: float) -> NDArray[np.bool_]:
    """Return for each run whether any newest value is significantly lower than all those before it."""
    has_alarm = np.zeros(len(values), np.bool_)
    for count in range(MIN_ALARM_POINTS, values.shape[1] + 1):
        before, newest = values[:, : count - 1], values[:, count - 1]
        noise = np.maximum(before.std(axis=1, ddof=1), least_noise)
        statistic = (newest - before.mean(axis=1)) / (noise * np.sqrt(1 + 1 / (count - 1)))
        has_alarm |= stats.t.cdf(statistic, count - 2) <= ALPHA
    return has_alarm


def _all_runs() -> Iterator[_Runs]:
    yield _Runs("500 documents, answered anew", _answered_anew(500), 500)
    yield _Runs("50 documents, answered anew", _answered_anew(50), 50)
    yield _Runs("1,000 documents chosen anew", lambda dice: dice.binomial(1000, 0.6, LOOKS) / 1000, 1000)
    yield _Runs("100 documents chosen anew, 97 % right", lambda dice: dice.binomial(100, 0.97, LOOKS) / 100, 100)
    yield _Runs("one answer in 500 changes now and then", _flickering(500), 500)
    yield _Runs("normal noise between checkpoints", lambda dice: 0.6 + dice.normal(0, _NOISE, LOOKS), 1000)
    yield _Runs("rising to a plateau", lambda dice: _rising(LOOKS) + dice.normal(0, _NOISE, LOOKS), 1000)
    heavy = "heavy tails between checkpoints (t with 5 degrees of freedom): not claimed"
    yield _Runs(heavy, lambda dice: 0.6 + _NOISE * dice.standard_t(5, LOOKS), 1000, claims=False)
    yield _Runs("noise that correlates from look to look by 0.3: not claimed", _correlated(0.3), 1000, claims=False)


def _answered_anew(count: int) -> Draw:
    """The same documents at each look, easy and hard ones, whose answers are drawn again."""

    def draw(dice: np.random.Generator) -> NDArray[np.float64]:
        chances = dice.beta(0.6, 0.4, count)
        return np.asarray((dice.random((LOOKS, count)) < chances).mean(axis=1), np.float64)

    return draw


def _flickering(count: int) -> Draw:
    """Greedy answers: nearly always the same, but for a few at the edge."""
    return lambda dice: 0.6 + (dice.binomial(2, 0.05, LOOKS) - dice.binomial(2, 0.05, LOOKS)) / count


def _rising(count: int) -> NDArray[np.float64]:
    return 0.6 - 0.4 * np.exp(-np.arange(count) / 30)


def _correlated(correlation: float) -> Draw:
    def draw(dice: np.random.Generator) -> NDArray[np.float64]:
        noise = dice.normal(0, _NOISE, LOOKS)
        noise[1:] *= (1 - correlation**2) ** 0.5
        for n in range(1, LOOKS):
            noise[n] += correlation * noise[n - 1]
        return np.asarray(0.6 + noise, np.float64)

    return draw


def _power(before: int, size: int) -> Row:
    """How many falls are seen, of a run that was steady and then falls for good, by so many deviations of its noise."""
    level = np.repeat((0.6, 0.6 - size * _NOISE), (before, _PATIENCE))
    values = np.stack([level + np.random.default_rng((2031, n)).normal(0, _NOISE, len(level)) for n in range(_FALL_RUNS)])
    delays = _first_alarms(values, 1 / 1000) - before
    delays = delays[delays > 0]  # the others had a false alarm before
    seen = 100 * float(np.mean(delays <= _PATIENCE))
    note = f"{len(delays)} runs" + (f"; median: after {median(delays):g} looks" if seen > 50 else "")
    return Row(f"falls by {size} deviations seen, after {before} looks", "%", seen, note=note)
