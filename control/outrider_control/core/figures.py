"""Figures: sums over samples, from which everything an operator reads is taken.

Always holds: adding samples in any order, and merging figures in any order, gives the same figures (but for which
names past 64 are counted under "(other)"); what did not happen takes no room. Times are microseconds, costs
nano-dollars: whole numbers that add up exactly.

Deliberately not here: per-second rates (they need a time span: whoever asks has it), windows and keys
(`core.windows`).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from operator import add
from typing import NamedTuple

from outrider_control.core.histogram import Histogram, HistogramSum
from outrider_control.core.sample import OTHER, Sample

SERVED = ("hit", "stale", "coalesced")  # cache verdicts of calls that did not reach the agent
ELIGIBLE = (*SERVED, "miss")
VERDICTS = (*ELIGIBLE, "bypass")
MAX_NAMES = 64  # statuses, and verdicts by tier, that are told apart in one place
MAX_NAME = 64  # characters of one

_VERSION = 1
_HEAD = struct.Struct("<BBBBH")  # version, histograms there are, numbers, type of numbers, bytes of names
_LENGTH = struct.Struct("<H")
_NUMBERS = (
    "requests",
    "errors",
    "cancelled",
    "dropped",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cached_tokens",
    "saved_tokens",
    "cost_nano_usd",
    "priced",
    "unpriced",
)
_HISTOGRAMS = ("total", "first_chunk", "queue")
_TYPES = "BHIQ"
_LIMITS = (1 << 8, 1 << 16, 1 << 32, 1 << 64)
_OTHERS = (OTHER, OTHER)
_SWAP = sys.byteorder != "little"


class Figures:
    """What calls did, and what spans said of tokens and cost.

    `cache` counts calls by (verdict, tier), `statuses` by gRPC status name without OK. `queue` holds the waits there
    were: calls that did not wait are `requests` less its count (see `queue_us`). `dropped`: spans that are lacking.
    """

    __slots__ = (
        "cache",
        "cache_read_tokens",
        "cache_write_tokens",
        "cached_tokens",
        "cancelled",
        "cost_nano_usd",
        "dropped",
        "errors",
        "first_chunk",
        "input_tokens",
        "output_tokens",
        "priced",
        "queue",
        "requests",
        "saved_tokens",
        "statuses",
        "total",
        "unpriced",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.cancelled = 0
        self.dropped = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cache_read_tokens = 0
        self.cache_write_tokens = 0
        self.cached_tokens = 0
        self.saved_tokens = 0
        self.cost_nano_usd = 0
        self.priced = 0
        self.unpriced = 0
        self.total: Histogram | None = None
        self.first_chunk: Histogram | None = None
        self.queue: Histogram | None = None
        self.cache: dict[tuple[str, str], int] | None = None
        self.statuses: dict[str, int] | None = None

    def add(self, sample: Sample) -> None:
        """Counts one span."""
        if sample.call:
            self._add_call(sample)
        if sample.queue_us > 0:
            if self.queue is None:
                self.queue = Histogram()
            self.queue.add(sample.queue_us)
        if sample.cache:
            cache = self.cache
            if cache is None:
                cache = self.cache = {}
            _count(cache, (sample.cache, sample.tier), _OTHERS, 1)
        if sample.priced or sample.unpriced or sample.cached_tokens or sample.saved_tokens:
            self._add_tokens(sample)

    def _add_call(self, sample: Sample) -> None:
        if self.total is None:
            self.total = Histogram()
        self.total.add(sample.total_us)  # first: what it refuses is not counted at all
        self.requests += 1
        if sample.failed:
            self.errors += 1
        elif sample.cancelled:
            self.cancelled += 1
        status = sample.status
        if status != "OK" and status:
            statuses = self.statuses
            if statuses is None:
                statuses = self.statuses = {}
            _count(statuses, status, OTHER, 1)
        if sample.first_chunk_us > 0:
            if self.first_chunk is None:
                self.first_chunk = Histogram()
            self.first_chunk.add(sample.first_chunk_us)

    def _add_tokens(self, sample: Sample) -> None:
        self.input_tokens += sample.input_tokens
        self.output_tokens += sample.output_tokens
        self.cache_read_tokens += sample.cache_read_tokens
        self.cache_write_tokens += sample.cache_write_tokens
        self.cached_tokens += sample.cached_tokens
        self.saved_tokens += sample.saved_tokens
        self.cost_nano_usd += sample.cost_nano_usd
        self.priced += sample.priced
        self.unpriced += sample.unpriced

    def merge(self, other: Figures) -> None:
        """Adds the other's; the other stays as it is."""
        self.requests += other.requests
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.dropped += other.dropped
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cache_read_tokens += other.cache_read_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.cached_tokens += other.cached_tokens
        self.saved_tokens += other.saved_tokens
        self.cost_nano_usd += other.cost_nano_usd
        self.priced += other.priced
        self.unpriced += other.unpriced
        self.total = _merged(self.total, other.total)
        self.first_chunk = _merged(self.first_chunk, other.first_chunk)
        self.queue = _merged(self.queue, other.queue)
        if other.cache:
            cache = self.cache = self.cache or {}
            for key, count in other.cache.items():
                _count(cache, key, _OTHERS, count)
        if other.statuses:
            statuses = self.statuses = self.statuses or {}
            for status, count in other.statuses.items():
                _count(statuses, status, OTHER, count)

    # What is read. None: not known, or nothing to take it from.

    @property
    def success_rate(self) -> float | None:
        """Of the calls that their caller did not cancel."""
        finished = self.requests - self.cancelled
        return (finished - self.errors) / finished if finished else None

    @property
    def error_rate(self) -> float | None:
        """Of the calls that their caller did not cancel."""
        finished = self.requests - self.cancelled
        return self.errors / finished if finished else None

    def total_us(self, *qs: float) -> list[float | None]:
        """Quantiles of the whole call."""
        return self.total.quantiles(qs) if self.total else [None] * len(qs)

    def first_chunk_us(self, *qs: float) -> list[float | None]:
        """Quantiles of the time to the first chunk."""
        return self.first_chunk.quantiles(qs) if self.first_chunk else [None] * len(qs)

    def queue_us(self, *qs: float) -> list[float | None]:
        """Quantiles of the wait for admission over all calls, those that did not wait included."""
        if self.queue is None:
            return [0.0 if self.requests else None] * len(qs)
        return self.queue.quantiles(qs, max(self.requests - self.queue.count, 0))

    @property
    def mean_us(self) -> float | None:
        """Of the whole call, exact."""
        return self.total.mean if self.total else None

    @property
    def verdicts(self) -> dict[str, int]:
        """Calls by cache verdict, over all tiers."""
        found: dict[str, int] = {}
        for (verdict, _), count in (self.cache or {}).items():
            found[verdict] = found.get(verdict, 0) + count
        return found

    @property
    def hit_rate(self) -> float | None:
        """(hit + stale + coalesced) / calls that could have been."""
        return _share(self.verdicts)

    @property
    def hit_rates(self) -> dict[str, float]:
        """The same by tier: served calls of a tier over eligible ones of it. Calls without one are left out."""
        tiers: dict[str, dict[str, int]] = {}
        for (verdict, tier), count in (self.cache or {}).items():
            tiers.setdefault(tier, {})[verdict] = count
        shares = {tier: _share(verdicts) for tier, verdicts in sorted(tiers.items()) if tier}
        return {tier: share for tier, share in shares.items() if share is not None}

    @property
    def cost_usd(self) -> float | None:
        """What the priced tokens cost; None where there was no call that could be priced."""
        return self.cost_nano_usd / 1e9 if self.priced else None

    # Bytes

    def encode(self) -> bytes:
        """Compact bytes."""
        cache, statuses = self.cache or {}, self.statuses or {}
        numbers = [getattr(self, name) for name in _NUMBERS]
        names = b""
        if cache or statuses:
            texts = [text for key in cache for text in key]
            names = "\0".join((str(len(cache)), *texts, *statuses)).encode("utf-8", "replace")
            numbers += (*cache.values(), *statuses.values())
        else:
            while numbers and not numbers[-1]:
                numbers.pop()
        if numbers and (min(numbers) < 0 or max(numbers) >= _LIMITS[-1]):  # absurd tokens must not stop the store
            numbers = [min(max(number, 0), _LIMITS[-1] - 1) for number in numbers]
        kind = next(number for number, limit in enumerate(_LIMITS) if max(numbers, default=0) < limit)
        packed = array(_TYPES[kind], numbers)
        if _SWAP:
            packed.byteswap()
        parts = [b"", packed.tobytes(), names]
        there = 0
        for place, histogram in enumerate((self.total, self.first_chunk, self.queue)):
            if histogram is not None and histogram.count:
                there |= 1 << place
                encoded = histogram.encode()
                parts += (_LENGTH.pack(len(encoded)), encoded)
        parts[0] = _HEAD.pack(_VERSION, there, len(numbers), kind, len(names))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Figures:
        """What `encode` gave. ValueError: it is not that."""
        parts = _parts(data)
        self = cls()
        self._take(parts.numbers, parts.names)
        for name, encoded in zip(_HISTOGRAMS, parts.histograms, strict=True):
            if encoded:
                setattr(self, name, Histogram.decode(encoded))
        return self

    def _take(self, numbers: Sequence[int], names: bytes) -> None:
        for name, number in zip(_NUMBERS, numbers, strict=False):
            setattr(self, name, number)
        if names:
            cache, statuses = _names(names)
            counts = numbers[len(_NUMBERS) :]
            if len(counts) != len(cache) + len(statuses):
                raise ValueError("not figures: names without numbers")
            self.cache = dict(zip(cache, counts, strict=False)) or None
            self.statuses = dict(zip(statuses, counts[len(cache) :], strict=True)) or None
        elif len(numbers) > len(_NUMBERS):
            raise ValueError("not figures: numbers without names")


