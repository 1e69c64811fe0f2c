"""Shares by the chance to be the best: against scipy, bounds, burn-in, and corrections of levels."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.stats import correction
from outrider_control.core.stats.bandit import allocate
from outrider_control.core.stats.moments import Moments


def of(n: int, successes: int) -> Moments:
    return Moments.of(n, [successes, n, 0.0, 0.0], [successes, successes, 0.0, 0.0, n, 0.0, 0.0, 0.0, 0.0, 0.0])


def test_two_variants_have_the_normals_chance() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, two = of(1_000, 300), of(500, 160)
    error = (0.3 * 0.7 / 999 + 0.32 * 0.68 / 499) ** 0.5
    found = allocate([one, two], True, 0.05, 100, Random(1))
    assert found.best[1] == pytest.approx(stats.norm.cdf(0.02 / error), abs=1e-6)
    assert found.shares == pytest.approx([0.05 + 0.9 * chance for chance in found.best])
    turned = allocate([one, two], False, 0.05, 100, Random(1))
    assert turned.best == pytest.approx(found.best[::-1])


def test_more_variants_have_the_chances_of_draws() -> None:
    variants = [of(1_000, 300), of(1_000, 320), of(1_000, 310)]
    found = allocate(variants, True, 0.0, 100, Random(1))
    rng = np.random.default_rng(2)
    errors = [(one.variance(one.ratio or 0.0) / one.n) ** 0.5 for one in variants]
    drawn = rng.normal([one.ratio or 0.0 for one in variants], errors, (200_000, 3))
    wanted = np.bincount(drawn.argmax(axis=1), minlength=3) / 200_000
    assert found.best == pytest.approx(wanted, abs=0.05)
    assert allocate(variants, True, 0.0, 100, Random(1)) == found


@given(st.lists(st.tuples(st.integers(2, 5_000), st.floats(0.0, 1.0)), min_size=2, max_size=5), st.floats(0.0, 0.2))
def test_shares_keep_the_floor_and_are_all(variants: list, floor: float) -> None:
    moments = [of(n, round(n * rate)) for n, rate in variants]
    found = allocate(moments, True, floor, 2, Random(3))
    assert sum(found.shares) == pytest.approx(1.0)
    assert sum(found.best) == pytest.approx(1.0)
    assert min(found.shares) >= floor - 1e-9


@pytest.mark.parametrize("variants", [[of(99, 50), of(5_000, 2_500)], [of(5_000, 1), Moments()], [of(1, 1), of(1, 0)]])
def test_burn_in_is_even(variants: list) -> None:
    found = allocate(variants, True, 0.05, 100, Random(1))
    assert found.is_burning_in
    assert found.shares == found.best == (0.5, 0.5)


def test_certainties() -> None:
    assert allocate([of(200, 0), of(200, 200)], True, 0.05, 100, Random(1)).shares == pytest.approx((0.05, 0.95))
    assert allocate([of(200, 0), of(200, 0)], True, 0.05, 100, Random(1)).best == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(("count", "floor"), [(1, 0.1), (3, 0.4)])
def test_what_cannot_be_divided(count: int, floor: float) -> None:
    with pytest.raises(ValueError, match="cannot have a share"):
        allocate([of(200, 100)] * count, True, floor, 100, Random(1))


def test_levels_of_several_questions() -> None:
    assert correction.level_of_each(0.05, 4) == pytest.approx(0.0125)
    assert correction.level_of_each(0.05, 0) == 0.05
    assert correction.adjusted_p(0.02, 3) == pytest.approx(0.06)
    assert correction.adjusted_p(0.6, 3) == 1.0
