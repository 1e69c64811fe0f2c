"""What one unit of a split came to: sums over its calls, and over its calls before it had a variant (its history).

Always holds: sums only, so that a call is added once and never looked at again; a call that its caller cancelled is in
none of them; names of attributes and scores are bounded per unit, what is past the bound is left out. What is encoded
reads back equal; bytes of another version are a ValueError.

Deliberately not here: rows (`state.unit_sums`), comparisons of variants (`core.stats`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isfinite, log2
from typing import Any, Final, NamedTuple

import msgpack

from outrider_control.core.stats.quantiles import LOWEST, SCALE

VERSION: Final = 1
MAX_NAMES: Final = 16  # of attributes, and of scores
QUANTILE: Final = "latency_quantile"
_SLOW: Final = "slow_share:"
_SCORE: Final = "score:"
_ATTRIBUTE: Final = "attribute:"

Vector = tuple[float, float, float, float]  # sum and count; sum and count of its history


class UnitCall(NamedTuple):
    """One call of one unit of one split. `variant` is empty where the split is only observed: it is history."""

    split: str
    unit: str
    variant: str
    failed: bool
    total_us: int
    first_chunk_us: int  # 0: not known
    cost_nano_usd: int | None  # None: not known, as are tokens
    tokens: int | None
    attributes: Mapping[str, float]


class UnitFeedback(NamedTuple):
    """What was said of one call of a unit. `sign` -1 takes it back."""

    rating: float | None
    complaint: bool
    scores: Mapping[str, float]
    sign: int = 1


class Sums:
    """Of one unit, of either its time with a variant or its history."""

    __slots__ = (
        "attributes", "buckets", "calls", "complaints", "cost_nano_usd", "costs", "failed", "first_chunk_us",
        "first_chunks", "rating", "ratings", "scores", "tokens", "tokens_told", "total_us",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls = 0
        self.failed = 0
        self.total_us = 0
        self.first_chunks = 0
        self.first_chunk_us = 0
        self.costs = 0  # calls whose cost is known
        self.cost_nano_usd = 0
        self.tokens_told = 0  # calls whose tokens are known
        self.tokens = 0
        self.ratings = 0
        self.rating = 0.0
        self.complaints = 0
        self.buckets: dict[int, int] = {}  # of latency in milliseconds, at quantiles.SCALE
        self.attributes: dict[str, list[float]] = {}  # name -> count, sum
        self.scores: dict[str, list[float]] = {}

    def add(self, call: UnitCall) -> None:
        """Count one call."""
        self.calls += 1
        self.failed += call.failed
        self.total_us += call.total_us
        if call.first_chunk_us:
            self.first_chunks += 1
            self.first_chunk_us += call.first_chunk_us
        if call.cost_nano_usd is not None:
            self.costs += 1
            self.cost_nano_usd += call.cost_nano_usd
        if call.tokens is not None:
            self.tokens_told += 1
            self.tokens += call.tokens
        bucket = bucket_of(call.total_us / 1e3)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        for name, value in call.attributes.items():
            _count(self.attributes, name, value, 1)

    def tell(self, said: UnitFeedback) -> None:
        """Count what was said of one call."""
        if said.rating is not None:
            self.ratings += said.sign
            self.rating += said.sign * said.rating
        self.complaints += said.sign * said.complaint
        for name, value in said.scores.items():
            _count(self.scores, name, value, said.sign)

    def pair(self, key: str) -> tuple[float, float]:
        """Sum and count of a metric; (0, 0): nothing is known. Times are milliseconds, cost is US dollars."""
        calls = float(self.calls)
        match key:
            case "error_rate":
                return float(self.failed), calls
            case "latency_mean":
                return self.total_us / 1e3, calls
            case "first_chunk_mean":
                return self.first_chunk_us / 1e3, float(self.first_chunks)
            case "cost":
                return self.cost_nano_usd / 1e9, float(self.costs)
            case "tokens":
                return float(self.tokens), float(self.tokens_told)
            case "rating":
                return self.rating, float(self.ratings)
            case "complaint_rate":
                return float(self.complaints), calls
        if key.startswith(_SLOW):
            bound = bucket_of(float(key.removeprefix(_SLOW)))
            return float(sum([count for bucket, count in self.buckets.items() if bucket > bound])), calls
        if key.startswith(_SCORE):
            found = self.scores.get(key.removeprefix(_SCORE))
        else:
            found = self.attributes.get(key.removeprefix(_ATTRIBUTE))
        return (found[1], found[0]) if found is not None else (0.0, 0.0)

    def plain(self) -> list[Any]:
        return [getattr(self, name) for name in _FIELDS]

    @classmethod
    def of(cls, plain: list[Any]) -> Sums:
        made = cls()
        for name, value in zip(_FIELDS, plain, strict=True):
            setattr(made, name, value)
        return made


_FIELDS: Final = Sums.__slots__


class UnitSums:
    """One unit. `seen` since it has a variant, `history` before."""

    __slots__ = ("history", "seen")

    def __init__(self, seen: Sums | None = None, history: Sums | None = None):
        self.seen = seen or Sums()
        self.history = history or Sums()

    def part(self, variant: str) -> Sums:
        """Where calls with this variant count."""
        return self.seen if variant else self.history

    def vector(self, key: str) -> Vector:
        """A metric's sum and count, and those of its history."""
        return (*self.seen.pair(key), *self.history.pair(key))

    def encode(self) -> bytes:
        history = self.history.plain() if self.history.calls else None
        packed = msgpack.packb([self.seen.plain(), history])
        assert packed is not None
        return bytes((VERSION,)) + packed

    @classmethod
    def decode(cls, data: bytes) -> UnitSums:
        """ValueError: these are other bytes."""
        if data[:1] != bytes((VERSION,)):
            raise ValueError("these bytes are no sums of a unit that this version reads")
        seen, history = msgpack.unpackb(data[1:], strict_map_key=False)
        return cls(Sums.of(seen), Sums.of(history) if history is not None else None)


def bucket_of(value_ms: float) -> int:
    """The bucket of an exponential histogram: its upper bound, inclusive, is `quantiles.upper_bound_of`."""
    return ceil(log2(value_ms) * (1 << SCALE)) - 1 if value_ms > 0.0 else LOWEST


def _count(rows: dict[str, list[float]], name: str, value: float, sign: int) -> None:
    if not isfinite(value):
        return
    row = rows.get(name)
    if row is None:
        if len(rows) >= MAX_NAMES:
            return
        row = rows[name] = [0.0, 0.0]
    row[0] += sign
    row[1] += sign * value
