"""What one commit takes in, as bytes and back."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.metric_figures import MetricKey
from outrider_control.core.windows import WindowKey, Windows
from outrider_control.intake.metrics import MetricPoint
from tests.figure_samples import NOW_MS, same, sample, some, together


def of(samples: list, points: int = 0) -> Windows:
    windows = Windows()
    for one in samples:
        windows.add(one.key, one.end_ms, one)
    for number in range(points):
        point = MetricPoint("tax", 1_789_999_980, f"m{number}", "ms", "gauge", number, 1, number, number)
        windows.metric(point.start_s, MetricKey(point.agent_id, point.name, point.unit, point.kind)).add(point)
    return windows


def test_a_window_begins_at_a_whole_ten_seconds() -> None:
    ends = (NOW_MS, NOW_MS + 9_999, NOW_MS + 10_000)
    windows = of([sample(end_ms=end_ms) for end_ms in ends])
    assert {key.start_s: figures.requests for key, figures in windows.figures.items()} == {
        NOW_MS // 1000: 2,
        NOW_MS // 1000 + 10: 1,
    }


@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(0, 3))
def test_bytes_hold_everything(seed: int, count: int, points: int) -> None:
    windows = of(some(random.Random(seed), count, age_ms=60_000), points)
    back = Windows.decode(windows.encode())
    assert list(back.figures) == list(windows.figures)
    assert all(same(back.figures[key], figures) for key, figures in windows.figures.items())
    assert {key: one.encode() for key, one in back.metrics.items()} == {
        key: one.encode() for key, one in windows.metrics.items()
    }
    assert bool(back) == bool(count or points)


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_merging_is_adding(seed: int, parts: int) -> None:
    samples = some(random.Random(seed), 40, age_ms=60_000)
    merged = Windows()
    for number in range(parts):
        merged.merge(of(samples[number::parts]))
    whole = of(samples)
    assert set(merged.figures) == set(whole.figures)
    assert all(same(merged.figures[key], figures) for key, figures in whole.figures.items())
    by_hand = [one for one in samples if WindowKey(one.end_ms // 10_000 * 10, one.key) == next(iter(whole.figures))]
    assert same(next(iter(whole.figures.values())), together(by_hand))


@given(st.binary(max_size=200))
def test_junk_is_a_value_error(junk: bytes) -> None:
    try:
        Windows.decode(junk)
    except ValueError:
        pass


@given(st.integers(0, 2**32), st.data())
def test_damage_is_a_value_error_or_windows_that_work(seed: int, data: st.DataObject) -> None:
    encoded = bytearray(of(some(random.Random(seed), 5), 2).encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        windows = Windows.decode(bytes(encoded))
    except ValueError:
        return
    Windows.decode(windows.encode())
