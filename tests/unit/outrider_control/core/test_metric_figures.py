"""Metrics that agents send by themselves."""

from __future__ import annotations

from math import inf, nan

import pytest

from outrider_control.core.histogram import Histogram
from outrider_control.core.metric_figures import MetricFigures, MetricKey, MetricNames
from outrider_control.core.sample import OTHER
from outrider_control.intake.metrics import MetricPoint


def point(value: float, kind: str = "gauge", **fields) -> MetricPoint:
    plain = MetricPoint("tax", 0, "depth", "1", kind, value, 1, value, value)
    return plain._replace(**fields)


def of(kind: str, *points: MetricPoint) -> MetricFigures:
    figures = MetricFigures(kind)
    for one in points:
        figures.add(one)
    return figures


def test_a_gauge_has_a_last_value_a_mean_and_its_ends() -> None:
    figures = of("gauge", point(4), point(10), point(1))
    assert (figures.value, figures.count, figures.minimum, figures.maximum, figures.mean) == (1, 3, 1, 10, 5)
    assert figures.p95 is None


def test_a_sum_has_its_growth() -> None:
    figures = of("sum", point(4, "sum"), point(10, "sum"))
    figures.merge(of("sum", point(6, "sum")))
    assert (figures.value, figures.count, figures.mean) == (20, 3, None)


def test_a_histogram_has_its_mean_and_quantile() -> None:
    recorded = Histogram()
    for value in range(1, 101):
        recorded.add(value / 1000)
    sent = point(5.05, "histogram", count=100, minimum=0.001, maximum=0.1, histogram=recorded.encode())
    figures = of("histogram", sent, sent)
    assert figures.count == 200
    assert figures.value == pytest.approx(0.0505)
    assert figures.p95 == pytest.approx(0.095, rel=0.006)


@pytest.mark.parametrize("kind", ["gauge", "sum", "histogram"])
def test_bytes_hold_everything(kind: str) -> None:
    recorded = Histogram()
    recorded.add(7)
    encoded = recorded.encode() if kind == "histogram" else None
    figures = of(kind, point(7, kind, histogram=encoded), point(9, kind, histogram=encoded))
    back = MetricFigures.decode(figures.encode())
    assert back.encode() == figures.encode()
    assert (back.kind, back.value, back.count, back.p95) == (kind, figures.value, 2, figures.p95)


def test_merging_is_adding_and_the_later_value_is_the_last() -> None:
    both = of("gauge", point(4), point(10), point(1))
    first = of("gauge", point(4), point(10))
    first.merge(of("gauge", point(1)))
    assert first.encode() == both.encode()


@pytest.mark.parametrize("junk", [b"", b"\1", b"\2" * 50, b"\1\x09" + b"\0" * 40, b"\1\0" + b"\0" * 40 + b"x"])
def test_junk_is_a_value_error(junk: bytes) -> None:
    with pytest.raises(ValueError, match="not "):
        MetricFigures.decode(junk)


def test_a_point_that_is_none_is_refused_and_changes_nothing() -> None:
    figures = of("gauge", point(3))
    before = figures.encode()
    for odd in (point(nan), point(inf), point(1, histogram=b"junk")):
        with pytest.raises(ValueError, match="not "):
            figures.add(odd)
    assert figures.encode() == before


def test_names_are_bounded() -> None:
    names = MetricNames(bound=3)
    found = [names.place("tax", f"m{number}", "ms", "gauge") for number in range(5)]
    assert found[:3] == [MetricKey("tax", f"m{number}", "ms", "gauge") for number in range(3)]
    assert set(found[3:]) == {MetricKey("tax", OTHER, "", "gauge")}
    assert names.overflowed == 2
    assert names.place("other agent", "m9", "ms", "gauge").name == "m9"
    again = MetricNames(bound=3)
    again.load(found[1:3])
    assert again.place("tax", "m4", "ms", "gauge").name == "m4"
    assert again.place("tax", "m0", "ms", "gauge").name == OTHER
    again.forget()
    assert again.place("tax", "m0", "ms", "gauge").name == "m0"
    assert "\0" not in names.place("new", "a\0b", "\0", "sum").name
