"""Moments of units against numpy and scipy, their algebra, the adjustment for history, and junk."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.stats.moments import MAX_VALUE, Moments, effect_of, value_of

numbers = st.integers(-1_000, 1_000).map(float)
vectors = st.tuples(numbers, st.integers(0, 50).map(float), numbers, st.integers(0, 50).map(float))


def of(units: np.ndarray | list) -> Moments:
    moments = Moments()
    for unit in units:
        moments.add([float(value) for value in unit])
    return moments


def same(one: Moments, other: Moments) -> bool:
    return (
        one.n == other.n
        and one.sums == pytest.approx(other.sums)
        and one.products == pytest.approx(other.products, rel=1e-9, abs=1e-6)
    )


def sessions(rng: np.random.Generator, n: int, value: float, history: bool = False) -> np.ndarray:
    """Units with several calls each, whose values are alike, and were so before."""
    calls = rng.geometric(0.25, n)
    level = rng.normal(0.0, 1.0, n)
    num = calls * (value + level) + rng.normal(0.0, 0.3, n) * np.sqrt(calls)
    if not history:
        return np.column_stack([num, calls, np.zeros(n), np.zeros(n)])
    calls0 = calls + rng.poisson(1.0, n)
    num0 = calls0 * (5.0 + level) + rng.normal(0.0, 0.3, n) * np.sqrt(calls0)
    return np.column_stack([num, calls, num0, calls0])


# -- algebra ---------------------------------------------------------------------------------------------------------


@given(st.lists(vectors, max_size=12), st.lists(vectors, max_size=12))
def test_merged_is_of_the_units_of_both(one: list, two: list) -> None:
    assert same(of(one).merged(of(two)), of([*one, *two]))


@given(st.lists(vectors, max_size=12), st.lists(vectors, min_size=1, max_size=12))
def test_removing_undoes_adding(kept: list, gone: list) -> None:
    moments = of([*kept, *gone])
    for unit in gone:
        moments.remove(unit)
    assert same(moments, of(kept))


@given(st.lists(vectors, min_size=1, max_size=12))
def test_the_last_unit_leaves_nothing_behind(units: list) -> None:
    moments = of(units)
    for unit in units:
        moments.remove(unit)
    assert (moments.n, set(moments.sums), set(moments.products)) == (0, {0.0}, {0.0})


@given(st.lists(vectors, max_size=12), st.integers(0, 3), st.integers(0, 3))
def test_products_are_found_from_both_sides(units: list, one: int, other: int) -> None:
    wanted = sum([unit[one] * unit[other] for unit in units])
    assert of(units).product(one, other) == of(units).product(other, one) == pytest.approx(wanted)


def test_sums_made_elsewhere() -> None:
    moments = of([(1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)])
    assert same(Moments.of(2, moments.sums, moments.products), moments)


@pytest.mark.parametrize(
    "unit", [(nan, 1, 0, 0), (1, inf, 0, 0), (1, 1, -inf, 0), (1, 1, 0), (), (MAX_VALUE * 2, 1, 0, 0)]
)
def test_what_is_no_unit_is_refused_and_changes_nothing(unit: tuple) -> None:
    moments = of([(1, 1, 0, 0)])
    with pytest.raises(ValueError, match="four numbers"):
        moments.add(unit)
    with pytest.raises(ValueError, match="four numbers"):
        moments.remove(unit)
    assert same(moments, of([(1, 1, 0, 0)]))


@pytest.mark.parametrize(
    ("sums", "products"), [([nan] * 4, [0.0] * 10), ([0.0] * 3, [0.0] * 10), ([0.0] * 4, [inf] * 10)]
)
def test_sums_that_are_none_are_refused(sums: list, products: list) -> None:
    with pytest.raises(ValueError, match="finite sums"):
        Moments.of(1, sums, products)


# -- variance --------------------------------------------------------------------------------------------------------


def test_variance_is_that_of_the_delta_method() -> None:
    units = sessions(np.random.default_rng(1), 500, 3.0)
    moments = of(units)
    ratio = units[:, 0].sum() / units[:, 1].sum()
    z = (units[:, 0] - ratio * units[:, 1]) / units[:, 1].mean()
    assert moments.ratio == pytest.approx(ratio)
    assert moments.variance(ratio) == pytest.approx(z.var(ddof=1))


def test_variance_holds_over_samples() -> None:
    """The delta method against the spread of many samples: sessions' calls are alike, so a mean over calls would be
    taken for far surer than it is."""
    rng = np.random.default_rng(2)
    samples = [of(sessions(rng, 400, 3.0)) for _ in range(300)]
    spread = np.var([one.ratio or 0.0 for one in samples])
    told = np.mean([one.variance(one.ratio or 0.0) / one.n for one in samples])
    assert told == pytest.approx(spread, rel=0.25)
    by_calls = np.mean([(1.0 + 0.09) / one.sums[1] for one in samples])
    assert by_calls < told / 3.0


def test_nothing_is_known_of_too_little() -> None:
    nothing, one = Moments(), of([(1, 1, 0, 0)])
    uncounted = of([(0, 0, 0, 0)] * 5)
    enough = of([(1, 1, 0, 0), (0, 1, 0, 0)])
    assert nothing.ratio is None
    assert uncounted.ratio is None
    assert one.variance(1.0) == nothing.variance(1.0) == uncounted.variance(1.0) == 0.0
    for few in (nothing, one, uncounted):
        assert effect_of(few, enough) is None
        assert effect_of(enough, few) is None
        assert value_of(few) is None
    assert nothing.evenly == uncounted.evenly == 0.0


def test_large_values_that_hardly_differ_are_not_believed_past_rounding() -> None:
    base = 1e12
    rng = np.random.default_rng(3)
    one = of([(base + value, 1, 0, 0) for value in rng.normal(0.0, 1e-4, 200)])
    two = of([(base + value, 1, 0, 0) for value in rng.normal(0.0, 1e-4, 200)])
    effect = effect_of(one, two)
    assert effect is not None
    assert abs(effect.difference) < 3.0 * effect.variance**0.5


@given(st.lists(vectors, min_size=2, max_size=20))
def test_variance_is_never_negative_and_a_number(units: list) -> None:
    moments = of(units)
    ratio = moments.ratio
    assert 0.0 <= moments.variance(0.0 if ratio is None else ratio) < inf


def test_units_that_weigh_as_much_as_many() -> None:
    assert of([(1, 4, 0, 0)] * 50).evenly == pytest.approx(50.0)
    assert of([(1, 1, 0, 0)] * 50 + [(0, 0, 0, 0)] * 1_000).evenly == pytest.approx(50.0)
    assert of([(1, 1, 0, 0)] * 50 + [(0, 1_000_000, 0, 0)]).evenly < 1.1


# -- effects ---------------------------------------------------------------------------------------------------------


def test_effect_of_means_is_welchs() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    one, two = rng.lognormal(0.0, 1.0, 800), rng.lognormal(0.1, 1.2, 800)
    effect = effect_of(of([(v, 1, 0, 0) for v in one]), of([(v, 1, 0, 0) for v in two]))
    assert effect is not None
    welch = stats.ttest_ind(two, one, equal_var=False)
    # The pooled variance, around the mean of both, is a little the larger of the two.
    assert effect.difference / effect.variance**0.5 == pytest.approx(welch.statistic, rel=0.01)
    assert abs(effect.difference / effect.variance**0.5) <= abs(welch.statistic)
    assert effect.units == 1_600
    assert effect.relative == pytest.approx((two.mean() - one.mean()) / one.mean())


def test_a_rare_event_that_one_side_has_not_seen_has_the_variance_of_both() -> None:
    """0 of 100 against 9 of 900: the former's own variance is 0, which nobody may believe."""
    few = of([(0, 1, 0, 0)] * 100)
    many = of([(1, 1, 0, 0)] * 9 + [(0, 1, 0, 0)] * 891)
    effect = effect_of(many, few)
    assert effect is not None
    assert effect.variance == pytest.approx(0.009 * 0.991 * (1 / 100 + 1 / 900), rel=0.01)


