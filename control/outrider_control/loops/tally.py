"""What has come of the units of splits, kept up to date: what experiments and rollouts are decided on.

Always holds: what is kept is a function of the rows in the store alone, so that any control plane that reads them
comes to the same; a unit that changed is taken out as it was counted and put in as it is; a unit that came with two
variants, or has made no call with one, decides nothing. A metric that is asked for anew is counted from the first row.

Deliberately not here: rows (`state.unit_sums`), what a unit's metric is (`core.unit_sums`), comparisons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from outrider_control.core.stats.moments import Moments
from outrider_control.core.stats.quantiles import BucketMoments
from outrider_control.core.unit_sums import UnitSums, Vector
from outrider_control.loops.experiment.types import Metric, VariantSeen
from outrider_control.state import unit_sums
from outrider_control.state.database import Database
from outrider_control.state.unit_sums import UnitRow

PORTION = 5_000  # rows of one read
SLICE = 500  # rows before others have their turn


class _Unit:
    """One unit as it was counted."""

    __slots__ = ("buckets", "calls", "feedback", "rating", "ratings", "variant", "vectors")

    def __init__(self, variant: str, sums: UnitSums, keys: Sequence[str], with_buckets: bool):
        seen = sums.seen
        self.variant = variant
        self.calls = seen.calls
        self.vectors: list[Vector] = [sums.vector(key) for key in keys]
        self.buckets = dict(seen.buckets) if with_buckets else None
        self.ratings = seen.ratings
        self.rating = seen.rating
        self.feedback = seen.ratings + seen.complaints


class _Variant:
    """Sums over the units of one variant."""

    def __init__(self, keys: Sequence[str]):
        self.units = 0
        self.calls = 0
        self.ratings = 0
        self.rating = 0.0
        self.feedback = 0
        self.moments = {key: Moments() for key in keys}
        self.buckets = BucketMoments()

    def change(self, unit: _Unit, sign: int) -> None:
        self.units += sign
        self.calls += sign * unit.calls
        self.ratings += sign * unit.ratings
        self.rating += sign * unit.rating
        self.feedback += sign * unit.feedback
        for moments, vector in zip(self.moments.values(), unit.vectors, strict=True):
            if vector[1] > 0.0:  # a unit of which nothing was counted is none of the metric's sample
                moments.add(vector) if sign > 0 else moments.remove(vector)
        if unit.buckets is not None:
            self.buckets.add(unit.buckets) if sign > 0 else self.buckets.remove(unit.buckets)

    def seen(self, name: str) -> VariantSeen:
        satisfaction = self.rating / self.ratings if self.ratings > 0 else None
        return VariantSeen(
            name, self.units, self.calls, dict(self.moments), self.buckets, max(0, self.feedback), satisfaction
        )


class _Split:
    """One split: its units as they were counted, up to a number of the counter."""

    def __init__(self, keys: Sequence[str], with_buckets: bool):
        self.keys = tuple(keys)
        self.with_buckets = with_buckets
        self.mark = 0
        self.flipped = 0
        self.variants: dict[str, _Variant] = {}
        self._units: dict[str, _Unit | None] = {}  # None: it decides nothing, for good

    def take(self, row: UnitRow) -> None:
        before = self._units.get(row.unit)
        if before is not None:
            self.variants[before.variant].change(before, -1)
        if row.flipped:
            if row.unit not in self._units or before is not None:
                self.flipped += 1
            self._units[row.unit] = None
            return
        if not row.variant or not row.sums.seen.calls:
            self._units.pop(row.unit, None)
            return
        unit = self._units[row.unit] = _Unit(row.variant, row.sums, self.keys, self.with_buckets)
        variant = self.variants.get(row.variant)
        if variant is None:
            variant = self.variants[row.variant] = _Variant(self.keys)
        variant.change(unit, 1)


class Tallies:
    """All splits that somebody decides on. `refresh` reads what is new, `seen` tells what is known."""

    def __init__(self, db: Database):
        self._db = db
        self._splits: dict[str, _Split] = {}
        self._wanted: dict[str, dict[str, bool]] = {}  # split -> metric keys -> whether it is of buckets
        self._kept: dict[str, set[str]] = {}  # by owner
        self._turn = asyncio.Lock()

    def want(self, split: str, metrics: Iterable[Metric]) -> None:
        """What is counted of a split from the next `refresh` on."""
        wanted = self._wanted.setdefault(split, {})
        for metric in metrics:
            wanted[metric.key] = metric.is_quantile

    def keep(self, owner: str, splits: Iterable[str]) -> None:
        """What one of those that decide needs; what none of them needs is forgotten."""
        self._kept[owner] = set(splits)
        names = set().union(*self._kept.values())
        for name in [name for name in self._wanted if name not in names]:
            del self._wanted[name]
            self._splits.pop(name, None)

    def forget(self, split: str) -> None:
        """It begins anew."""
        self._splits.pop(split, None)

    @property
    def attributes(self) -> set[str]:
        """Names of attributes of spans that are metrics now."""
        keys = {key for wanted in self._wanted.values() for key in wanted}
        return {key.removeprefix("attribute:") for key in keys if key.startswith("attribute:")}

    async def refresh(self, splits: Iterable[str] | None = None) -> None:
        """Read what has changed, of these or of all that are wanted. DatabaseError."""
        async with self._turn:
            for name in list(self._wanted if splits is None else splits):
                await self._refresh(name)

    async def _refresh(self, name: str) -> None:
        wanted = self._wanted.get(name)
        if wanted is None:
            return
        keys = sorted([key for key, is_bucket in wanted.items() if not is_bucket])
        with_buckets = any(wanted.values())
        split = self._splits.get(name)
        if split is None or not set(keys) <= set(split.keys) or (with_buckets and not split.with_buckets):
            split = _Split(keys, with_buckets)
        while True:
            rows = await self._db.read(unit_sums.changed_since, name, split.mark, PORTION)
            for at, row in enumerate(rows):
                split.take(row)
                if at % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
            if rows:
                split.mark = rows[-1].changed
            if len(rows) < PORTION:
                break
        if name in self._wanted:
            self._splits[name] = split

    def seen(self, split: str, metrics: Sequence[Metric]) -> Mapping[str, VariantSeen]:
        """Variants by name as of the last `refresh`; empty: nothing is known. What is asked for is wanted."""
        self.want(split, metrics)
        found = self._splits.get(split)
        return {name: one.seen(name) for name, one in found.variants.items()} if found is not None else {}

    def flipped(self, split: str) -> int:
        """Units that came with two variants."""
        found = self._splits.get(split)
        return found.flipped if found is not None else 0
