"""The reply cache of one agent: LRU or LFU over a byte budget, freshness in time, tags.

Always holds: the weights of what is kept never sum to more than `max_bytes`; nothing is served past `stale_until` but
to those who ask for a late one; counters agree with the content; the work of one `get` or `put` is bounded by what it
evicts. `now` is wall clock in unix seconds. An entry past its life goes when it is asked for, when space is needed, or
when the sweep, which every `put` moves on by a few entries, comes by: LFU without it would keep dead entries for their
past popularity. With `keep_s` an entry lives for so long after it was fresh at least, past `stale_until` for those
alone who ask for a late one.

Deliberately not here: keys (engines `cache_key`), invalidation of what has yet to be written (engines `epochs`: bump
the epoch first, then purge to free memory), single-flight, disk.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from operator import attrgetter
from random import Random
from typing import Any, Final

import cachetools

from outrider_sidecar.core.entry import Entry

__all__ = ["Cache", "Entry", "TierCount"]

TIERS: Final = ("llm", "tool", "raw")
STRATEGIES: Final = ("lru", "lfu")
_MISS: Final[tuple[None, bool]] = (None, False)
_SWEEP_EVERY: Final = 64  # puts; a sweep in passing would cost each of them a microsecond more
_SWEPT: Final = 128  # entries then: twice the puts, so that a round ends
_ROUND_S: Final = 10.0  # a round takes so long at least: entries that are visited leave the processor's cache cold
_CLOCK_SLACK_S: Final = 60.0


_COUNTED: Final = ("bytes", "entries", "hits", "misses", "stale", "stored")


class TierCount:
    """Counters of one tier. All but `bytes` and `entries` only ever rise."""

    __slots__ = _COUNTED

    def __init__(self) -> None:
        self.hits = 0  # answered fresh
        self.stale = 0  # answered stale, to be revalidated
        self.misses = 0
        self.stored = 0
        self.entries = 0
        self.bytes = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in _COUNTED}


class Lru:
    """Entries in the order of their last use. One C call each, where cachetools.LRUCache takes 1 to 3 us."""

    __slots__ = ("_order", "entries")

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, Entry] = OrderedDict()
        # The same one: one table to look into, by the fast calls of a dict.
        self.entries: dict[bytes, Entry] = self._order

    def use(self, key: bytes) -> None:
        self._order.move_to_end(key)

    def add(self, entry: Entry, replaces: bool) -> None:
        """An entry; one that replaces another of its key is a use of it."""
        self.entries[entry.key] = entry
        if replaces:
            self._order.move_to_end(entry.key)

    def remove(self, key: bytes) -> None:
        del self.entries[key]

    def pop(self) -> Entry:
        """Take out what goes next."""
        return self._order.popitem(last=False)[1]

    def clear(self) -> None:
        self.entries.clear()


class Lfu(Lru):
    """Entries by how often they were used, the oldest first among equals."""

    __slots__ = ("_store",)

    def __init__(self) -> None:
        super().__init__()
        self.entries = {}
        # The budget is kept by Cache itself: it has to see what leaves, and a new size is then a number, not a rebuild.
        self._store: cachetools.LFUCache[bytes, None] = cachetools.LFUCache(sys.maxsize)

    def use(self, key: bytes) -> None:
        self._store[key]

    def add(self, entry: Entry, replaces: bool) -> None:
        self.entries[entry.key] = entry
        self._store[entry.key] = None

    def remove(self, key: bytes) -> None:
        del self._store[key]
        del self.entries[key]

    def pop(self) -> Entry:
        return self.entries.pop(self._store.popitem()[0])

    def clear(self) -> None:
        self._store.clear()
        self.entries.clear()


class Cache:
    """One agent's replies.

    `jitter` shortens each TTL by up to that share, so that entries stored together do not expire together and none
    outlives the TTL. For `stale_ratio` times its fresh life an entry is still served, marked stale.
    """

    __slots__ = (
        "_cursor",
        "_entries",
        "_order",
        "_rng",
        "_sweep_at",
        "_tags",
        "_unswept",
        "by_tier",
        "evictions",
        "expired",
        "jitter",
        "keep_s",
        "max_bytes",
        "max_object_bytes",
        "purged",
        "refused_too_large",
        "size_bytes",
        "stale_ratio",
        "strategy",
    )

    def __init__(
        self,
        strategy: str,
        max_bytes: int,
        max_object_bytes: int,
        jitter: float,
        stale_ratio: float,
        rng: Random,
        keep_s: float = 0.0,
    ):
        self._order = _new_order(strategy)
        self._entries: dict[bytes, Entry] = self._order.entries
        self.size_bytes = 0  # weight of all that is kept
        self._rng = rng
        self._tags: dict[str, set[bytes]] = {}
        self._cursor: list[bytes] = []  # keys the sweep has still to visit in this round
        self._unswept = 0  # puts since the last sweep
        self._sweep_at = 0.0  # not before, but where the clock was set back
        self.by_tier = {tier: TierCount() for tier in TIERS}
        self.evictions = 0  # for space
        self.expired = 0  # past their life
        self.purged = 0  # by request
        self.refused_too_large = 0
        self.strategy = strategy
        self.max_bytes = max_bytes
        self.max_object_bytes = max_object_bytes
        self.jitter = jitter
        self.stale_ratio = stale_ratio
        self.keep_s = keep_s

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(
        self, key: bytes, now: float, max_age_s: float | None = None, tier: str = "raw", late: bool = False
    ) -> tuple[Entry | None, bool]:
        """(entry, False) when fresh, (entry, True) when it may be served while it is revalidated, else (None, False).

        `max_age_s` is the caller's own bound on the age (RFC 9111 5.2.1.1): it also rules stale entries out, but an
        entry too old for this caller stays for others. `tier` is where a miss is counted. `late`: an entry is stale
        for `keep_s` at least.
        """
        entry = self._entries.get(key)
        if entry is None:
            self.by_tier[tier].misses += 1
            return _MISS
        self._order.use(key)
        if max_age_s is not None and (now - entry.stored_at > max_age_s or now >= entry.fresh_until):
            self.by_tier[tier].misses += 1
            return _MISS
        if now < entry.fresh_until:
            self.by_tier[entry.tier].hits += 1
            entry.used_at = now
            entry.uses += 1
            return entry, False
        if now < entry.stale_until or (late and now < entry.fresh_until + self.keep_s):
            self.by_tier[entry.tier].stale += 1
            entry.used_at = now
            entry.uses += 1
            return entry, True
        if now >= entry.fresh_until + self.keep_s:
            self._remove(entry)
            self.expired += 1
        self.by_tier[tier].misses += 1
        return _MISS

    def put(self, entry: Entry, ttl_s: float, now: float) -> bool:
        """Store under `entry.key`, in place of what is there; False when it is too large or would not live.

        `max_object_bytes` is compared with the weight, so a reply of many small chunks counts what it costs. An entry
        is stored at most once: readers may hold it.
        """
        if entry.weight_bytes > self.max_object_bytes or entry.weight_bytes > self.max_bytes:
            self.refused_too_large += 1
            return False
        if ttl_s <= 0:
            return False
        fresh_s = ttl_s * (1.0 - self.jitter * self._rng.random())
        entry.stored_at = entry.used_at = now
        entry.fresh_until = now + fresh_s
        entry.stale_until = entry.fresh_until + fresh_s * self.stale_ratio
        self._place(entry)
        self.by_tier[entry.tier].stored += 1
        self._unswept += 1
        if self._unswept >= _SWEEP_EVERY and not self._sweep_at - _ROUND_S <= now < self._sweep_at:
            self._unswept = 0
            self._sweep_at = now + _ROUND_S * min(1.0, _SWEPT / len(self._entries))
            self.sweep(now, _SWEPT)
        return True

    def restore(self, entry: Entry, now: float) -> bool:
        """Take back an entry of a snapshot as it was, coldest first. It never displaces anything.

        An entry stored in the future is refused: the clock has been set back and its age cannot be known.
        """
        if (
            self._is_dead(entry, now)
            or entry.stored_at > now + _CLOCK_SLACK_S
            or entry.tier not in self.by_tier
            or entry.key in self._entries
            or entry.weight_bytes > self.max_object_bytes
            or self.size_bytes + entry.weight_bytes > self.max_bytes
        ):
            return False
        self._place(entry)
        return True

    def remove(self, key: bytes) -> bool:
        """Drop one entry; False when there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._remove(entry)
        self.purged += 1
        return True

    def purge_tag(self, tag: str) -> int:
        """Drop every entry that carries the tag; how many there were."""
        keys = tuple(self._tags.get(tag, ()))
        for key in keys:
            self.remove(key)
        return len(keys)

    def clear(self) -> int:
        """Drop everything; how many there were. Counters stay."""
        count = len(self._entries)
        self._order.clear()
        self.size_bytes = 0
        self._tags.clear()
        self._cursor.clear()
        for tier in self.by_tier.values():
            tier.entries = tier.bytes = 0
        self.purged += count
        return count

    def sweep(self, now: float, count: int) -> int:
        """Visit the next `count` entries of the round and drop those past their life; how many were dropped."""
        cursor = self._cursor
        if not cursor:
            self._cursor = cursor = list(self._entries)
        dropped = 0
        for _ in range(min(count, len(cursor))):
            key = cursor.pop()
            entry = self._entries.get(key)
            if entry is not None and self._is_dead(entry, now):
                self._remove(entry)
                dropped += 1
        self.expired += dropped
        return dropped

    def _is_dead(self, entry: Entry, now: float) -> bool:
        return now >= entry.stale_until and now >= entry.fresh_until + self.keep_s

    def reconfigure(
        self,
        strategy: str,
        max_bytes: int,
        max_object_bytes: int,
        jitter: float,
        stale_ratio: float,
        keep_s: float = 0.0,
    ) -> None:
        """Apply changed policy, keeping the hottest that fit. Lives already given stay as they are.

        A new strategy rebuilds the store in order of heat, about 1 us an entry; frequencies start anew.
        """
        if strategy != self.strategy:
            coldest_first = self.entries()[::-1]
            self._order = _new_order(strategy)
            self._entries = self._order.entries
            for entry in coldest_first:
                self._order.add(entry, False)
            self.strategy = strategy
        if max_object_bytes < self.max_object_bytes:
            for entry in list(self._entries.values()):
                if entry.weight_bytes > max_object_bytes:
                    self._remove(entry)
                    self.evictions += 1
        self.max_bytes = max_bytes
        self.max_object_bytes = max_object_bytes
        self.jitter = jitter
        self.stale_ratio = stale_ratio
        self.keep_s = keep_s
        while self.size_bytes > max_bytes:
            self._evict()

    def entries(self) -> list[Entry]:
        """All entries, hottest first by the strategy in force: a list of the caller's own."""
        by_heat = attrgetter("uses", "used_at") if self.strategy == "lfu" else attrgetter("used_at", "uses")
        return sorted(self._entries.values(), key=by_heat, reverse=True)

    def stats(self) -> dict[str, Any]:
        """Counters and sizes, in total and by tier, for the operator."""
        tiers = {tier: count.as_dict() for tier, count in self.by_tier.items()}
        total = {name: sum([tier[name] for tier in tiers.values()]) for name in _COUNTED}
        return {
            "strategy": self.strategy,
            "max_bytes": self.max_bytes,
            **total,
            "evictions": self.evictions,
            "expired": self.expired,
            "purged": self.purged,
            "refused_too_large": self.refused_too_large,
            "by_tier": tiers,
        }

    def _place(self, entry: Entry) -> None:
        key = entry.key
        old = self._entries.get(key)
        needed = entry.weight_bytes - (old.weight_bytes if old is not None else 0)
        while self.size_bytes + needed > self.max_bytes:
            if self._evict() is old:
                old = None
                needed = entry.weight_bytes
        if old is not None:
            self._forget(old)
        self._order.add(entry, old is not None)
        self.size_bytes += entry.weight_bytes
        tier = self.by_tier[entry.tier]
        tier.entries += 1
        tier.bytes += entry.weight_bytes
        for tag in entry.tags:
            self._tags.setdefault(tag, set()).add(key)

    def _evict(self) -> Entry:
        entry = self._order.pop()
        self._forget(entry)
        self.evictions += 1
        return entry

    def _remove(self, entry: Entry) -> None:
        self._order.remove(entry.key)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """What is counted of an entry that has left the store, or is about to."""
        self.size_bytes -= entry.weight_bytes
        tier = self.by_tier[entry.tier]
        tier.entries -= 1
        tier.bytes -= entry.weight_bytes
        for tag in entry.tags:
            keys = self._tags.get(tag)
            if keys is not None:
                keys.discard(entry.key)
                if not keys:
                    del self._tags[tag]


def _new_order(strategy: str) -> Lru:
    if strategy not in STRATEGIES:
        raise ValueError(f"cache strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    return Lru() if strategy == "lru" else Lfu()
