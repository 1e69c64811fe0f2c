"""Intervals and p-values against an independent library, integrals, the normal distribution, and coverage."""

from __future__ import annotations

from math import exp, inf, log, pi, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.stats.moments import Effect
from outrider_control.core.stats.sequences import (
    fixed_interval,
    fixed_lower_bound,
    interval,
    lower_bound,
    tuned_rho2,
    upper_bound,
)

NOTHING = Effect(0.5, 0.5, 0.0, 0.0, 100)
effects = st.builds(
    lambda difference, variance, units: Effect(0.5, 0.5 + difference, difference, variance, units),
    st.floats(-1.0, 1.0),
    st.floats(1e-8, 1.0),
    st.integers(4, 10**7),
)
alphas = st.sampled_from([0.001, 0.01, 0.05, 0.2])


def width(effect: Effect, alpha: float, expected: int) -> float:
    found = interval(effect, alpha, expected)
    assert found is not None
    return (found.high - found.low) / 2.0


# -- against others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("expected", [500, 20_000])
def test_agrees_with_ville(alpha: float, expected: int) -> None:
    """Of the mean of one sequence: N var(D) is then the variance of an observation."""
    ville = pytest.importorskip("ville")
    values = np.random.default_rng(1).lognormal(0.0, 1.0, 5_000)
    theirs = ville.AsymptoticCS(alpha=alpha, t_opt=expected, min_samples=2)
    theirs.rho_ = 1.0 / tuned_rho2(alpha, expected)  # theirs is a precision
    theirs.fit(values)
    for n in (2, 10, 100, 1_000, 5_000):
        mean, variance = values[:n].mean(), values[:n].var(ddof=1) / n
        found = interval(Effect(0.0, mean, mean, variance, n), alpha, expected)
        assert found is not None
        assert found.low == pytest.approx(theirs.lower_[n - 1], rel=1e-6)
        assert found.high == pytest.approx(theirs.upper_[n - 1], rel=1e-6)


@pytest.mark.parametrize("expected", [500, 20_000])
def test_is_tuned_as_ville_is(expected: int) -> None:
    """Theirs is the exact optimum; ours the approximation of equation 10, a hair away in width."""
    ville = pytest.importorskip("ville")
    best = float(ville.best_rho(expected, 0.05))
    assert 1.0 / tuned_rho2(0.05, expected) == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize("n", [50, 1_000, 20_000])
def test_one_sided_bound_is_hardly_wider_than_villes(n: int) -> None:
    """Theirs solves for the boundary of the half-normal mixture; ours is a closed form above it."""
    ville = pytest.importorskip("ville")
    precision = 1.0 / tuned_rho2(0.1, 10_000)
    theirs = float(ville.normal_mixture(n, 0.05, precision, one_sided=True)) / n
    bound = lower_bound(Effect(0.0, 0.0, 0.0, 1.0 / n, n), 0.05, 10_000)
    assert bound is not None
    assert theirs <= -bound * (1.0 + 1e-9)
    assert -bound <= 1.1 * theirs


@pytest.mark.parametrize(
    ("difference", "variance", "units"), [(0.02, 1e-4, 5_000), (0.0, 1e-3, 100), (-0.05, 2e-4, 9_000)]
)
def test_p_value_is_one_over_the_mixture(difference: float, variance: float, units: int) -> None:
    """The martingale exp(l S - l^2 V / 2) mixed over l from N(0, rho^2), by numeric integration: S = N D, V in units
    in which an observation's variance is 1."""
    integrate = pytest.importorskip("scipy.integrate")
    alpha, expected = 0.05, 10_000
    rho = sqrt(tuned_rho2(alpha, expected))
    deviation = sqrt(variance * units)
    s, v = units * difference / deviation, float(units)

    def integrand(level: float) -> float:
        return exp(level * s - level * level * v / 2.0 - level * level / (2.0 * rho * rho)) / (rho * sqrt(2.0 * pi))

    peak = s / (v + 1.0 / rho**2)
    spread = 12.0 / sqrt(v + 1.0 / rho**2)
    mixture, _ = integrate.quad(integrand, peak - spread, peak + spread, limit=200)
    found = interval(Effect(0.5, 0.5 + difference, difference, variance, units), alpha, expected)
    assert found is not None
    assert found.p_value == pytest.approx(min(1.0, 1.0 / mixture), rel=1e-6)


def test_one_sided_bound_is_that_of_the_paper() -> None:
    """Where it bounds, half a normal's mixture is at most 1 / alpha (proposition B.1): written down once more."""
    effect, alpha, expected = Effect(0.5, 0.52, 0.02, 1e-4, 5_000), 0.025, 10_000
    r = (-2.0 * log(2.0 * alpha) + log(1.0 - 2.0 * log(2.0 * alpha))) / expected
    t, deviation = 5_000.0, sqrt(1e-4 * 5_000)
    wanted = 0.02 - deviation * sqrt((2.0 * (t * r + 1.0) / (t * t * r)) * log(1.0 + sqrt(t * r + 1.0) / (2.0 * alpha)))
    assert lower_bound(effect, alpha, expected) == pytest.approx(wanted)