def test_constants_that_differ_have_a_variance() -> None:
    effect = effect_of(of([(5, 1, 0, 0)] * 100), of([(6, 1, 0, 0)] * 100))
    assert effect is not None
    assert effect.difference == 1.0
    assert effect.variance == pytest.approx(0.25 * 0.02, rel=0.02)


def test_relative_to_nothing_is_unknown() -> None:
    effect = effect_of(of([(0, 1, 0, 0)] * 10), of([(1, 1, 0, 0)] * 10))
    assert effect is not None
    assert effect.relative is None


# -- history (CUPED) -------------------------------------------------------------------------------------------------


def test_history_lowers_the_variance_and_leaves_the_effect() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(100):
        one, two = of(sessions(rng, 400, 3.0, True)), of(sessions(rng, 400, 3.2, True))
        plain, adjusted = effect_of(one, two), effect_of(one, two, True)
        assert plain is not None
        assert adjusted is not None
        assert adjusted.adjusted
        assert not plain.adjusted
        assert adjusted.variance < plain.variance
        found.append((plain.difference, adjusted.difference, adjusted.variance))
    plain_spread, adjusted_spread = np.var([row[0] for row in found]), np.var([row[1] for row in found])
    assert np.mean([row[1] for row in found]) == pytest.approx(0.2, abs=4.0 * float(adjusted_spread / 100) ** 0.5)
    assert adjusted_spread < 0.5 * plain_spread
    assert np.mean([row[2] for row in found]) == pytest.approx(adjusted_spread, rel=0.5)


def test_history_is_the_regression_on_it() -> None:
    """With one call a unit, theta is the slope of a regression of the value on the history, within the variants."""
    rng = np.random.default_rng(6)
    before = rng.normal(10.0, 2.0, 600)
    after = 3.0 + 0.7 * before + rng.normal(0.0, 1.0, 600)
    after[300:] += 0.5
    rows = [(value, 1.0, old, 1.0) for value, old in zip(after, before, strict=True)]
    adjusted = effect_of(of(rows[:300]), of(rows[300:]), True)
    design = np.column_stack([np.ones(600), np.arange(600) >= 300, before])
    slope = np.linalg.lstsq(design, after, rcond=None)[0]
    assert adjusted is not None
    assert adjusted.difference == pytest.approx(slope[1], rel=1e-6)


def test_no_history_or_one_that_says_nothing_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    one, two = of(sessions(rng, 100, 3.0)), of(sessions(rng, 100, 3.0))
    assert effect_of(one, two, True) == effect_of(one, two)
    constant = [of([(value, 1.0, 1.0, 1.0) for value in rng.normal(0.0, 1.0, 50)]) for _ in range(2)]
    effect = effect_of(constant[0], constant[1], True)
    assert effect is not None
    assert effect.variance == pytest.approx(effect_of(constant[0], constant[1]).variance, rel=0.05)  # type: ignore[union-attr]
