"""Figures by window and series: what one commit adds, as it waits in the store to be folded into the rollups.

Always holds: windows begin at whole multiples of ten seconds; merging in any order gives the same windows; a window
is found under one key only.

Deliberately not here: which names get a series of their own (`core.cardinality`), the rollups (`state.rollups`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from outrider_control.core.figures import Figures
from outrider_control.core.metric_figures import MetricFigures, MetricKey
from outrider_control.core.sample import Sample, SeriesKey

WINDOW_S = 10  # of what is taken in; the rollups' longer windows are multiples of it
WINDOW_MS = WINDOW_S * 1000

_VERSION = 1
_HEAD = struct.Struct("<BII")  # version, windows, metrics
_ENTRY = struct.Struct("<qHI")  # start, bytes of names, bytes of figures


class WindowKey(NamedTuple):
    """One window of one series."""

    start_s: int
    series: SeriesKey


class MetricWindow(NamedTuple):
    """One minute of one metric that agents sent by themselves."""

    start_s: int
    metric: MetricKey


class Windows:
    """What came in, by ten seconds and series; foreign metrics by minute."""

    __slots__ = ("figures", "metrics")

    def __init__(self) -> None:
        self.figures: dict[WindowKey, Figures] = {}
        self.metrics: dict[MetricWindow, MetricFigures] = {}

    def __bool__(self) -> bool:
        return bool(self.figures or self.metrics)

    def add(self, series: SeriesKey, end_ms: int, sample: Sample) -> None:
        """Counts one span under a series, in the window of a time. ValueError: a negative duration."""
        self.at(series, end_ms).add(sample)

    def at(self, series: SeriesKey, at_ms: int) -> Figures:
        """The figures of the window a time falls into, unix milliseconds."""
        key = WindowKey(at_ms // WINDOW_MS * WINDOW_S, series)
        found = self.figures.get(key)
        if found is None:
            found = self.figures[key] = Figures()
        return found

    def metric(self, start_s: int, metric: MetricKey) -> MetricFigures:
        """One minute of one metric."""
        key = MetricWindow(start_s, metric)
        found = self.metrics.get(key)
        if found is None:
            found = self.metrics[key] = MetricFigures(metric.kind)
        return found

    def merge(self, other: Windows) -> None:
        """Adds the other's; the other stays as it is."""
        for key, figures in other.figures.items():
            found = self.figures.get(key)
            if found is None:
                found = self.figures[key] = Figures()
            found.merge(figures)
        for window, figures in other.metrics.items():
            self.metric(*window).merge(figures)

    def encode(self) -> bytes:
        """Compact bytes."""
        parts = [_HEAD.pack(_VERSION, len(self.figures), len(self.metrics))]
        entries: Iterable[tuple[int, tuple[str, ...], Figures | MetricFigures]] = (
            *((start_s, series, figures) for (start_s, series), figures in self.figures.items()),
            *((start_s, metric, figures) for (start_s, metric), figures in self.metrics.items()),
        )
        for start_s, key, figures in entries:
            names = _encoded_names(key)
            data = figures.encode()
            parts += (_ENTRY.pack(start_s, len(names), len(data)), names, data)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Windows:
        """What `encode` gave. ValueError: it is not that."""
        try:
            return cls._decode(data)
        except (struct.error, TypeError) as error:
            raise ValueError(f"not windows of figures: {error}") from None

    @classmethod
    def _decode(cls, data: bytes) -> Windows:
        version, figures, metrics = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise ValueError("not windows of figures: unknown version")
        self = cls()
        at = _HEAD.size
        for number in range(figures + metrics):
            start_s, names_bytes, figures_bytes = _ENTRY.unpack_from(data, at)
            names_at = at + _ENTRY.size
            figures_at = names_at + names_bytes
            at = figures_at + figures_bytes
            names, encoded = data[names_at:figures_at], data[figures_at:at]
            if number < figures:
                self.figures[WindowKey(start_s, _series_key(names))] = Figures.decode(encoded)
            else:
                self.metrics[MetricWindow(start_s, _metric_key(names))] = MetricFigures.decode(encoded)
        if at != len(data) or len(self.figures) != figures or len(self.metrics) != metrics:
            raise ValueError("not windows of figures: wrong length")
        return self


@lru_cache(maxsize=16384)
def _encoded_names(key: tuple[str, ...]) -> bytes:
    return "\0".join(key).encode("utf-8")


@lru_cache(maxsize=16384)
def _series_key(names: bytes) -> SeriesKey:
    return SeriesKey(*names.decode("utf-8").split("\0"))


@lru_cache(maxsize=16384)
def _metric_key(names: bytes) -> MetricKey:
    agent_id, name, unit, kind = names.decode("utf-8").split("\0")
    return MetricKey(agent_id, name, unit, kind)
