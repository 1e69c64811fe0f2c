"""Token buckets: never more than a burst at once, never more than the rate in the long run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2.limits import Bucket


@given(st.integers(1, 50), st.sampled_from([0.5, 1.0, 10.0]), st.lists(st.floats(0, 5), max_size=200))
def test_never_more_than_burst_and_rate(burst: int, per_s: float, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(burst, per_s, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now)
        assert taken <= burst + now * per_s + 1e-6


def test_a_refused_token_is_not_paid_for() -> None:
    """Asking in vain, however often, neither costs nor delays what comes back."""
    bucket = Bucket(1, 1.0, 0.0)
    assert bucket.take(0.0)
    assert [bucket.take(n / 10) for n in range(1, 10)] == [False] * 9
    assert bucket.take(1.001)
    assert not bucket.take(1.5)


def test_what_costs_more_takes_more() -> None:
    bucket = Bucket(10, 1.0, 0.0)
    assert bucket.take(0.0, 7)
    assert not bucket.take(0.0, 4)
    assert bucket.take(0.0, 3)
    assert bucket.take(4.0, 4)


@pytest.mark.parametrize("idle_s", [1e3, 1e6])
def test_saving_up_ends_at_the_burst(idle_s: float) -> None:
    bucket = Bucket(5, 10.0, 0.0)
    for _ in range(5):
        bucket.take(0.0)
    assert [bucket.take(idle_s) for _ in range(7)] == [True] * 5 + [False] * 2


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(-3, 5)), max_size=200))
def test_what_was_done_well_pays(steps: list[tuple[float, int]]) -> None:
    """Never more than the burst, the time and the most that was ever done pay for; less done takes nothing back."""
    bucket, now, done, most, taken = Bucket(5, 1.0, 0.0, 2.0), 0.0, 0, 0, 0
    for gap, more in steps:
        now, done = now + gap, done + more
        most = max(most, done)
        taken += bucket.take(now, 1, done)
        assert taken <= 5 + now + 2.0 * most + 1e-6


def test_done_is_paid_for_once() -> None:
    bucket = Bucket(2, 0.0, 0.0, 1.0)
    assert [bucket.take(0.0, 1, 3) for _ in range(5)] == [True] * 4 + [False]  # 3 earned, a burst of 2 kept
    assert not bucket.take(0.0, 1, 3)
    assert bucket.take(0.0, 1, 4)
    assert not bucket.take(0.0, 1, 4)
