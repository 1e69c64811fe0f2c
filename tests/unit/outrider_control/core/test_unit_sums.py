"""Sums of one unit: metrics, history, what was said, and bytes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.stats.quantiles import LOWEST, upper_bound_of
from outrider_control.core.unit_sums import MAX_NAMES, UnitFeedback, UnitSums, bucket_of
from tests.units import call

KEYS = (
    *("error_rate", "latency_mean", "slow_share:150", "first_chunk_mean", "cost", "tokens", "rating", "complaint_rate"),
    *("score:accuracy", "attribute:x"),
)
CALLS = st.lists(
    st.builds(
        call,
        st.just("u"),
        st.sampled_from(["", "a"]),
        failed=st.booleans(),
        total_us=st.integers(0, 10**9),
        first_chunk_us=st.integers(0, 10**6),
        cost_nano_usd=st.integers(0, 10**9),
        tokens=st.integers(0, 10**6),
        attributes=st.dictionaries(st.sampled_from(["x", "y"]), st.floats(-1e6, 1e6), max_size=2),
    ),
    max_size=12,
)


def summed(*calls: object) -> UnitSums:
    sums = UnitSums()
    for one in calls:
        sums.part(one.variant).add(one)  # type: ignore[attr-defined]
    return sums


def test_every_metric_is_a_sum_and_a_count() -> None:
    sums = summed(
        call("u", failed=True, total_us=200_000, first_chunk_us=50_000, cost_nano_usd=2_000_000_000, tokens=30),
        call("u", attributes={"x": 2.5, "y": math.nan}),
        call("u", "", total_us=1_000_000),
    )
    sums.seen.tell(UnitFeedback(4.0, True, {"accuracy": 0.5, "bad": math.inf}))
    pairs = {key: sums.vector(key) for key in KEYS}
    assert pairs == {
        "error_rate": (1, 2, 0, 1),
        "latency_mean": (300, 2, 1_000, 1),
        "slow_share:150": (1, 2, 1, 1),
        "first_chunk_mean": (50, 1, 0, 0),
        "cost": (2, 2, 0, 1),
        "tokens": (30, 2, 0, 1),
        "rating": (4, 1, 0, 0),
        "complaint_rate": (1, 2, 0, 1),
        "score:accuracy": (0.5, 1, 0, 0),
        "attribute:x": (2.5, 1, 0, 0),
    }
    assert sums.vector("attribute:y") == (0, 0, 0, 0)
    assert sums.vector("score:bad") == (0, 0, 0, 0)
    sums.seen.tell(UnitFeedback(4.0, True, {"accuracy": 0.5}, -1))
    assert sums.vector("rating")[:2] == (0, 0)
    assert sums.vector("score:accuracy")[:2] == (0, 0)


@given(CALLS)
def test_what_is_encoded_reads_back_equal(calls: list[object]) -> None:
    sums = summed(*calls)
    again = UnitSums.decode(sums.encode())
    assert again.seen.plain() == sums.seen.plain()
    assert again.history.plain() == sums.history.plain()


@given(CALLS, st.randoms(use_true_random=False))
def test_the_order_of_calls_does_not_matter(calls: list[object], random: object) -> None:
    mixed = list(calls)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    for key in KEYS:
        assert summed(*calls).vector(key) == pytest.approx(summed(*mixed).vector(key))


def test_names_are_bounded() -> None:
    sums = summed(call("u", attributes={f"x{at}": 1.0 for at in range(100)}))
    assert len(sums.seen.attributes) == MAX_NAMES


@given(st.floats(1e-3, 1e7))
def test_a_value_is_at_most_its_buckets_upper_bound(value: float) -> None:
    bucket = bucket_of(value)
    assert upper_bound_of(bucket - 1) * (1 - 1e-9) <= value <= upper_bound_of(bucket) * (1 + 1e-9)


def test_no_time_at_all_has_a_bucket() -> None:
    assert bucket_of(0.0) == LOWEST
    assert upper_bound_of(LOWEST) == 0.0


@pytest.mark.parametrize("data", [b"", b"\x09\x90"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no sums"):
        UnitSums.decode(data)
