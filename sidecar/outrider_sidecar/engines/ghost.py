"""Ghost caches: what half, twice and four times the size, and the other strategy, would have answered.

Always holds: only keys are kept, at most `MAX_KEYS` in the largest ghost; sizes and keys are scaled by one sampling
rate, so what is reported is what the full-size cache would have done, within sampling error: `same` simulates the
cache as it is, and its distance from `actual` is that error. Sampling is by the key's own hash (SHARDS, Waldspurger
et al., FAST 2015), so a sampled key is followed through all its calls; where too many keys turn up the rate is halved
and what no longer belongs is dropped. Counts are halved as they grow, so that old traffic fades.

Keys have to be hashes (uniform in their first two bytes). Deliberately not here: advice drawn from the figures.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf

MAX_KEYS = 4_096
_FULL = 1 << 16  # threshold at which every key is sampled
_AIMED_OBJECTS = 1_024  # sampled objects in a ghost of the cache's own size
_MAX_RATE = 1 / 16  # keeps the mean cost of a lookup below 0.5 us; not needed where objects are large
_LARGE_BYTES = 32 * 1024
_GUESSED_BYTES = 2 * 1024  # mean object, until seen
_CALIBRATED_AFTER = 64  # sampled objects
_FADE_AFTER = 16_384  # sampled lookups

_SIZES = {"half": 0.5, "same": 1.0, "double": 2.0, "quadruple": 4.0}


class _LruGhost:
    """A simulated LRU cache: keys with (weight, expiry), coldest first."""

    __slots__ = ("_keys", "capacity_bytes", "hits", "size", "used_bytes")

    def __init__(self, size: float):
        self._keys: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self.size = size  # times the cache's own
        self.capacity_bytes = 0.0
        self.used_bytes = 0
        self.hits = 0.0

    def __len__(self) -> int:
        return len(self._keys)

    def record(self, key: bytes, item: tuple[int, float], now: float) -> None:
        """A lookup, and where it misses the store that follows."""
        keys = self._keys
        kept = keys.get(key)
        if kept is not None:
            if now < kept[1]:
                self.hits += 1.0
                keys.move_to_end(key)
                return
            self.used_bytes -= kept[0]
            del keys[key]
        weight = item[0]
        if 0 < weight <= self.capacity_bytes:
            keys[key] = item
            self.used_bytes += weight
            while self.used_bytes > self.capacity_bytes:
                self.used_bytes -= keys.popitem(last=False)[1][0]

    def resample(self, threshold: int, max_bytes: int) -> None:
        """Drop keys that are no longer sampled and fit the scaled capacity."""
        self.capacity_bytes = max_bytes * self.size * threshold / _FULL
        for key in [key for key in self._keys if (key[0] << 8 | key[1]) >= threshold]:
            self.used_bytes -= self._keys.pop(key)[0]
        while self.used_bytes > self.capacity_bytes:
            self.used_bytes -= self._keys.popitem(last=False)[1][0]


class _LfuGhost:
    """A simulated LFU cache: (weight, expiry, count) of each key, keys by count, oldest first within one count."""

    __slots__ = ("_by_count", "_items", "_least", "capacity_bytes", "hits", "size", "used_bytes")

    def __init__(self, size: float):
        self._items: dict[bytes, tuple[int, float, int]] = {}
        self._by_count: dict[int, dict[bytes, None]] = {}
        self._least = 1  # no count below this one is in use
        self.size = size
        self.capacity_bytes = 0.0
        self.used_bytes = 0
        self.hits = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def record(self, key: bytes, item: tuple[int, float], now: float) -> None:
        """A lookup, and where it misses the store that follows. A renewed entry keeps its count."""
        kept = self._items.get(key)
        weight, expires, count = *item, 1
        if kept is not None:
            count = kept[2] + 1
            if now < kept[1]:
                self.hits += 1.0
                weight, expires, _ = kept
            self._drop(key, kept)
        if 0 < weight <= self.capacity_bytes:
            while self.used_bytes + weight > self.capacity_bytes:
                self._evict()
            self._items[key] = (weight, expires, count)
            self.used_bytes += weight
            peers = self._by_count.get(count)
            if peers is None:
                self._by_count[count] = {key: None}
            else:
                peers[key] = None
            if count < self._least:
                self._least = count

    def resample(self, threshold: int, max_bytes: int) -> None:
        """Drop keys that are no longer sampled and fit the scaled capacity."""
        self.capacity_bytes = max_bytes * self.size * threshold / _FULL
        for key in [key for key in self._items if (key[0] << 8 | key[1]) >= threshold]:
            self._drop(key, self._items[key])
        while self.used_bytes > self.capacity_bytes:
            self._evict()

    def _evict(self) -> None:
        if self._least not in self._by_count:
            self._least = min(self._by_count)
        key = next(iter(self._by_count[self._least]))
        self._drop(key, self._items[key])

    def _drop(self, key: bytes, kept: tuple[int, float, int]) -> None:
        weight, _, count = kept
        del self._items[key]
        self.used_bytes -= weight
        peers = self._by_count[count]
        del peers[key]
        if not peers:
            del self._by_count[count]


_GHOSTS: dict[str, type[_LruGhost | _LfuGhost]] = {"lru": _LruGhost, "lfu": _LfuGhost}


class Ghosts:
    """The ghosts of one cache of `max_bytes` under `strategy`."""

    __slots__ = (
        "_actual_hits",
        "_first_byte",
        "_ghosts",
        "_largest",
        "_lookups",
        "_max_bytes",
        "_max_keys",
        "_other",
        "_samples",
        "_seen_bytes",
        "_seen_objects",
        "_strategy",
        "_threshold",
    )

    def __init__(self, strategy: str, max_bytes: int, max_keys: int = MAX_KEYS):
        self._max_keys = max_keys
        self.reset(strategy, max_bytes)

    def reset(self, strategy: str, max_bytes: int, mean_bytes: float = 0.0) -> None:
        """Start anew, for a cache of another kind or size. `mean_bytes`: weight of an object, 0 where unknown."""
        mean = mean_bytes or _GUESSED_BYTES
        rate = min(1.0 if mean >= _LARGE_BYTES else _MAX_RATE, _AIMED_OBJECTS * mean / max(max_bytes, 1))
        self._strategy = strategy
        self._other = "lfu" if strategy == "lru" else "lru"
        self._max_bytes = max_bytes
        self._ghosts: dict[str, _LruGhost | _LfuGhost] = {
            name: _GHOSTS[strategy](size) for name, size in _SIZES.items()
        }
        self._ghosts[self._other] = _GHOSTS[self._other](1.0)
        self._largest = self._ghosts["quadruple"]
        self._lookups = self._samples = self._actual_hits = 0.0
        self._seen_objects = _CALIBRATED_AFTER if mean_bytes else 0
        self._seen_bytes = 0
        self._sample(max(1, int(_FULL * rate)))

    def record(self, key: bytes, weight_bytes: int, hit: bool, now: float = 0.0, ttl_s: float = inf) -> None:
        """One lookup whose outcome is known: on a hit the entry's weight, on a miss the weight it is stored with.

        `weight_bytes` 0: not stored. `hit` is what the cache itself did; stale answers count as hits.
        """
        self._lookups += 1.0
        if hit:
            self._actual_hits += 1.0
        first = key[0]
        if first > self._first_byte or (first << 8 | key[1]) >= self._threshold:
            return
        self._samples += 1.0
        item = (weight_bytes, now + ttl_s)
        for ghost in self._ghosts.values():
            ghost.record(key, item, now)
        if self._seen_objects < _CALIBRATED_AFTER:
            self._calibrate(weight_bytes)
        if len(self._largest) > self._max_keys and self._threshold > 1:
            self._halve()
        if self._samples >= _FADE_AFTER:
            self._fade()

    def report(self) -> dict[str, float | None]:
        """Hit rates (None before the first sample) under `half same double quadruple`, the other strategy's name and
        `actual`; `samples`, the lookups they rest on; `sample_rate`, the share of keys that is followed."""
        lookups = self._lookups
        rate = self._threshold / _FULL
        # Whether the few hottest keys are among the sampled decides how many lookups are: what is missing (or too
        # much) are lookups of keys so hot that every ghost holds them (SHARDS-adj, section 5.1 of the paper).
        correction = lookups * rate - self._samples
        rates: dict[str, float | None] = dict.fromkeys((*self._ghosts, "actual"))
        if lookups:
            for name, ghost in self._ghosts.items():
                rates[name] = min(1.0, max(0.0, (ghost.hits + correction) / (lookups * rate)))
            rates["actual"] = self._actual_hits / lookups
        rates["samples"] = int(self._samples)
        rates["sample_rate"] = rate
        return rates

    def _calibrate(self, weight_bytes: int) -> None:
        if weight_bytes:
            self._seen_objects += 1
            self._seen_bytes += weight_bytes
            if self._seen_objects == _CALIBRATED_AFTER:
                self.reset(self._strategy, self._max_bytes, self._seen_bytes / _CALIBRATED_AFTER)

    def _sample(self, threshold: int) -> None:
        self._threshold = threshold
        self._first_byte = threshold - 1 >> 8
        for ghost in self._ghosts.values():
            ghost.resample(threshold, self._max_bytes)

    def _halve(self) -> None:
        self._sample(self._threshold // 2)
        self._samples *= 0.5
        for ghost in self._ghosts.values():
            ghost.hits *= 0.5

    def _fade(self) -> None:
        self._lookups *= 0.5
        self._actual_hits *= 0.5
        self._samples *= 0.5
        for ghost in self._ghosts.values():
            ghost.hits *= 0.5
