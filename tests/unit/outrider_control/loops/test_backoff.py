from __future__ import annotations

from random import Random

from outrider_control.loops.backoff import Backoff


def test_it_waits_longer_each_time_and_never_too_long() -> None:
    backoff = Backoff(Random(1))
    waits = []
    now_ms = 1_000_000
    for _ in range(12):
        backoff.failed(now_ms)
        waits.append(backoff.until_ms - now_ms)
        assert backoff.waits(now_ms)
        assert not backoff.waits(backoff.until_ms)
        now_ms = backoff.until_ms
    assert min(waits) >= 1_000
    assert max(waits) <= 60_000
    assert all(0.8 * min(1_000 * 2**at, 60_000) <= wait <= 60_000 for at, wait in enumerate(waits))
    assert len(set(waits[6:])) > 3  # jitter


def test_a_calm_makes_it_begin_again() -> None:
    backoff = Backoff(Random(1), calm_ms=10_000)
    for _ in range(5):
        backoff.failed(0)
    backoff.worked(backoff.until_ms + 9_999)
    assert backoff.failures == 5
    backoff.worked(backoff.until_ms + 10_000)
    assert backoff.failures == 0
    backoff.failed(100_000)
    assert backoff.until_ms == 101_000
