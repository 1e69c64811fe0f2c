"""Metrics of agents: what of each data point is counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp

from outrider_control.core.histogram import Histogram
from outrider_control.intake import metrics as module
from outrider_control.intake.metrics import MetricPoint, Metrics, MetricStreams
from outrider_control.intake.wire import Malformed

NOW_MS = 1_763_800_030_000
MINUTE_S = NOW_MS // 60_000 * 60
DELTA, CUMULATIVE = 1, 2


class Exporter:
    """One agent's stream of exports to one control plane that has watched for a minute."""

    def __init__(self) -> None:
        self.metrics = Metrics(NOW_MS - 60_000)
        self.at_ns = NOW_MS * 1_000_000

    def request(self, *metrics: otlp.Metric) -> bytes:
        request = ExportMetricsServiceRequest()
        resource = request.resource_metrics.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "a"
        resource.scope_metrics.add().metrics.extend(metrics)
        return request.SerializeToString()

    def export(self, *metrics: otlp.Metric, settle: bool = True) -> MetricStreams:
        self.at_ns += 1_000_000
        for metric in metrics:
            for point in getattr(metric, str(metric.WhichOneof("data"))).data_points:
                point.time_unix_nano = point.time_unix_nano or self.at_ns
        return self.send(self.request(*metrics), settle)

    def send(self, request: bytes, settle: bool = True) -> MetricStreams:
        streams = MetricStreams(self.metrics)
        for _ in streams.read(request, NOW_MS):
            pass
        if settle:
            streams.settle()
        return streams


def total(value: float, temporality: int = CUMULATIVE, monotonic: bool = True, start_ns: int = 1) -> otlp.Metric:
    metric = otlp.Metric(name="tokens", unit="1")
    metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]
    metric.sum.is_monotonic = monotonic
    metric.sum.data_points.add(as_double=value, start_time_unix_nano=start_ns)
    return metric


def grown(streams: MetricStreams) -> float:
    return sum(point.value for point in streams.points)


def test_a_gauge_is_taken_as_it_is():
    metric = otlp.Metric(name="temperature", unit="C")
    metric.gauge.data_points.add(as_double=-3.5)
    metric.gauge.data_points.add(as_int=4).attributes.add(key="room").value.string_value = "x"
    assert Exporter().export(metric).points == [
        MetricPoint("a", MINUTE_S, "temperature", "C", "gauge", -3.5, 1, -3.5, -3.5),
        MetricPoint("a", MINUTE_S, "temperature", "C", "gauge", 4.0, 1, 4.0, 4.0),
    ]


def test_delta_sums_add_up_and_resent_ones_do_not():
    exporter = Exporter()
    assert grown(exporter.export(total(5, DELTA))) == 5
    again = total(7, DELTA)
    assert grown(exporter.export(again)) == 7
    assert grown(exporter.send(exporter.request(again))) == 0


def test_what_was_not_committed_may_come_again():
    exporter = Exporter()
    metric = total(5, DELTA)
    assert grown(exporter.export(metric, settle=False)) == 5
    assert grown(exporter.send(exporter.request(metric))) == 5


def test_cumulative_sums_give_their_growth():
    exporter = Exporter()
    assert exporter.export(total(100)).points == []  # it began before anybody watched
    assert grown(exporter.export(total(130))) == 30
    assert grown(exporter.export(total(130))) == 0
    assert grown(exporter.export(total(20))) == 20  # a reset that shows by the fall
    since = exporter.at_ns
    assert grown(exporter.export(total(50, start_ns=since))) == 50  # one that shows by the start


def test_a_stream_that_began_under_our_eyes_counts_from_zero():
    exporter = Exporter()
    assert grown(exporter.export(total(100, start_ns=exporter.at_ns))) == 100


def test_a_level_is_a_gauge():
    exporter = Exporter()
    for value in (5.0, 3.0):
        (point,) = exporter.export(total(value, monotonic=False)).points
        assert (point.kind, point.value) == ("gauge", value)


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=20), st.integers(0, 2**32))
def test_growth_adds_up_whatever_is_lost_and_sent_twice(growths: list[int], seed: int):
    draw = random.Random(seed)
    exporter = Exporter()
    exporter.export(total(0))
    value, counted, last = 0, 0.0, total(0)
    for growth in growths:
        value += growth
        if draw.random() < 0.3:
            continue  # this export is lost: the next one has its growth
        last = total(value)
        counted += grown(exporter.export(last))
        if draw.random() < 0.3:
            counted += grown(exporter.send(exporter.request(last)))
    counted += grown(exporter.export(total(value)))
    assert counted == value


def explicit(counts: list[int], bounds: list[float], start_ns: int = 1, temporality: int = DELTA) -> otlp.Metric:
    metric = otlp.Metric(name="duration", unit="s")
    metric.histogram.aggregation_temporality = temporality  # type: ignore[assignment]
    point = metric.histogram.data_points.add(start_time_unix_nano=start_ns, count=sum(counts), sum=float(sum(counts)))
    point.bucket_counts.extend(counts)
    point.explicit_bounds.extend(bounds)
    return metric


