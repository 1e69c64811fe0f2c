"""The exponential histogram against exact quantiles, against ddsketch, and against junk."""

from __future__ import annotations

import random
from math import ceil, inf, nan

import pytest
from ddsketch import DDSketch
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.histogram import (
    MAX_BUCKETS,
    MAX_SCALE,
    MAX_VALUE,
    Histogram,
    HistogramSum,
    relative_error,
)

QS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
values = st.one_of(
    st.integers(0, MAX_VALUE), st.integers(0, 2_000), st.floats(0, MAX_VALUE, allow_nan=False, allow_infinity=False)
)


def of(numbers: list) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    return histogram


def exact(numbers: list, q: float) -> float:
    """The value of nearest rank."""
    return sorted(numbers)[max(ceil(q * len(numbers)), 1) - 1]


def within(histogram: Histogram, numbers: list) -> None:
    bound = relative_error(histogram.scale) * (1 + 1e-9)
    for q, found in zip(QS, histogram.quantiles(QS), strict=True):
        wanted = exact(numbers, q)
        assert found is not None
        assert abs(found - wanted) <= bound * wanted + 1e-9


@given(st.lists(values, min_size=1, max_size=300))
def test_quantiles_are_within_the_bound_of_exact_ones(numbers: list) -> None:
    histogram = of(numbers)
    within(histogram, numbers)
    assert histogram.count == len(numbers)
    assert histogram.minimum == min(numbers)
    assert histogram.maximum == max(numbers)
    assert histogram.total == pytest.approx(sum(numbers))


def test_the_bound_is_what_the_module_says() -> None:
    assert relative_error(6) == pytest.approx(0.00542, abs=1e-5)
    assert relative_error(5) == pytest.approx(0.01083, abs=1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: int(rng.lognormvariate(11, 1.2)),
        lambda rng: int(rng.expovariate(1 / 40_000)) + 1,
        lambda rng: rng.choice((2_000, 90_000)) + rng.randrange(500),
        lambda rng: int(1_000 * rng.paretovariate(1.1)),
        lambda rng: rng.randrange(1, 10_000_000),
    ],
    ids=["lognormal", "exponential", "bimodal", "pareto", "uniform"],
)
def test_known_inputs_are_within_one_percent_and_agree_with_ddsketch(draw) -> None:
    rng = random.Random(7)
    numbers = [min(draw(rng), MAX_VALUE) for _ in range(50_000)]
    histogram = of(numbers)
    oracle = DDSketch(relative_accuracy=0.005)
    for number in numbers:
        oracle.add(number)
    assert histogram.scale == MAX_SCALE
    for q in (0.5, 0.9, 0.95, 0.99, 0.999):
        found, sketched = histogram.quantile(q), oracle.get_quantile_value(q)
        assert found == pytest.approx(exact(numbers, q), rel=0.0055)
        assert found == pytest.approx(sketched, rel=0.012)  # the oracle's rank may be the next one
    assert histogram.total == sum(numbers)


def test_dense_values_over_many_doublings_lower_the_scale_and_no_more() -> None:
    rng = random.Random(3)
    numbers = [2 ** rng.uniform(0, 39.8) for _ in range(60_000)]
    histogram = of(numbers)
    assert len(histogram.buckets) <= MAX_BUCKETS
    assert histogram.scale == 4
    within(histogram, numbers)


