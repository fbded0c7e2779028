"""The tests of CompareJobs on simulated pairs of models: false alarms, coverage of intervals, power beside the exact one."""

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.report import Row, at_most
from benchmarks.scale import Scale
from evalrpc.analysis.clusters import clustered_t
from evalrpc.analysis.power import DEFAULT_POWER, Design, required_pairs
from evalrpc.analysis.significance import Difference, mcnemar, paired_bootstrap, unpaired_z

PAIRS: Final = 2000
ALPHA: Final = 0.05

_DIFFERING: Final = 0.3

Test = Callable[[NDArray[np.float64]], Difference]


class _Models(NamedTuple):
    """Pairs of models that can be simulated."""

    name: str
    draw: Callable[[np.random.Generator, float], NDArray[np.float64]]
    """Draw the differences of all samples between two models, for a gain."""
    test: Test
    gain: float
    """For the coverage of intervals: parameter of `draw`."""
    difference: float
    """The true mean difference with this gain."""
    naive: Test | None = None
    """What is often used instead."""
    naive_name: str = "without clusters"
    claims: bool = True
    """Whether the method claims its level here; docs/statistics.md says where it does not."""


def methods(scale: Scale) -> Iterator[Row]:
    """False alarms and coverage of every method, on data of many kinds; then power."""
    pairs = PAIRS if scale.name == "full" else PAIRS // 10
    bound = 100 * ALPHA + (1 if scale.name == "full" else 300 * (ALPHA * (1 - ALPHA) / pairs) ** 0.5)
    for models in _all_models():
        equal = [_Outcome(models, np.random.default_rng((2026, n)), 0.0) for n in range(pairs)]
        alarms = 100 * float(np.mean([outcome.is_claim for outcome in equal]))
        naive = None if models.naive is None else 100 * float(np.mean([outcome.is_naive_claim for outcome in equal]))
        note = f"{pairs} pairs" + (f"; yardstick: {models.naive_name}" if naive is not None else "")
        aim = at_most(bound) if models.claims else None
        ratio = None if naive is None else alarms / naive
        yield Row(f"false alarms: {models.name}", "%", alarms, naive, ratio, aim=aim, note=note)
        found = (_Outcome(models, np.random.default_rng((2027, n)), models.gain) for n in range(pairs))
        missed = 100 * np.mean([not each.covers(models.difference) for each in found])
        yield Row(f"intervals that miss: {models.name}", "%", float(missed), 100 * ALPHA, aim=aim, note=f"{pairs} pairs")
    yield from _power(pairs)


class _Outcome:
    """The test of one simulated pair of models."""

    def __init__(self, models: _Models, dice: np.random.Generator, gain: float) -> None:
        differences = models.draw(dice, gain)
        self._found = models.test(differences)
        self.is_claim = _claims(self._found)
        self.is_naive_claim = models.naive is not None and _claims(models.naive(differences))

    def covers(self, truth: float) -> bool:
        return self._found.lower <= truth <= self._found.upper


def _claims(found: Difference) -> bool:
    """Return whether the verdict would be BETTER or WORSE."""
    return found.p_value < ALPHA and (found.lower > 0 or found.upper < 0)


def _all_models() -> Iterator[_Models]:
    for count, differing in ((20, 0.3), (100, 0.3), (1000, 0.1), (1000, 0.02)):
        name = f"McNemar, {count} samples, {100 * differing:g} % differ"
        yield _Models(name, _binary(count, differing), _mcnemar, 0.3, 0.3 * differing)
    for count in (15, 50, 200):
        yield _Models(f"bootstrap, {count} samples, normal scores", _normal(count), _bootstrap, 0.2, 0.2)
        name = f"bootstrap, {count} samples, scores of five steps with ties"
        yield _Models(name, _stepped(count), _bootstrap, 0.3, _STEPPED_MEAN, claims=count >= 50)
        name = f"bootstrap, {count} samples, skewed scores"
        yield _Models(name, _skewed(count), _bootstrap, 1.1, _SKEWED_MEAN, claims=count > 50)
    for count, size, correlation in ((100, 10, 0.0), (100, 10, 0.06), (100, 10, 0.12), (57, 250, 0.01), (20, 50, 0.05)):
        yield _clustered(np.full(count, size), correlation, f"{count} clusters of {size}")
    for count, mean, correlation in ((100, 10, 0.06), (57, 250, 0.01), (20, 50, 0.05)):
        sizes = np.maximum(1, np.random.default_rng(count).lognormal(math.log(mean), 1.0, count)).astype(np.int64)
        unequal = _clustered(sizes, correlation, f"{count} clusters of {sizes.min()} to {sizes.max()}")
        yield unequal._replace(naive=_cr1(sizes), naive_name="CR1, clusters - 1")
    for count, correlation in ((10, 0.05), (5, 0.05), (5, 0.2)):
        yield _clustered(np.full(count, 50), correlation, f"{count} clusters of 50", claims=correlation < 0.2)
    yield _Models("z-test of two samples of 100", _two_samples(100), _two_sample_z, 0.2, 0.2)


def _binary(count: int, differing: float) -> Callable[[np.random.Generator, float], NDArray[np.float64]]:
    def draw(dice: np.random.Generator, gain: float) -> NDArray[np.float64]:
        flips = dice.random(count) < differing
        return np.where(flips, np.where(dice.random(count) < (1 + gain) / 2, 1.0, -1.0), 0.0)

    return draw


def _normal(count: int) -> Callable[[np.random.Generator, float], NDArray[np.float64]]:
    return lambda dice, gain: dice.normal(gain, 1.0, count)


_STEPPED_MEAN: Final = float(np.subtract(*(np.sum(stats.binom.pmf(range(5), 4, p) * np.arange(5) / 4) for p in (0.8, 0.5))))