class FiguresSum:
    """Adds up many encoded figures faster than by decoding each: what questions over many windows are made of."""

    __slots__ = ("_histograms", "_numbers")

    def __init__(self) -> None:
        self._numbers: dict[bytes, list[int]] = {}  # by the names they go with
        self._histograms: list[HistogramSum | None] = [None] * len(_HISTOGRAMS)

    def add(self, data: bytes) -> None:
        """Adds what `Figures.encode` gave. ValueError: it is not that."""
        numbers, names, histograms = _parts(data)
        found = self._numbers.get(names)
        if found is None:
            Figures()._take(numbers, names)  # for its ValueError
            self._numbers[names] = found = list(numbers)
        elif len(numbers) > len(found):
            self._numbers[names] = [*map(add, found, numbers), *numbers[len(found) :]]
        elif len(numbers) < len(found):
            found[: len(numbers)] = map(add, found, numbers)
        else:
            found[:] = map(add, found, numbers)
        for place, encoded in enumerate(histograms):
            if encoded:
                summing = self._histograms[place]
                if summing is None:
                    summing = self._histograms[place] = HistogramSum()
                summing.add(encoded)

    def figures(self) -> Figures:
        """Everything together; nothing can be added after that."""
        together = Figures()
        for names, numbers in self._numbers.items():
            part = Figures()
            part._take(numbers, names)
            together.merge(part)
        for name, summing in zip(_HISTOGRAMS, self._histograms, strict=True):
            if summing is not None:
                setattr(together, name, summing.histogram())
        return together