@given(effects, alphas)
def test_fixed_is_the_normal_distributions(effect: Effect, alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = fixed_interval(effect, alpha)
    assert found is not None
    low, high = stats.norm.interval(1.0 - alpha, loc=effect.difference, scale=sqrt(effect.variance))
    assert (found.low, found.high) == pytest.approx((low, high))
    wanted = 2.0 * stats.norm.sf(abs(effect.difference) / sqrt(effect.variance))
    assert found.p_value == pytest.approx(wanted, abs=1e-9)
    one_sided = fixed_lower_bound(effect, alpha)
    assert one_sided == pytest.approx(effect.difference - stats.norm.ppf(1.0 - alpha) * sqrt(effect.variance))


# -- what always holds -----------------------------------------------------------------------------------------------


@given(effects, alphas, st.integers(10, 10**6))
def test_p_value_and_interval_say_the_same(effect: Effect, alpha: float, expected: int) -> None:
    found = interval(effect, alpha, expected)
    assert found is not None
    assert found.p_value is not None
    if abs(found.p_value - alpha) > 1e-9:
        assert (found.p_value < alpha) == (found.low > 0.0 or found.high < 0.0)
    assert 0.0 <= found.p_value <= 1.0
    assert found.low <= effect.difference <= found.high


@given(effects, st.integers(10, 10**6))
def test_is_wider_than_one_look_and_the_more_so_the_surer(effect: Effect, expected: int) -> None:
    one_look = fixed_interval(effect, 0.05)
    assert one_look is not None
    assert width(effect, 0.05, expected) > (one_look.high - one_look.low) / 2.0
    assert width(effect, 0.01, expected) > width(effect, 0.05, expected)


@given(effects, alphas, st.integers(10, 10**6))
def test_bounds_of_one_side_are_nearer_than_the_interval(effect: Effect, alpha: float, expected: int) -> None:
    low, high = lower_bound(effect, alpha / 2.0, expected), upper_bound(effect, alpha / 2.0, expected)
    found = interval(effect, alpha, expected)
    assert found is not None
    assert low is not None
    assert high is not None
    # Half the level on each side is the whole level on both, and then some: ln(1 + x / a) instead of ln(x / a).
    assert low == pytest.approx(found.low, rel=0.2, abs=width(effect, alpha, expected) * 0.2)
    assert high - effect.difference == pytest.approx(effect.difference - low)


def test_is_narrowest_where_one_expects_to_decide() -> None:
    tuned = [
        width(Effect(0.0, 0.0, 0.0, 1.0 / 10_000, 10_000), 0.05, expected)
        for expected in (500, 5_000, 10_000, 20_000, 200_000)
    ]
    assert min(tuned[1:4]) < min(tuned[0], tuned[4])
    assert tuned[2] == pytest.approx(min(tuned), rel=0.002)


@pytest.mark.parametrize("effect", [None, NOTHING])
def test_no_data_is_no_interval(effect: Effect | None) -> None:
    assert interval(effect, 0.05, 100) is None
    assert fixed_interval(effect, 0.05) is None
    assert lower_bound(effect, 0.05, 100) is None
    assert upper_bound(effect, 0.05, 100) is None
    assert fixed_lower_bound(effect, 0.05) is None


def test_overwhelming_evidence_is_a_number() -> None:
    found = interval(Effect(0.0, 1.0, 1.0, 1e-12, 10**6), 0.05, 10**6)
    assert found is not None
    assert found.p_value is not None
    assert 0.0 <= found.p_value < 1e-200
    assert -inf < found.low < found.high < inf


def test_covers_at_every_look_at_once() -> None:
    """2,000 sequences of 2,000 observations looked at all the time, in one go: misses are at most alpha. A plain
    interval at the same looks misses far more."""
    rng = np.random.default_rng(3)
    runs, n, alpha, first = 2_000, 2_000, 0.05, 50
    counts = np.arange(1, n + 1)
    rho2 = tuned_rho2(alpha, n)
    missed = peeked = 0
    bound = NormalDist().inv_cdf(1.0 - alpha / 2.0)
    for _ in range(runs):
        values = rng.exponential(1.0, n) - 1.0
        mean = np.cumsum(values) / counts
        deviation = np.sqrt(np.maximum(np.cumsum(values * values) / counts - mean * mean, 1e-12))
        spread = counts * rho2 + 1.0
        wide = deviation * np.sqrt(2.0 * spread / (counts**2 * rho2) * np.log(np.sqrt(spread) / alpha))
        missed += bool(np.any(np.abs(mean[first:]) > wide[first:]))
        peeked += bool(np.any(np.abs(mean[first:]) > bound * deviation[first:] / np.sqrt(counts[first:])))
    assert missed <= alpha * runs
    assert peeked > 0.3 * runs
    # The formula above is the one that is used.
    at = n - 1
    found = interval(Effect(0.0, mean[at], mean[at], deviation[at] ** 2 / n, n), alpha, n)
    assert found is not None
    assert found.high - mean[at] == pytest.approx(wide[at])
