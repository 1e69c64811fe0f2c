"""Splits: how the units of an agent's traffic are divided among variants. Experiments and rollouts come down to these.

Always holds: plain frozen data and exact arithmetic in whole parts of a million; the ranges of a split's variants are
half-open, disjoint and together everything; a share that is raised only adds units to its variant, one that is lowered
only takes units away. Standard library only, so that sidecar and control plane compute the same.

Deliberately not here: reading and checking (`split_parse`), protobuf (`split_codec`), who is assigned (sidecar
`engines.assign`), what the shares should be (control plane `loops`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

PARTS: Final = 1_000_000  # of a split's units, and of a layer's
UNITS: Final = ("session", "user", "request")
SETTINGS: Final = ("labels", "prompt_version", "model", "temperature", "top_p", "max_output_tokens", "compression")

Range = tuple[int, int]  # half-open, in PARTS

_NOTHING: Mapping[str, str] = MappingProxyType({})


def _nothing() -> Mapping[str, str]:
    return _NOTHING


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which an agent's calls may be served. What is not set stays as it is without the split."""

    name: str
    share: float = 0.0  # of the units that take part; all variants' together are 1
    ranges: tuple[
        Range, ...
    ] = ()  # the parts that are its own; empty for all variants of a split: by `share`, in order
    labels: Mapping[str, str] = field(default_factory=_nothing)  # only endpoints that carry all of them
    prompt_version: str = ""  # told to the agent in metadata
    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    compression: bool | None = None
    aborted: bool = False  # its units go to the split's first variant at once, whatever they held


@dataclass(frozen=True, slots=True)
class Split:
    """One division. The first variant is the one to fall back on."""

    name: str  # unique in the mesh
    agent_id: str
    variants: tuple[Variant, ...] = ()
    seed: str = ""  # decides who is where, and keys the hashes of units; empty: the name
    unit: str = "session"  # of UNITS; units of "request" are not sticky
    layer: str = ""  # splits of one agent in one layer share no unit; empty: a layer of its own
    layer_from: int = 0  # the units that take part, in PARTS of the layer
    layer_to: int = PARTS
    is_open: bool = True  # false: who has a variant keeps it, nobody else gets one
    observed: bool = False  # units are told to the control plane although none gets a variant: history before a start
    idle_s: int = 86_400  # how long a unit that makes no call keeps its variant
    overrides: Mapping[str, str] = field(default_factory=_nothing)  # unit -> variant: testers, never counted


def settings_of(variant: Variant) -> frozenset[str]:
    """What of a call a variant decides on: the names of the fields that it sets."""
    return frozenset([name for name in SETTINGS if getattr(variant, name) not in (None, "", {})])


def decided(split: Split) -> frozenset[str]:
    """What of a call a split decides on, by any variant that still has units."""
    return frozenset().union(*[settings_of(one) for one in split.variants if not one.aborted])


def ranges_of(shares: Sequence[float]) -> tuple[tuple[Range, ...], ...]:
    """The ranges of variants with these shares (together 1), in order; a share of 0 has none."""
    if not shares:
        return ()
    ends, total = [], 0.0
    for share in shares:
        total += share
        ends.append(min(PARTS, round(total * PARTS)))
    ends[-1] = PARTS if total > 0.0 else 0
    starts = [0, *ends[:-1]]
    return tuple([((start, end),) if end > start else () for start, end in zip(starts, ends, strict=True)])


def ranges_in_force(variants: Sequence[Variant]) -> tuple[tuple[Range, ...], ...]:
    """The ranges of a split's variants, whether they are given or follow from the shares."""
    given = tuple([one.ranges for one in variants])
    return given if any(given) else ranges_of([one.share for one in variants])


def reallocated(before: Sequence[tuple[Range, ...]], shares: Sequence[float]) -> tuple[tuple[Range, ...], ...]:
    """Ranges for new shares (together 1) that move no unit but those that must: who shrinks gives from its end, who
    grows takes what was given, in order. `before` covers everything or nothing."""
    wanted = [sum([end - start for start, end in one]) for one in ranges_of(shares)]
    kept: list[list[Range]] = []
    given: list[Range] = [] if any(before) else [(0, PARTS)]
    for ranges, size in zip(before, wanted, strict=True):
        keep, free = _cut(ranges, size)
        kept.append(keep)
        given += free
    given.sort()
    for ranges, size in zip(kept, wanted, strict=True):
        missing = size - sum([end - start for start, end in ranges])
        if missing > 0:
            taken, given = _cut(given, missing)
            ranges += taken
    return tuple([_joined(ranges) for ranges in kept])


def _cut(ranges: Sequence[Range], size: int) -> tuple[list[Range], list[Range]]:
    """The first `size` parts, and the others."""
    first: list[Range] = []
    others: list[Range] = []
    for start, end in ranges:
        middle = min(end, start + size)
        if middle > start:
            first.append((start, middle))
            size -= middle - start
        if end > middle:
            others.append((middle, end))
    return first, others


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