def _stepped(count: int) -> Callable[[np.random.Generator, float], NDArray[np.float64]]:
    """Scores of 0, 1/4, 1/2, 3/4 and 1; a quarter of the samples has the same score in both."""

    def draw(dice: np.random.Generator, gain: float) -> NDArray[np.float64]:
        ours, theirs = dice.binomial(4, 0.5, count) / 4, dice.binomial(4, 0.5 + gain, count) / 4
        return np.asarray(theirs - ours, np.float64)

    return draw


_SKEWED_MEAN: Final = 0.1 * math.exp((0.5**2 + 0.7**2) / 2)


def _skewed(count: int) -> Callable[[np.random.Generator, float], NDArray[np.float64]]:
    """Log-normal scores with a difficulty in common; a gain multiplies."""

    def draw(dice: np.random.Generator, gain: float) -> NDArray[np.float64]:
        common = dice.normal(0, 0.5, count)
        ours, theirs = (np.exp(common + dice.normal(0, 0.7, count)) for _ in range(2))
        return np.asarray((gain or 1.0) * theirs - ours, np.float64)

    return draw


def _two_samples(count: int) -> Callable[[np.random.Generator, float], NDArray[np.float64]]:
    return lambda dice, gain: np.concatenate([dice.normal(0, 1, count), dice.normal(gain, 1, count)])


def _clustered(sizes: NDArray[np.int64], correlation: float, name: str, *, claims: bool = True) -> _Models:
    """Pairs of 0 and 1, which differ or not independently; which model is right depends on the cluster."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)

    def draw(dice: np.random.Generator, gain: float) -> NDArray[np.float64]:
        chances = np.full(len(sizes), (1 + gain) / 2)
        if correlation:
            spread = _DIFFERING / correlation - 1
            chances = dice.beta(spread * (1 + gain) / 2, spread * (1 - gain) / 2, len(sizes))
        flips = dice.random(len(clusters)) < _DIFFERING
        return np.where(flips, np.where(dice.random(len(clusters)) < chances[clusters], 1.0, -1.0), 0.0)

    def test(differences: NDArray[np.float64]) -> Difference:
        return clustered_t(differences, clusters, ALPHA, scale=1.0).difference

    title = f"clustered t, {name}, correlation {correlation:g}"
    return _Models(title, draw, test, 0.2, 0.2 * _DIFFERING, naive=_mcnemar, claims=claims)


def _cr1(sizes: NDArray[np.int64]) -> Test:
    """The usual cluster-robust t-test."""
    clusters, count = np.repeat(np.arange(len(sizes)), sizes), len(sizes)

    def test(differences: NDArray[np.float64]) -> Difference:
        mean = float(differences.mean())
        sums = np.bincount(clusters, weights=differences - mean)
        error = math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / len(differences)
        reach = float(stats.t.isf(ALPHA / 2, count - 1)) * error
        p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
        return Difference(mean, mean - reach, mean + reach, p_value, error, math.nan)

    return test


def _mcnemar(differences: NDArray[np.float64]) -> Difference:
    return mcnemar(int(np.sum(differences < 0)), int(np.sum(differences > 0)), len(differences), ALPHA)


def _bootstrap(differences: NDArray[np.float64]) -> Difference:
    return paired_bootstrap(differences, ALPHA)


def _two_sample_z(values: NDArray[np.float64]) -> Difference:
    ours, theirs = np.split(values, 2)
    error = math.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / math.sqrt(len(ours))
    return unpaired_z(float(theirs.mean() - ours.mean()), error, ALPHA)


def _power(pairs: int) -> Iterator[Row]:
    """Power at the difference that the plan is for, simulated and exact."""
    note = f"{pairs} pairs; planned: {100 * DEFAULT_POWER:g} %; yardstick: exact"
    for difference in (0.02, 0.05):
        count = math.ceil(required_pairs(0.1, difference, Design(ALPHA, DEFAULT_POWER)))
        draw = _binary(count, 0.1)
        seen = (_claims(_mcnemar(draw(np.random.default_rng((2028, n)), difference / 0.1))) for n in range(pairs))
        ours, exact = 100 * float(np.mean(list(seen))), 100 * _exact_power(count, 0.1, difference)
        yield Row(f"power: McNemar, {difference:g} of {count} samples", "%", ours, exact, ours / exact, note=note)
    count, gain = 50, 0.4
    draw = _normal(count)
    seen = (_claims(_bootstrap(draw(np.random.default_rng((2029, n)), gain))) for n in range(pairs))
    limit, shift = stats.t.isf(ALPHA / 2, count - 1), gain * math.sqrt(count)
    exact = 100 * float(stats.nct.sf(limit, count - 1, shift) + stats.nct.cdf(-limit, count - 1, shift))
    ours = 100 * float(np.mean(list(seen)))
    note = f"{pairs} pairs; yardstick: exact, of the t-test"
    yield Row(f"power: bootstrap, {gain:g} deviations, {count} samples", "%", ours, exact, ours / exact, note=note)


def _exact_power(count: int, differing: float, difference: float) -> float:
    """Return the power of McNemar's exact test, summed over the number of pairs that differ."""
    numbers = np.arange(count + 1)
    limits = stats.binom.ppf(ALPHA / 2, numbers, 0.5)
    limits -= stats.binom.cdf(limits, numbers, 0.5) > ALPHA / 2
    chance = (1 + difference / differing) / 2
    hits = stats.binom.cdf(limits, numbers, chance) + stats.binom.sf(numbers - limits - 1, numbers, chance)
    return float(np.sum(stats.binom.pmf(numbers, count, differing) * hits))
