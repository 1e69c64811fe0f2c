"""Backoff: growth, ceiling, jitter and the pushback header."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Retry
from outrider_sidecar.engines.backoff import connect_delay_s, control_delay_s, pushback_s, retry_delay_s

POLICY = Retry(backoff_ms=25, backoff_multiplier=2.0, max_backoff_ms=1_000)


class Draw(random.Random):
    """Draws the same number always: 0.5 is no jitter, 0 and 1 are its ends."""

    def __init__(self, value: float):
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def test_retries_wait_exponentially_longer_up_to_the_ceiling() -> None:
    waits_ms = [retry_delay_s(POLICY, retries, Draw(0.5)) * 1_000 for retries in range(1, 9)]
    assert waits_ms == pytest.approx([25, 50, 100, 200, 400, 800, 1_000, 1_000])


def test_the_jitter_of_a_retry_is_a_fifth_either_way() -> None:
    assert retry_delay_s(POLICY, 3, Draw(0.0)) == pytest.approx(0.080)
    assert retry_delay_s(POLICY, 3, Draw(1.0)) == pytest.approx(0.120)


def test_connections_wait_from_100_ms_to_a_minute() -> None:
    waits_s = [connect_delay_s(failures, Draw(0.5)) for failures in (1, 2, 3, 14, 15, 10_000)]
    assert waits_s == pytest.approx([0.1, 0.16, 0.256, 0.1 * 1.6**13, 60.0, 60.0])


@given(
    attempt=st.integers(-3, 10**6),
    seed=st.integers(0, 10**6),
    multiplier=st.floats(1.0, 1e6),
    backoff_ms=st.integers(0, 10**6),
    ceiling_ms=st.integers(0, 10**6),
)
def test_no_attempt_number_breaks_the_bounds(
    attempt: int, seed: int, multiplier: float, backoff_ms: int, ceiling_ms: int
) -> None:
    policy = Retry(backoff_ms=backoff_ms, backoff_multiplier=multiplier, max_backoff_ms=ceiling_ms)
    wait_s = retry_delay_s(policy, attempt, random.Random(seed))
    assert 0.8 * min(backoff_ms, ceiling_ms) / 1e3 <= wait_s * (1 + 1e-9)
    assert wait_s <= 1.2 * ceiling_ms / 1e3 * (1 + 1e-9)
    assert 0.08 - 1e-9 <= connect_delay_s(attempt, random.Random(seed)) <= 72.0 + 1e-9


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (b"0", 0.0),
        (b"250", 0.25),
        (b"86400000", 300.0),
        (b"-1", None),
        (b"", None),
        (b"12.5", None),
        (b"+5", None),
        (b" 5", None),
        (b"soon", None),
        (b"9" * 5_000, None),
        ("٣".encode(), None),
    ],
)
def test_pushback(value: bytes, wait_s: float | None) -> None:
    assert pushback_s(value) == wait_s


@given(st.integers(1, 10**6), st.integers(0, 2**32))
def test_a_control_plane_is_looked_for_every_three_seconds_at_least(failures: int, seed: int) -> None:
    assert 0.05 <= control_delay_s(failures, random.Random(seed)) <= 3.0
    assert control_delay_s(1, random.Random(seed)) <= 0.1