@given(st.lists(st.lists(values, max_size=80), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_gives_the_same_in_any_order_as_adding(parts: list, rng: random.Random) -> None:
    at_once = of([number for part in parts for number in part])
    rng.shuffle(parts)
    merged = Histogram()
    for part in parts:
        merged.merge(of(part))
    assert merged.buckets == at_once.buckets
    assert (merged.scale, merged.zeros, merged.count) == (at_once.scale, at_once.zeros, at_once.count)
    assert (merged.minimum, merged.maximum) == (at_once.minimum, at_once.maximum)
    assert merged.total == pytest.approx(at_once.total)


def test_merging_is_associative_across_scales() -> None:
    rng = random.Random(5)
    wide = [2 ** rng.uniform(0, 39) for _ in range(4_000)]
    parts = [of(wide[:2_500]), of(wide[2_500:]), of([rng.randrange(1, 100_000) for _ in range(4_000)])]
    assert parts[0].scale < MAX_SCALE == parts[2].scale

    def together(order: tuple[int, ...]) -> Histogram:
        merged = Histogram()
        for number in order:
            merged.merge(parts[number])
        return merged

    left = together((0, 1, 2))
    right = Histogram()
    right.merge(parts[0])
    rest = together((2, 1))
    right.merge(rest)
    for other in (together((2, 1, 0)), together((1, 2, 0)), right):
        assert other.buckets == left.buckets
        assert other.scale == left.scale


def test_merging_leaves_the_other_as_it_is() -> None:
    one, other = of([1, 2, 3]), of([4, 5])
    before = other.encode()
    one.merge(other)
    one.add(9)
    assert other.encode() == before


@given(st.lists(values, max_size=300))
def test_bytes_hold_everything(numbers: list) -> None:
    histogram = of(numbers)
    data = histogram.encode()
    back = Histogram.decode(data)
    assert back.encode() == data
    assert back.buckets == histogram.buckets
    assert (back.count, back.total, back.scale) == (histogram.count, histogram.total, histogram.scale)
    assert back.quantiles(QS) == histogram.quantiles(QS)
    back.add(17)
    histogram.add(17)
    assert back.encode() == histogram.encode()


def test_whole_numbers_stay_whole_past_doubles() -> None:
    histogram = Histogram()
    histogram.add_times(MAX_VALUE - 1, 10**10)
    histogram.add(1)
    back = Histogram.decode(histogram.encode())
    assert back.total == (MAX_VALUE - 1) * 10**10 + 1
    assert back.minimum == 1


@given(st.binary(max_size=200))
def test_junk_is_a_value_error(junk: bytes) -> None:
    try:
        histogram = Histogram.decode(junk)
    except ValueError:
        return
    histogram.quantiles(QS)  # what is taken can be used


@given(st.lists(values, min_size=1, max_size=30), st.data())
def test_damage_is_a_value_error_or_a_histogram_that_works(numbers: list, data: st.DataObject) -> None:
    encoded = bytearray(of(numbers).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    for damaged in (bytes(encoded), bytes(encoded[:cut])):
        try:
            histogram = Histogram.decode(damaged)
        except ValueError:
            continue
        histogram.quantiles(QS)
        histogram.merge(of(numbers))
        Histogram.decode(histogram.encode())


@pytest.mark.parametrize("value", [-1, -0.5, nan, -inf])
def test_what_is_no_value_is_refused_and_changes_nothing(value: float) -> None:
    histogram = of([5])
    before = histogram.encode()
    with pytest.raises(ValueError, match="0 and more"):
        histogram.add(value)
    assert histogram.encode() == before


def test_values_past_the_ends() -> None:
    histogram = of([inf, 10**15, 1e-12, 0])
    assert histogram.maximum == MAX_VALUE
    assert histogram.zeros == 2
    assert histogram.quantile(1) == MAX_VALUE
    assert histogram.quantile(0.5) == 0


def test_zeros_that_were_not_counted() -> None:
    histogram = of([100] * 10)
    assert histogram.quantiles((0.5, 0.95), more_zeros=90) == [0.0, 100.0]
    assert Histogram().quantiles((0.5,), more_zeros=3) == [0.0]
    assert Histogram().quantile(0.5) is None
    assert Histogram().mean is None


@given(st.lists(st.lists(values, max_size=60), max_size=6))
def test_adding_up_bytes_is_merging(parts: list) -> None:
    wanted = Histogram()
    summing = HistogramSum()
    for part in parts:
        histogram = of(part)
        wanted.merge(histogram)
        summing.add(histogram.encode())
    found = summing.histogram()
    assert found.buckets == wanted.buckets
    assert (found.count, found.zeros, found.scale) == (wanted.count, wanted.zeros, wanted.scale)
    assert (found.minimum, found.maximum) == (wanted.minimum, wanted.maximum)
    assert found.total == pytest.approx(wanted.total)


def test_adding_up_many_dense_ones_is_merging() -> None:
    rng = random.Random(8)
    wanted, summing = Histogram(), HistogramSum()
    for number in range(60):
        centre, count = rng.uniform(3, 20), rng.choice((3, 100, 2_000, 100_000))
        part = Histogram()
        for _ in range(min(count, 2_000)):
            part.add_times(int(rng.lognormvariate(centre, 0.4 if number % 2 else 3)), max(count // 2_000, 1))
        wanted.merge(part)
        summing.add(part.encode())
    assert wanted.scale < MAX_SCALE
    assert len(wanted.buckets) > MAX_BUCKETS / 2
    assert summing.histogram().encode() == wanted.encode()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.data())
def test_adding_up_damaged_bytes_is_a_value_error_or_works(numbers: list, data: st.DataObject) -> None:
    encoded = bytearray(of(numbers).encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    summing = HistogramSum()
    summing.add(of(numbers).encode())
    try:
        summing.add(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
        summing.add(bytes(encoded))
    except ValueError:
        return
    summing.histogram().quantiles(QS)
