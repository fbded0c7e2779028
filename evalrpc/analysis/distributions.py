"""The distributions that tests need, from scipy.special: scipy.stats takes several times as long to import as everything else
that a comparison loads. Pure."""

import math

from scipy.special import bdtr, betainc, betaincc, betainccinv, betaincinv, ndtr, ndtri, stdtr, stdtrit


def normal_quantile(probability: float) -> float:
    """Return what a normal variable is below with this probability."""
    return float(ndtri(probability))


def normal_tail(value: float) -> float:
    """Return the probability that a normal variable is above a value."""
    return float(ndtr(-value))


def t_quantile(probability: float, freedom: float) -> float:
    """Return what a variable with Student's distribution is below with this probability; with infinite degrees of freedom, a
    normal one."""
    return normal_quantile(probability) if math.isinf(freedom) else float(stdtrit(freedom, probability))


def t_tail(value: float, freedom: float) -> float:
    """Return the probability that a variable with Student's distribution is above a value."""
    return normal_tail(value) if math.isinf(freedom) else float(stdtr(freedom, -value))


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return what a variable with the beta distribution is below with this probability."""
    return float(betaincinv(a, b, probability))


def beta_upper_quantile(probability: float, a: float, b: float) -> float:
    """Return what a variable with the beta distribution is above with this probability."""
    return float(betainccinv(a, b, probability))


def beta_above(value: float, a: float, b: float) -> float:
    """Return the probability that a variable with the beta distribution is above a value."""
    return float(betaincc(a, b, value))


def beta_below(value: float, a: float, b: float) -> float:
    """Return the probability that a variable with the beta distribution is below a value."""
    return float(betainc(a, b, value))


def sign_test(count: int, total: int) -> float:
    """Return how probable it is that of so many fair coins, a number shows heads that is at least as far from half of them."""
    fewer = min(count, total - count)
    return 1.0 if 2 * fewer == total else min(1.0, 2 * float(bdtr(fewer, total, 0.5)))