def test_histograms_with_bounds():
    (point,) = Exporter().export(explicit([0, 90, 10], [1.0, 2.0])).points
    assert (point.kind, point.count, point.value, point.minimum, point.maximum) == ("histogram", 100, 100.0, 1.5, 2.0)
    assert point.histogram is not None
    histogram = Histogram.decode(point.histogram)
    assert histogram.count == 100
    assert histogram.quantile(0.5) == pytest.approx(1.5, rel=0.01)
    assert histogram.quantile(0.95) == pytest.approx(2.0, rel=0.01)


def test_cumulative_histograms_give_what_was_recorded_since():
    exporter = Exporter()
    assert exporter.export(explicit([1, 2, 3], [1.0, 2.0], temporality=CUMULATIVE)).points == []
    (point,) = exporter.export(explicit([1, 5, 3], [1.0, 2.0], temporality=CUMULATIVE)).points
    assert (point.count, point.value, point.minimum) == (3, 3.0, 1.5)
    assert exporter.export(explicit([1, 5, 3], [1.0, 2.0], temporality=CUMULATIVE)).points == []
    (reset,) = exporter.export(explicit([0, 1, 0], [1.0, 2.0], temporality=CUMULATIVE)).points
    assert reset.count == 1


def exponential(scale: int, offset: int, counts: list[int], temporality: int = DELTA) -> otlp.Metric:
    metric = otlp.Metric(name="duration", unit="s")
    metric.exponential_histogram.aggregation_temporality = temporality  # type: ignore[assignment]
    point = metric.exponential_histogram.data_points.add(
        scale=scale, zero_count=2, count=sum(counts) + 2, start_time_unix_nano=1
    )
    point.positive.offset = offset
    point.positive.bucket_counts.extend(counts)
    return metric


def test_exponential_histograms():
    (point,) = Exporter().export(exponential(0, 3, [1, 1])).points  # 8..16, 16..32, two zeros
    assert (point.count, point.minimum, point.maximum, point.value) == (4, 0.0, 24.0, 36.0)


def test_the_widest_and_the_farthest_buckets_are_figures():
    for metric in (exponential(-10, 0, [1]), exponential(20, 2**31 - 1, [1]), exponential(0, -(2**31), [1])):
        (point,) = Exporter().export(metric).points
        assert point.count == 3


def test_a_cumulative_histogram_that_joined_its_buckets_goes_on():
    exporter = Exporter()
    exporter.export(exponential(1, 0, [1, 2, 3, 4], CUMULATIVE))
    (point,) = exporter.export(exponential(0, 0, [3, 9], CUMULATIVE)).points
    assert point.count == 2


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (explicit([1, 2], [1.0, 2.0]), "2 buckets with 2 bounds"),
        (explicit([1, 2, 3], [2.0, 1.0]), "bounds that do not rise"),
        (explicit([1, 2, 3], [1.0, float("nan")]), "bounds that do not rise"),
        (exponential(40, 0, [1]), "scale 40"),
        (exponential(0, 0, [2**63]), "no figure"),
        (total(float("nan")), "nan"),
        (total(float("inf")), "inf"),
        (total(1, temporality=0), "cumulative"),
    ],
)
def test_points_that_cannot_be_counted_are_dropped_with_a_reason(metric: otlp.Metric, reason: str):
    streams = Exporter().export(metric)
    assert (streams.points, streams.dropped) == ([], 1)
    assert reason in streams.reason


def test_summaries_are_dropped():
    metric = otlp.Metric(name="old")
    metric.summary.data_points.add(count=1)
    streams = Exporter().export(metric)
    assert (streams.points, streams.dropped) == ([], 1)
    assert "summary" in streams.reason


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_malformed(data: bytes):
    try:
        Exporter().send(data)
    except Malformed:
        pass


@given(st.data())
def test_damaged_requests_are_read_or_malformed(data: st.DataObject):
    exporter = Exporter()
    request = bytearray(exporter.request(total(1), explicit([1, 2, 3], [1.0, 2.0]), exponential(0, 3, [1])))
    for _ in range(data.draw(st.integers(1, 4))):
        request[data.draw(st.integers(0, len(request) - 1))] = data.draw(st.integers(0, 255))
    try:
        streams = exporter.send(bytes(request))
    except Malformed:
        return
    for point in streams.points:
        assert point.start_s <= NOW_MS // 1_000


def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "STREAMS_MAX", 10)
    exporter = Exporter()
    metric = otlp.Metric(name="m")
    for number in range(15):
        metric.gauge.data_points.add(as_int=1).attributes.add(key="k").value.int_value = number
    streams = exporter.export(metric)
    assert (len(streams.points), streams.dropped, len(exporter.metrics.streams)) == (10, 5, 10)


def test_an_agent_named_by_the_point_goes_before_the_resource():
    metric: Any = otlp.Metric(name="m")
    metric.gauge.data_points.add(as_int=1).attributes.add(key="gen_ai.agent.id").value.string_value = "b"
    assert Exporter().export(metric).points[0].agent_id == "b"
