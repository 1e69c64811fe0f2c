"""What a metric that agents sent by themselves did over some time: gauges, sums and histograms.

Always holds: merging is of one kind; a gauge's last value is that of the latest merge, everything else does not depend
on the order (as far as floating point adds up so).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import inf, isfinite
from typing import NamedTuple, Protocol

from outrider_control.core.cardinality import clean
from outrider_control.core.histogram import Histogram
from outrider_control.core.sample import OTHER

KINDS = ("gauge", "sum", "histogram")
MAX_METRICS = 100  # names of one agent
MAX_METRIC_NAME = 256
MAX_UNIT = 64

_VERSION = 1
_HEAD = struct.Struct("<BBQdddd")  # version, kind, count, last, total, least, greatest


class MetricKey(NamedTuple):
    """One metric of one agent."""

    agent_id: str
    name: str
    unit: str
    kind: str


class Point(Protocol):
    """What intake makes of a data point: `intake.metrics.MetricPoint`."""

    @property
    def value(self) -> float: ...
    @property
    def count(self) -> int: ...
    @property
    def minimum(self) -> float: ...
    @property
    def maximum(self) -> float: ...
    @property
    def histogram(self) -> bytes | None: ...


class MetricFigures:
    """One metric over some time."""

    __slots__ = ("count", "histogram", "kind", "last", "maximum", "minimum", "total")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.count = 0  # points; of a histogram: recorded values
        self.last = 0.0
        self.total = 0.0  # gauge: of the values; sum: the growth; histogram: of the recorded values
        self.minimum = inf  # while there is none
        self.maximum = -inf
        self.histogram: Histogram | None = None

    def add(self, point: Point) -> None:
        """Counts one point. ValueError: it is no number, or its histogram is none."""
        count = max(point.count, 0)
        if not isfinite(point.value):
            raise ValueError("a metric's value is not finite")
        if point.histogram is not None:
            decoded = Histogram.decode(point.histogram)
            self.histogram = self.histogram or Histogram()
            self.histogram.merge(decoded)
        self.last = point.value
        self.total += point.value * count if self.kind == "gauge" else point.value
        self.count += count
        if count and isfinite(point.minimum) and isfinite(point.maximum):
            self.minimum = min(self.minimum, point.minimum)
            self.maximum = max(self.maximum, point.maximum)

    def merge(self, other: MetricFigures) -> None:
        """Adds what came later."""
        if other.histogram is not None:
            self.histogram = self.histogram or Histogram()
            self.histogram.merge(other.histogram)
        self.last = other.last
        self.total += other.total
        self.count += other.count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    @property
    def mean(self) -> float | None:
        """Of a gauge's points or a histogram's values; None for a sum, and without any."""
        return self.total / self.count if self.count and self.kind != "sum" else None

    @property
    def value(self) -> float:
        """What one number says best. Gauge: the last. Sum: what it grew by. Histogram: the mean."""
        if self.kind == "gauge":
            return self.last
        return self.total if self.kind == "sum" else self.mean or 0.0

    @property
    def p95(self) -> float | None:
        """Of a histogram's values; else None."""
        return self.histogram.quantile(0.95) if self.histogram is not None else None

    def encode(self) -> bytes:
        """Compact bytes."""
        head = _HEAD.pack(
            _VERSION, KINDS.index(self.kind), self.count, self.last, self.total, self.minimum, self.maximum
        )
        return head + (self.histogram.encode() if self.histogram is not None else b"")

    @classmethod
    def decode(cls, data: bytes) -> MetricFigures:
        """What `encode` gave. ValueError: it is not that."""
        try:
            version, kind, count, last, total, minimum, maximum = _HEAD.unpack_from(data)
        except struct.error as error:
            raise ValueError(f"not figures of a metric: {error}") from None
        if version != _VERSION or kind >= len(KINDS):
            raise ValueError("not figures of a metric: unknown version or kind")
        self = cls(KINDS[kind])
        self.count, self.last, self.total, self.minimum, self.maximum = count, last, total, minimum, maximum
        if len(data) > _HEAD.size:
            self.histogram = Histogram.decode(data[_HEAD.size :])
        return self


class MetricNames:
    """Which metrics of an agent are told apart: a bounded number, further ones are "(other)"."""

    __slots__ = ("_bound", "_known", "overflowed")

    def __init__(self, bound: int = MAX_METRICS) -> None:
        self._bound = bound
        self._known: dict[str, set[tuple[str, str, str]]] = {}
        self.overflowed = 0

    def place(self, agent_id: str, name: str, unit: str, kind: str) -> MetricKey:
        """Where a point is counted. The agent is one that `Cardinality` gave a place."""
        name, unit = clean(name, MAX_METRIC_NAME), clean(unit, MAX_UNIT)
        known = self._known.setdefault(agent_id, set())
        if (name, unit, kind) not in known:
            if len(known) >= self._bound:
                self.overflowed += 1
                return MetricKey(agent_id, OTHER, "", kind)
            known.add((name, unit, kind))
        return MetricKey(agent_id, name, unit, kind)

    def load(self, metrics: Iterable[MetricKey]) -> None:
        """Takes places up again: metrics that are in the store."""
        for metric in metrics:
            self._known.setdefault(metric.agent_id, set()).add(metric[1:])

    def forget(self) -> None:
        """Frees all places: names that are still in use take theirs again."""
        self._known.clear()