class _Parts(NamedTuple):
    numbers: array[int]
    names: bytes
    histograms: list[bytes]  # b"": there is none


def _parts(data: bytes) -> _Parts:
    """What encoded figures consist of. ValueError: they are none."""
    try:
        version, there, size, kind, names_bytes = _HEAD.unpack_from(data)
        if version != _VERSION or there >> len(_HISTOGRAMS) or kind >= len(_TYPES):
            raise ValueError("not figures: unknown version or parts")
        numbers = array(_TYPES[kind])
        names_at = _HEAD.size + size * numbers.itemsize
        at = names_at + names_bytes
        if at > len(data):
            raise ValueError("not figures: cut short")
        numbers.frombytes(data[_HEAD.size : names_at])
        if _SWAP:
            numbers.byteswap()
        names = data[names_at:at]
        if size > len(_NUMBERS) and not names:
            raise ValueError("not figures: numbers without names")
        histograms = [b""] * len(_HISTOGRAMS)
        for place in range(len(_HISTOGRAMS)):
            if there & 1 << place:
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size + length
                histograms[place] = data[at - length : at]
    except struct.error as error:
        raise ValueError(f"not figures: {error}") from None
    if at != len(data):
        raise ValueError("not figures: wrong length")
    return _Parts(numbers, names, histograms)


def merged(parts: Sequence[Figures]) -> Figures:
    """All of them together, in figures of their own."""
    together = Figures()
    for part in parts:
        together.merge(part)
    return together


def _count(counts: dict, key: str | tuple[str, str], other: str | tuple[str, str], count: int) -> None:
    """Counts under a key, or under the one for names past the bound and for what is no name."""
    if key not in counts:
        texts = (key,) if isinstance(key, str) else key
        if len(counts) >= MAX_NAMES or not all(text.isprintable() and len(text) <= MAX_NAME for text in texts):
            key = other
    counts[key] = counts.get(key, 0) + count


def _merged(mine: Histogram | None, other: Histogram | None) -> Histogram | None:
    if other is not None:
        if mine is None:
            mine = Histogram()
        mine.merge(other)
    return mine


def _share(verdicts: dict[str, int]) -> float | None:
    eligible = sum(verdicts.get(verdict, 0) for verdict in ELIGIBLE)
    return sum(verdicts.get(verdict, 0) for verdict in SERVED) / eligible if eligible else None


@lru_cache(maxsize=4096)
def _names(data: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """Keys of `cache` and of `statuses`. ValueError: not names."""
    size, *texts = data.decode("utf-8").split("\0")
    pairs = int(size)
    if not 0 <= 2 * pairs <= len(texts):
        raise ValueError("not figures: too few names")
    return list(zip(texts[: 2 * pairs : 2], texts[1 : 2 * pairs : 2], strict=True)), texts[2 * pairs :]
