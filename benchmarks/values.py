"""The intervals of single values, as thresholds are held against them, on simulated jobs."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, at_most
from benchmarks.scale import Scale
from evalrpc.analysis.evidence import Value
from evalrpc.analysis.sample_values import SampleValues, nothing_said
from evalrpc.analysis.significance import one_sample_z
from evalrpc.analysis.value_tests import value_test

JOBS: Final = 2000
ALPHA: Final = 0.05

_NONE: Final = np.empty(0, np.int64)


class _Job(NamedTuple):
    """Jobs that can be simulated."""

    name: str
    draw: Callable[[np.random.Generator], NDArray[np.float64]]
    truth: float
    clusters: NDArray[np.int64] = _NONE
    claims: bool = True
    """Whether the method claims its level here; docs/statistics.md says where it does not."""


def values(scale: Scale) -> Iterator[Row]:
    """How many intervals miss the true value, and how many thresholds at the true value pass; beside the z-test of the standard
    error."""
    count = JOBS if scale.name == "full" else JOBS // 10
    bound = 100 * ALPHA + (1 if scale.name == "full" else 300 * (ALPHA * (1 - ALPHA) / count) ** 0.5)
    for job in _all_jobs():
        drawn = [job.draw(np.random.default_rng((2032, n))) for n in range(count)]
        ours = [_interval(samples, job) for samples in drawn]
        naive = [_z_interval(samples, job) for samples in drawn]
        figures = (
            ("values: intervals that miss", _misses, bound),
            ("values: thresholds at the truth that pass", _passes, bound / 2 + 0.5),
        )
        for name, counts, aim in figures:
            found, yardstick = (100 * float(np.mean([counts(each, job.truth) for each in some])) for some in (ours, naive))
            ratio = found / yardstick if yardstick else None
            note = f"{count} jobs; yardstick: z-test of the standard error"
            yield Row(f"{name}: {job.name}", "%", found, yardstick, ratio, aim=at_most(aim) if job.claims else None, note=note)


def _interval(samples: NDArray[np.float64], job: _Job) -> Value | None:
    found = SampleValues(np.arange(len(samples)), samples, nothing_said(len(samples)), job.clusters)
    tested = value_test(float(samples.mean()), found, job.truth, ALPHA)
    return tested.found if tested else None


def _z_interval(samples: NDArray[np.float64], job: _Job) -> Value | None:
    error = float(samples.std(ddof=1)) / len(samples) ** 0.5
    return one_sample_z(float(samples.mean()), error, job.truth, ALPHA) if error else None


def _misses(found: Value | None, truth: float) -> bool:
    return found is not None and not found.lower <= truth <= found.upper


def _passes(found: Value | None, truth: float) -> bool:
    return found is not None and found.lower > truth


def _all_jobs() -> Iterator[_Job]:
    for count, share in ((20, 0.9), (100, 0.7), (100, 0.98), (1000, 0.7), (1000, 0.995)):
        yield _Job(f"{count} samples, {100 * share:g} % right", _right(count, share), share)
    for clusters, size, share, correlation in (
        *((100, 10, 0.7, 0.06), (57, 250, 0.9, 0.05), (20, 50, 0.7, 0.05)),
        *((20, 50, 0.97, 0.05), (10, 50, 0.97, 0.2)),
    ):
        name = f"{clusters} clusters of {size}, {100 * share:g} % right, correlation {correlation:g}"
        yield _clustered(name, clusters, size, share, correlation, claims=share < 0.97)
    yield _Job("15 samples, normal scores", lambda dice: dice.normal(0.6, 0.2, 15), 0.6)
    yield _Job("50 samples, scores of five steps", lambda dice: dice.binomial(4, 0.6, 50) / 4, 0.6)
    yield _Job("200 samples, skewed scores", lambda dice: dice.lognormal(0.0, 0.7, 200), float(np.exp(0.245)), claims=False)
    yield _Job("15 samples, scores of five steps near 1", lambda dice: dice.binomial(4, 0.95, 15) / 4, 0.95, claims=False)


def _right(count: int, share: float) -> Callable[[np.random.Generator], NDArray[np.float64]]:
    return lambda dice: np.asarray(dice.random(count) < share, np.float64)


def _clustered(name: str, clusters: int, size: int, share: float, correlation: float, *, claims: bool = True) -> _Job:
    spread = 1 / correlation - 1

    def draw(dice: np.random.Generator) -> NDArray[np.float64]:
        chances = dice.beta(share * spread, (1 - share) * spread, clusters).repeat(size)
        return np.asarray(dice.random(clusters * size) < chances, np.float64)

    return _Job(name, draw, share, np.repeat(np.arange(1, clusters + 1), size), claims)
