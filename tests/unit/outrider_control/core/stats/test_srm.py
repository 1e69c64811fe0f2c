"""Sample ratio mismatch against scipy, as a martingale, and by injection."""

from __future__ import annotations

from itertools import product
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.stats import srm
from outrider_control.core.stats.srm import chi2_p, chi2_sf, is_mismatch, log_bayes_factor


@given(st.floats(1e-6, 500.0), st.integers(1, 20))
def test_tail_of_chi_square(statistic: float, degrees: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert chi2_sf(statistic, degrees) == pytest.approx(stats.chi2.sf(statistic, degrees), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize(
    ("counts", "shares"), [((480, 520), (0.5, 0.5)), ((90, 5, 7), (0.9, 0.05, 0.05)), ((1, 0), (0.5, 0.5))]
)
def test_p_value_is_pearsons(counts: tuple, shares: tuple) -> None:
    stats = pytest.importorskip("scipy.stats")
    wanted = stats.chisquare(counts, [share * sum(counts) for share in shares]).pvalue
    assert chi2_p(counts, shares) == pytest.approx(wanted)


@given(st.lists(st.integers(0, 3_000), min_size=2, max_size=4), st.integers(0, 5))
def test_evidence_is_a_dirichlet_multinomial_over_a_multinomial(counts: list[int], tilt: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    weights = np.ones(len(counts))
    weights[0] += tilt
    shares = weights / weights.sum()
    total = sum(counts)
    other = stats.dirichlet_multinomial(srm.CONCENTRATION * shares, total).logpmf(counts)
    planned = stats.multinomial(total, shares).logpmf(counts)
    assert log_bayes_factor(counts, shares.tolist()) == pytest.approx(float(other - planned), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.2, 0.1)])
def test_evidence_is_a_martingale(shares: tuple) -> None:
    """From every outcome of four units, the next one changes nothing on average."""
    for outcome in product(range(len(shares)), repeat=4):
        counts = [outcome.count(which) for which in range(len(shares))]
        nexts = [[count + (which == at) for at, count in enumerate(counts)] for which in range(len(shares))]
        mean = sum([share * exp(log_bayes_factor(after, shares)) for share, after in zip(shares, nexts, strict=True)])
        assert mean == pytest.approx(exp(log_bayes_factor(counts, shares)))


def test_no_units_and_one_variant_are_no_evidence() -> None:
    assert log_bayes_factor((0, 0), (0.5, 0.5)) == 0.0
    assert chi2_p((0, 0), (0.5, 0.5)) is None
    assert chi2_p((7,), (1.0,)) is None
    assert log_bayes_factor((70,), (1.0,)) == pytest.approx(0.0)
    assert chi2_p((10, 0), (1.0, 0.0)) is None
    assert chi2_sf(0.0, 1) == 1.0
    assert not is_mismatch(0.0)


def test_units_of_a_variant_without_a_share_are_all_the_evidence() -> None:
    assert log_bayes_factor((10, 1), (1.0, 0.0)) == inf
    assert is_mismatch(inf)


def test_alarm_is_at_one_in_a_thousand() -> None:
    assert is_mismatch(log(1_000.0) + 1e-9)
    assert not is_mismatch(log(999.0))


def test_finds_what_is_wrong_and_is_quiet_where_nothing_is() -> None:
    """Looked at 100 times in 20,000 units: 48/52 in at least 80 %, 50/50 hardly ever."""
    rng = np.random.default_rng(1)
    steps = np.arange(200, 20_001, 200)

    def alarms(share: float, runs: int) -> int:
        found = 0
        for _ in range(runs):
            first = np.cumsum(rng.binomial(200, share, len(steps)))
            looks = zip(first.tolist(), (steps - first).tolist(), strict=True)
            found += any([is_mismatch(log_bayes_factor(counts, (0.5, 0.5))) for counts in looks])
        return found

    assert alarms(0.48, 200) >= 160
    assert alarms(0.5, 500) <= 1
