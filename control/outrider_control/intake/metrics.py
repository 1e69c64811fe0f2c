"""OTLP metrics of agents: from data points to what is kept of them, minute by minute.

Gauges are taken as they are; of sums what they grew by; of histograms the values recorded since the export before,
each in the middle of its bucket. Attribute sets are added up: a metric is kept by agent, name, unit and kind.

Always holds: a data point of a stream is counted once (a time that is not newer than the stream's last one is a
duplicate); the first point of a cumulative stream that began before this control plane watched is a starting point, not
growth; a cumulative stream that falls or has a new start was reset, and its whole value is growth; streams are bounded,
and points past the bound are dropped and counted. Nothing is remembered of an export until it is in the store. A sum
that may fall (an up-down counter) is a level, so a gauge.

Deliberately not here: summaries (they cannot be added up: dropped with a reason), how long metrics are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import isfinite
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from outrider_control.core.histogram import Histogram
from outrider_control.intake.names import AGENT_ID, SERVICE_NAME
from outrider_control.intake.wire import Malformed, fields

STREAMS_MAX: Final = 20_000
NAME_MAX_CHARS: Final = 256
POINTS_MAX: Final = 65_536  # of one request
BUCKETS_MAX: Final = 10_000  # of one data point
SLICE_POINTS: Final = 256
_COUNT_MAX: Final = 2**53
_FORGET_MS: Final = 3_600_000  # a stream nothing came of
_DELTA: Final = otlp.AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
_CUMULATIVE: Final = otlp.AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_NO_VALUE: Final = otlp.DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


class MetricPoint(NamedTuple):
    """What one metric of one agent did in one minute, as far as one data point says."""

    agent_id: str
    start_s: int  # of the minute, unix seconds
    name: str
    unit: str
    kind: str  # gauge, sum, histogram
    value: float  # gauge: the value; sum: what it grew by; histogram: the sum of what was recorded
    count: int  # gauge, sum: 1; histogram: recorded values
    minimum: float  # gauge: the value; sum: the growth; histogram: least recorded value
    maximum: float
    histogram: bytes | None = None  # core.histogram.Histogram of the recorded values; None: gauge, sum


class Buckets(NamedTuple):
    """The occupied buckets of a histogram: counts by place. Places mean something with `bounds`, else with `scale`."""

    counts: dict[int, int]
    bounds: tuple[float, ...] = ()
    scale: int = 0
    zeros: int = 0  # exponential: zero and what is below it, which figures do not tell apart

    def middle(self, place: int) -> float:
        """Of an open bucket: its only edge."""
        if self.bounds:
            low = self.bounds[place - 1] if place else min(0.0, self.bounds[0])
            return (low + self.bounds[min(place, len(self.bounds) - 1)]) / 2
        width = 2.0**-self.scale
        return 2.0 ** (place * width) * (1 + 2.0 ** min(width, 100.0)) / 2

    @property
    def count(self) -> int:
        return self.zeros + sum(self.counts.values())

    def since(self, before: Buckets) -> Buckets | None:
        """What was recorded since; None: this is no continuation of it."""
        counts = before.counts
        if self.bounds != before.bounds or self.scale > before.scale or self.zeros < before.zeros:
            return None
        if self.scale < before.scale:  # neighbours were joined meanwhile
            counts = {}
            for place, count in before.counts.items():
                place >>= before.scale - self.scale
                counts[place] = counts.get(place, 0) + count
        if any(count > self.counts.get(place, 0) for place, count in counts.items()):
            return None
        grown = {place: count - counts.get(place, 0) for place, count in self.counts.items()}
        return self._replace(
            counts={place: count for place, count in grown.items() if count}, zeros=self.zeros - before.zeros
        )


class Last(NamedTuple):
    """The last data point of a stream."""

    time_ns: int
    start_ns: int
    value: float  # sum: the value; histogram: the sum
    buckets: Buckets | None  # of a histogram
    seen_ms: int


class Metrics:
    """What is remembered of streams between exports. `since_ms`: when this control plane began to watch."""

    def __init__(self, since_ms: int):
        self.since_ns = since_ms * 1_000_000
        self.streams: dict[tuple[Any, ...], Last] = {}

    def make_room(self, count: int, now_ms: int) -> None:
        """Forgets streams nothing came of, where `count` more would be too many."""
        if len(self.streams) + count > STREAMS_MAX:
            old = [key for key, last in self.streams.items() if now_ms - last.seen_ms > _FORGET_MS]
            for key in old:
                del self.streams[key]


class MetricStreams:
    """One export. `read`, commit `points`, then `settle`."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._news: dict[tuple[Any, ...], Last] = {}
        self._now_ms = 0
        self._seen = 0
        self.points: list[MetricPoint] = []
        self.dropped = 0
        self.reason = ""  # of the first that was dropped

    def read(self, request: bytes, now_ms: int) -> Iterator[None]:
        """Reads all of it, giving way now and then. Malformed: it is no ExportMetricsServiceRequest."""
        self._now_ms = now_ms
        since = 0
        for resource, metric in _metrics_of(request):
            try:
                parsed = otlp.Metric.FromString(metric)
            except DecodeError as error:
                raise Malformed(f"a metric: {error}") from None
            self._metric(resource, parsed)
            if self._seen - since >= SLICE_POINTS:
                since = self._seen
                yield

    def settle(self) -> None:
        """The points are in the store."""
        self._metrics.streams.update(self._news)

    def _metric(self, resource: _Resource, metric: otlp.Metric) -> None:
        kind = metric.WhichOneof("data")
        if kind is None:
            return
        data = getattr(metric, kind)
        name, unit = metric.name[:NAME_MAX_CHARS], metric.unit[:NAME_MAX_CHARS]
        self._seen += len(data.data_points)
        if self._seen > POINTS_MAX:
            raise Malformed(f"more than {POINTS_MAX:,} data points in one request; send fewer at once")
        if not name or kind == "summary":
            reason = "a summary: its quantiles cannot be added up" if name else "a metric without a name"
            self._drop(len(data.data_points), reason)
            return
        temporality = getattr(data, "aggregation_temporality", _DELTA)
        if temporality not in (_DELTA, _CUMULATIVE):
            self._drop(len(data.data_points), f"metric {name!r} does not say whether it is cumulative")
            return
        self._metrics.make_room(len(data.data_points), self._now_ms)
        cumulative = temporality == _CUMULATIVE and kind != "gauge"
        if cumulative and kind == "sum" and not data.is_monotonic:
            kind, cumulative = "gauge", False  # a level: what it grew by says nothing
        for point in data.data_points:
            if point.flags & _NO_VALUE:
                continue
            identity = _identity(point.attributes)
            agent_id = next((pair.value.string_value for pair in point.attributes if pair.key == AGENT_ID), "")
            stream = _Stream(
                agent_id[:NAME_MAX_CHARS] or resource.agent_id, name, unit, kind, cumulative,
                (resource.identity, name, unit, kind, *sorted(identity)),
            )  # fmt: skip
            try:
                self._point(stream, point)
            except ValueError as error:
                self._drop(1, f"metric {name!r}: {error}")

    def _point(self, stream: _Stream, point: Any) -> None:
        """Takes one data point. ValueError: it cannot be."""
        key, time_ns = stream.key, point.time_unix_nano
        last = self._news.get(key) or self._metrics.streams.get(key)
        if last is None and len(self._metrics.streams) + len(self._news) >= STREAMS_MAX:
            raise ValueError(f"there are {STREAMS_MAX:,} streams already")
        if last is not None and 0 < time_ns <= last.time_ns:
            return  # sent again
        buckets: Buckets | None = None
        if stream.kind == "histogram":
            buckets = _explicit(point)
        elif stream.kind == "exponential_histogram":
            buckets = _exponential(point)
        if buckets is not None:
            value = point.sum if point.HasField("sum") else _estimated_sum(buckets)
        else:
            value = point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)
        if not isfinite(value) or (buckets is not None and buckets.count > _COUNT_MAX):
            raise ValueError(f"{value} is no figure")
        news = Last(time_ns, point.start_time_unix_nano, value, buckets, self._now_ms)
        self._news[key] = news
        if stream.cumulative:
            grown = self._growth(news, last)
            if grown is None:
                return
            value, buckets = grown
        now_s = self._now_ms // 60_000 * 60
        start_s = min(time_ns // 60_000_000_000 * 60, now_s) if time_ns else now_s  # minutes to come are not opened
        if buckets is not None:
            self._histogram(stream, start_s, value, buckets, point)
        elif stream.kind == "gauge" or value:
            self.points.append(
                MetricPoint(stream.agent_id, start_s, stream.name, stream.unit, stream.kind, value, 1, value, value)
            )

    def _growth(self, now: Last, before: Last | None) -> tuple[float, Buckets | None] | None:
        """(value, buckets) since the point before of a cumulative stream; None: not known yet."""
        if before is None:
            return (now.value, now.buckets) if now.start_ns >= self._metrics.since_ns else None
        if now.start_ns > before.start_ns:
            return now.value, now.buckets
        if now.buckets is None:
            return (now.value - before.value if now.value >= before.value else now.value), None
        grown = now.buckets.since(before.buckets) if before.buckets is not None else None
        return (now.value, now.buckets) if grown is None else (now.value - before.value, grown)

    def _histogram(self, stream: _Stream, start_s: int, total: float, buckets: Buckets, point: Any) -> None:
        count = buckets.count
        if not count:
            return
        middles = [(buckets.middle(place), times) for place, times in buckets.counts.items() if times]
        if buckets.zeros:
            middles.append((0.0, buckets.zeros))
        histogram = Histogram()
        for middle, times in middles:
            histogram.add_times(max(middle, 0.0), times)
        exact = not stream.cumulative  # least and greatest are of the same values
        least = point.min if exact and point.HasField("min") else min(middles)[0]
        most = point.max if exact and point.HasField("max") else max(middles)[0]
        self.points.append(
            MetricPoint(
                stream.agent_id, start_s, stream.name, stream.unit, "histogram", total, count, least, most,
                histogram.encode(),
            )
        )  # fmt: skip

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        self.reason = self.reason or reason


class _Stream(NamedTuple):
    agent_id: str
    name: str
    unit: str
    kind: str
    cumulative: bool
    key: tuple[Any, ...]


class _Resource(NamedTuple):
    agent_id: str
    identity: tuple[Any, ...]


def _metrics_of(request: bytes) -> Iterator[tuple[_Resource, bytes]]:
    for number, wire, content in fields(request):
        if number != 1 or wire != 2:
            continue
        parts = [(inner, part) for inner, inner_wire, part in fields(content) if inner_wire == 2]
        try:
            attributes = Resource.FromString(b"".join(part for inner, part in parts if inner == 1)).attributes
        except DecodeError as error:
            raise Malformed(f"a resource: {error}") from None
        named = {pair.key: pair.value.string_value for pair in attributes}
        agent_id = (named.get(AGENT_ID) or named.get(SERVICE_NAME, ""))[:NAME_MAX_CHARS]
        resource = _Resource(agent_id, tuple(sorted(_identity(attributes))))
        for inner, part in parts:
            if inner == 2:
                yield from ((resource, metric) for field, kind, metric in fields(part) if field == 2 and kind == 2)


def _identity(pairs: Iterable[KeyValue]) -> list[tuple[str, bytes]]:
    return [(pair.key, pair.value.SerializeToString(deterministic=True)) for pair in pairs]


def _explicit(point: otlp.HistogramDataPoint) -> Buckets:
    """Raises ValueError where bounds and counts are not of one histogram."""
    bounds, counts = tuple(point.explicit_bounds), point.bucket_counts
    if len(counts) > BUCKETS_MAX or len(bounds) > BUCKETS_MAX:
        raise ValueError(f"{len(counts):,} buckets")
    if not bounds:  # no buckets, or one: all is known is the mean
        mean = point.sum / point.count if point.count and point.HasField("sum") else 0.0
        return Buckets({0: point.count}, (mean, mean)) if mean > 0 else Buckets({}, zeros=point.count)
    if len(counts) != len(bounds) + 1:
        raise ValueError(f"{len(counts)} buckets with {len(bounds)} bounds")
    if not all(abs(bound) < 1e300 for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
        raise ValueError("bounds that do not rise")
    return Buckets({place: count for place, count in enumerate(counts) if count}, bounds)


def _exponential(point: otlp.ExponentialHistogramDataPoint) -> Buckets:
    """Raises ValueError for a scale outside of -10..20 (OTLP's own range)."""
    if not -10 <= point.scale <= 20:
        raise ValueError(f"scale {point.scale}")
    positive, negative = point.positive, point.negative
    if len(positive.bucket_counts) > BUCKETS_MAX or len(negative.bucket_counts) > BUCKETS_MAX:
        raise ValueError(f"more than {BUCKETS_MAX:,} buckets")
    least, greatest = (round(power * 2.0**point.scale) for power in (-512, 512))  # places of figures that are none
    counts = {
        min(max(place, least), greatest): count
        for place, count in enumerate(positive.bucket_counts, positive.offset)
        if count
    }
    return Buckets(counts, scale=point.scale, zeros=point.zero_count + sum(negative.bucket_counts))


def _estimated_sum(buckets: Buckets) -> float:
    return float(sum(buckets.middle(place) * count for place, count in buckets.counts.items()))
