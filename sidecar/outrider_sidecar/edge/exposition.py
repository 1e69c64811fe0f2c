"""Metric families as Prometheus or OpenMetrics text, by prometheus_client.

Always holds: prometheus_client is imported by the first scrape, not at start (it costs about 5 MB); nothing is
registered in its global registry; samples come from finished copies, so one page shows one moment. The text comes in
slices of about `SLICE_LINES` lines (0.5 ms each), so that a scrape of a thousand series delays no call for long.

Deliberately not here: counting (`engines.series` and others hand over plain `core.metric` families).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from outrider_sidecar.core.metric import Family, HistogramFamily

AnyFamily = Family | HistogramFamily
SLICE_LINES = 64

_END = b"# EOF\n"  # OpenMetrics: once, last


def loaded() -> bool:
    return "prometheus_client" in sys.modules


def load() -> None:
    """Import what `expose` needs; it does so itself where this was not called."""
    importlib.import_module("prometheus_client")


def expose(families: Iterable[AnyFamily], accept: str = "") -> tuple[str, Iterator[bytes]]:
    """(content type, body in slices) for a scrape with this Accept header. A name must come in one family only."""
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return content_type, _slices(families, encode, content_type.startswith("application/openmetrics"))


def _slices(families: Iterable[AnyFamily], encode: Callable[[Any], bytes], ends: bool) -> Iterator[bytes]:
    from prometheus_client import CollectorRegistry, ProcessCollector

    process = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=process)
    yield encode(process).removesuffix(_END)
    for family in families:
        step = max(1, SLICE_LINES // (len(family.bounds) + 2 if isinstance(family, HistogramFamily) else 1))
        samples = iter(family.samples)
        first = True
        while (part := list(islice(samples, step))) or first:
            text = encode(_Part(family, part)).removesuffix(_END)
            yield text if first else text.split(b"\n", 2)[2]  # HELP and TYPE of the family are out already
            first = False
    if ends:
        yield _END


class _Part:
    """Some samples of one family, in the role of prometheus_client's registry."""

    def __init__(self, family: AnyFamily, samples: list[Any]):
        self._family = family
        self._samples = samples

    def collect(self) -> Iterator[Any]:
        from prometheus_client import core

        family = self._family
        if isinstance(family, HistogramFamily):
            histogram = core.HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, counts, total in self._samples:
                buckets = [(bound, float(count)) for bound, count in zip(family.bounds, counts, strict=True)]
                histogram.add_metric(labels, buckets, total)
            yield histogram
            return
        kind = core.CounterMetricFamily if family.kind == "counter" else core.GaugeMetricFamily
        metric = kind(family.name, family.help, labels=family.labels)
        for labels, value in self._samples:
            metric.add_metric(labels, value)
        yield metric
