"""Which windows answer a question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.query import KEEP_S, LEVELS_S, NAMED_S, check_split, cover, span

NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


@given(st.integers(0, 10 * 86_400), st.integers(0, 8_000), st.sampled_from(LEVELS_S))
def test_a_cover_leaves_nothing_out_and_counts_nothing_twice(length_s: int, offset_s: int, coarsest_s: int) -> None:
    now_s = NOW_MS // 1000 + offset_s
    from_s = (now_s - length_s) // 10 * 10
    at_s = from_s
    for piece in cover(from_s, now_s, coarsest_s):
        assert piece.from_s == at_s
        assert piece.window_s <= coarsest_s
        assert piece.from_s % piece.window_s == piece.to_s % piece.window_s == 0
        at_s = piece.to_s
    assert at_s > now_s
    assert at_s - coarsest_s <= now_s


@given(st.integers(0, 8_000))
def test_a_day_is_few_windows(offset_s: int) -> None:
    now_s = NOW_MS // 1000 + offset_s
    pieces = cover((now_s - 86_400) // 10 * 10, now_s, 3600)
    assert sum((piece.to_s - piece.from_s) // piece.window_s for piece in pieces) <= 5 + 9 + 5 + 25


@given(st.integers(0, 100 * 86_400_000), st.sampled_from(("", *NAMED_S)), st.integers(0, 8_000_000))
def test_a_span_needs_nothing_that_is_not_kept(length_ms: int, window: str, offset_ms: int) -> None:
    now_ms = NOW_MS + offset_ms
    found = span(now_ms - length_ms, now_ms, window)
    since_s = max((now_ms - length_ms) // 1000, now_ms // 1000 - KEEP_S[3600])
    assert found.from_s <= since_s < found.from_s + 3600
    if length_ms < 2 * HOUR_MS - 60_000:
        assert since_s - found.from_s < 10
    assert found.window in NAMED_S
    for piece in cover(found.from_s, found.now_s, found.point_s):
        assert piece.from_s >= found.now_s - KEEP_S[piece.window_s] - 3600 * (piece.window_s == 3600)


@pytest.mark.parametrize(
    ("since_ms", "window", "wanted"),
    [
        (HOUR_MS // 4, "", "10s"),
        (HOUR_MS, "", "1m"),
        (24 * HOUR_MS, "", "1h"),
        (HOUR_MS, "1h", "1h"),
        (HOUR_MS, "10s", "10s"),
        (24 * HOUR_MS, "10s", "1m"),
        (24 * HOUR_MS, "1m", "1m"),
        (24 * 7 * HOUR_MS, "1m", "1h"),
    ],
)
def test_points_are_as_wide_as_asked_or_as_kept(since_ms: int, window: str, wanted: str) -> None:
    assert span(NOW_MS - since_ms, NOW_MS, window).window == wanted


def test_what_cannot_be_asked_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="window: one of 10s, 1m, 1h"):
        span(NOW_MS, NOW_MS, "5m")
    with pytest.raises(ValueError, match="by: one of method"):
        check_split("agent_id")
    check_split("")
