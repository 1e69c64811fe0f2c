"""Quantiles over units: their algebra, against exact shares and numpy, coverage, and junk."""

from __future__ import annotations

from math import ceil, inf, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.stats.quantiles import (
    LOWEST,
    SCALE,
    BucketMoments,
    difference,
    quantile,
    upper_bound_of,
)

units = st.dictionaries(st.integers(-50, 400) | st.just(LOWEST), st.integers(1, 9), max_size=6)


def bucket_of(value: float) -> int:
    return ceil(log2(value) * (1 << SCALE)) - 1


def of(rows: list[dict[int, int]]) -> BucketMoments:
    moments = BucketMoments()
    for row in rows:
        moments.add(row)
    return moments


def calls_of(values: np.ndarray) -> dict[int, int]:
    found: dict[int, int] = {}
    for value in values:
        found[bucket_of(value)] = found.get(bucket_of(value), 0) + 1
    return found


def singles(values: np.ndarray) -> BucketMoments:
    return of([{bucket_of(value): 1} for value in values])


def shown(moments: BucketMoments) -> tuple:
    return moments.n, moments.calls, moments.calls_squared, moments.shares()


@given(st.lists(units, max_size=8), st.lists(units, max_size=8))
def test_merged_is_of_the_units_of_both(one: list, two: list) -> None:
    assert shown(of(one).merged(of(two))) == shown(of([*one, *two]))


@given(st.lists(units, max_size=8), st.lists(units, max_size=8))
def test_removing_undoes_adding(kept: list, gone: list) -> None:
    moments = of([*kept, *gone])
    for row in gone:
        moments.remove(row)
    assert shown(moments) == shown(of(kept))


@given(st.lists(units, min_size=1, max_size=8))
def test_shares_are_those_of_calls(rows: list) -> None:
    moments = of(rows)
    with_calls = [row for row in rows if row]
    total = sum([sum(row.values()) for row in rows])
    told = moments.shares()
    if len(with_calls) < 2:
        assert told == []
        return
    buckets = sorted({bucket for row in rows for bucket in row})
    below = [sum([count for row in rows for at, count in row.items() if at <= bucket]) for bucket in buckets]
    wanted = dict(zip(buckets, below, strict=True))
    assert {bucket: share for bucket, share, _ in told}.items() <= {
        bucket: pytest.approx(count / total) for bucket, count in wanted.items()
    }.items()
    assert told[-1][1] == pytest.approx(1.0)
    assert all([variance >= 0.0 for _, _, variance in told])


def test_variance_of_a_share_is_the_delta_methods() -> None:
    rng = np.random.default_rng(1)
    rows = [calls_of(rng.lognormal(3.0, 1.0, rng.integers(1, 9))) for _ in range(200)]
    bucket, share, variance = of(rows).shares()[100]
    calls = np.array([sum(row.values()) for row in rows], float)
    below = np.array([sum([count for at, count in row.items() if at <= bucket]) for row in rows], float)
    assert share == pytest.approx(below.sum() / calls.sum())
    z = (below - share * calls) / calls.mean()
    assert variance == pytest.approx(z.var(ddof=1) / 200)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_value_is_the_quantile_within_a_bucket(q: float) -> None:
    values = np.random.default_rng(2).lognormal(5.0, 1.0, 4_000)
    found = quantile(singles(values), q, 0.05, None)
    assert found is not None
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    assert exact <= found.value * (1.0 + 1e-9)
    assert found.value < exact * 2.0 ** (1.0 / (1 << SCALE)) * (1.0 + 1e-9)
    assert found.low <= found.value <= found.high


def test_fixed_interval_is_that_of_order_statistics() -> None:
    """Ranks from the binomial distribution, by scipy: the classical interval without a distribution."""
    stats = pytest.importorskip("scipy.stats")
    values = np.sort(np.random.default_rng(3).lognormal(5.0, 1.0, 4_000))
    found = quantile(singles(values), 0.9, 0.05, None)
    ranks = stats.binom.ppf((0.025, 0.975), 4_000, 0.9).astype(int)
    assert found is not None
    assert found.low == pytest.approx(values[ranks[0] - 1], rel=0.04)
    assert found.high == pytest.approx(values[ranks[1]], rel=0.04)


def test_sequential_interval_covers_at_every_look() -> None:
    rng = np.random.default_rng(4)
    true = float(np.exp(5.0 + 1.2815515655446004))
    missed = 0
    for _ in range(100):
        moments = BucketMoments()
        looks = []
        for _ in range(10):
            for value in rng.lognormal(5.0, 1.0, 60):
                moments.add({bucket_of(value): 1})
            found = quantile(moments, 0.9, 0.05, 600)
            assert found is not None
            looks.append(found.low <= true * 1.022 and true <= found.high * 1.022)
        missed += not all(looks)
    assert missed <= 5


def test_sessions_whose_calls_are_alike_are_known_less_well() -> None:
    rng = np.random.default_rng(5)
    levels = rng.lognormal(5.0, 1.0, 300)
    alike = of([{bucket_of(level): 10} for level in levels])
    apart = of([calls_of(rng.lognormal(5.0, 1.0, 10)) for _ in range(300)])
    one, two = quantile(alike, 0.5, 0.05, 300), quantile(apart, 0.5, 0.05, 300)
    assert one is not None
    assert two is not None
    assert one.high - one.low > 1.5 * (two.high - two.low)


def test_a_difference_is_found_and_no_difference_is_not() -> None:
    rng = np.random.default_rng(6)
    one, same, slower = (singles(rng.lognormal(level, 0.5, 3_000)) for level in (5.0, 5.0, 5.5))
    nothing, found = difference(one, same, 0.95, 0.05, 6_000), difference(one, slower, 0.95, 0.05, 6_000)
    assert nothing is not None
    assert nothing.low < 0.0 < nothing.high
    assert found is not None
    assert 0.0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx(found.treated - found.control)
    turned = difference(slower, one, 0.95, 0.05, 6_000)
    assert turned is not None
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_few_calls_leave_the_upper_end_open() -> None:
    found = quantile(singles(np.random.default_rng(7).lognormal(5.0, 1.0, 30)), 0.99, 0.05, 1_000)
    assert found is not None
    assert found.high == inf


@pytest.mark.parametrize("rows", [[], [{}], [{3: 1}], [{}, {}, {3: 1}]])
def test_too_little_is_no_quantile(rows: list) -> None:
    enough = of([{3: 1}, {4: 1}])
    assert quantile(of(rows), 0.5, 0.05, 100) is None
    assert difference(of(rows), enough, 0.5, 0.05, 100) is None
    assert difference(enough, of(rows), 0.5, 0.05, None) is None


def test_calls_that_took_no_time() -> None:
    found = quantile(of([{LOWEST: 1}] * 50), 0.5, 0.05, None)
    assert found is not None
    assert found.value == 0.0
    assert upper_bound_of(LOWEST) == 0.0
    assert upper_bound_of(-1) == 1.0
