"""The distributions, against those of scipy.stats."""

import math
import subprocess
import sys

import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.analysis.distributions import (
    beta_above,
    beta_below,
    beta_quantile,
    beta_upper_quantile,
    normal_quantile,
    normal_tail,
    sign_test,
    t_quantile,
    t_tail,
)

PROBABILITIES = st.floats(1e-9, 1 - 1e-9)
VALUES = st.floats(-30, 30)
FREEDOMS = st.floats(0.5, 1e6) | st.just(math.inf)


@given(PROBABILITIES, VALUES, FREEDOMS)
def test_quantiles_and_tails_are_those_of_scipy(probability: float, value: float, freedom: float) -> None:
    close = {"rel": 1e-9, "abs": 1e-12}
    assert normal_quantile(probability) == pytest.approx(scipy.stats.norm.ppf(probability), **close)
    assert normal_tail(value) == pytest.approx(scipy.stats.norm.sf(value), **close)
    assert t_quantile(probability, freedom) == pytest.approx(scipy.stats.t.ppf(probability, freedom), **close)
    assert t_tail(value, freedom) == pytest.approx(scipy.stats.t.sf(value, freedom), **close)


@given(st.floats(0.001, 0.999), st.integers(1, 2000), st.integers(1, 2000))
def test_the_beta_distribution_is_that_of_scipy(part: float, a: int, b: int) -> None:
    assert beta_quantile(part, a, b) == pytest.approx(scipy.stats.beta.ppf(part, a, b), rel=1e-9)
    assert beta_upper_quantile(part, a, b) == pytest.approx(scipy.stats.beta.isf(part, a, b), rel=1e-9)
    assert beta_below(part, a, b) == pytest.approx(scipy.stats.beta.cdf(part, a, b), rel=1e-9, abs=1e-250)
    assert beta_above(part, a, b) == pytest.approx(scipy.stats.beta.sf(part, a, b), rel=1e-9, abs=1e-250)


@given(st.data(), st.integers(1, 5000))
def test_the_sign_test_is_the_binomial_test_of_scipy(data: st.DataObject, total: int) -> None:
    count = data.draw(st.integers(0, total))
    assert sign_test(count, total) == pytest.approx(scipy.stats.binomtest(count, total).pvalue, rel=1e-8, abs=1e-100)


def test_of_no_coins_nothing_is_rare() -> None:
    assert sign_test(0, 0) == 1


def test_what_takes_long_to_import_is_not_loaded_for_a_comparison() -> None:
    program = "import sys, evalrpc.analysis.comparison; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", program), check=False).returncode == 0
