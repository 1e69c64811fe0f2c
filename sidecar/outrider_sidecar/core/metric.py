"""Metric families as plain data: what parts of the sidecar hand to whoever exposes them.

Always holds: a family is a finished copy, so rendering it later or in slices shows one moment. Names follow
Prometheus (base units, counters without the `_total` the exposition adds).

Deliberately not here: the text format (`edge.exposition`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Labels = tuple[str, ...]  # label values, in the order of the family's label names


class Family(NamedTuple):
    """A counter or a gauge."""

    name: str
    kind: str  # "counter" or "gauge"
    help: str
    labels: tuple[str, ...]
    samples: list[tuple[Labels, float]]


class HistogramFamily(NamedTuple):
    """A histogram; each sample is (label values, cumulative count per bound, sum). The last bound is +Inf."""

    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[str, ...]  # "le" as exposed, "+Inf" last
    samples: Iterable[tuple[Labels, list[int], float]]  # may be read once only
