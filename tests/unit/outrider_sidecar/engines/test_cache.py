from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.entry import CHUNK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES, Entry, head_weight
from outrider_sidecar.engines.cache import TIERS, Cache

STRATEGIES = ("lru", "lfu")


def make_cache(strategy: str = "lru", max_bytes: int = 10_000, jitter: float = 0.0, stale: float = 0.25) -> Cache:
    return Cache(strategy, max_bytes, max_bytes, jitter, stale, random.Random(1))


def make_entry(key: str, weight: int = 2_000, tier: str = "llm", tags: tuple[str, ...] = ()) -> Entry:
    entry = Entry(key.encode(), "head", (b"x",), "trailers", head_bytes=0, tier=tier, tags=tags, tokens=(3, 4))
    entry.weight_bytes = weight
    return entry


def held(cache: Cache) -> set[str]:
    return {entry.key.decode() for entry in cache.entries()}


def test_weight_counts_body_chunks_head_and_tags():
    plain = Entry(b"k", None, (b"a" * 100, b"b" * 50), None, head_bytes=70)
    assert plain.weight_bytes == ENTRY_OVERHEAD_BYTES + 150 + 2 * CHUNK_OVERHEAD_BYTES + 70
    tagged = Entry(b"k", None, (b"a" * 100, b"b" * 50), None, head_bytes=70, tags=("news",))
    assert tagged.weight_bytes > plain.weight_bytes + 4
    assert head_weight(((b"name", b"value"),), ()) > 2 * len(b"namevalue")


def test_too_many_or_too_long_tags_are_refused():
    with pytest.raises(ValueError, match="at most 16 tags"):
        Entry(b"k", None, (), None, head_bytes=0, tags=tuple(map(str, range(17))))
    with pytest.raises(ValueError, match="256 characters"):
        Entry(b"k", None, (), None, head_bytes=0, tags=("x" * 257,))


def test_fresh_then_stale_then_gone():
    cache = make_cache()
    entry = make_entry("a")
    assert cache.put(entry, 100.0, now=1_000.0)
    assert cache.get(b"a", 1_099.9) == (entry, False)
    assert cache.get(b"a", 1_100.0) == (entry, True)
    assert cache.get(b"a", 1_124.9) == (entry, True)
    assert cache.get(b"a", 1_125.0, tier="llm") == (None, False)
    assert len(cache) == 0
    llm = cache.by_tier["llm"]
    assert (llm.hits, llm.stale, llm.misses, cache.expired) == (1, 2, 1, 1)


def test_a_miss_counts_in_the_tier_that_asked_and_a_hit_in_the_entrys():
    cache = make_cache()
    cache.put(make_entry("a", tier="tool"), 60.0, now=0.0)
    cache.get(b"b", 1.0, tier="llm")
    cache.get(b"a", 1.0, tier="llm")
    assert cache.by_tier["llm"].misses == 1
    assert cache.by_tier["tool"].hits == 1
    assert cache.by_tier["llm"].hits == 0


def test_max_age_is_the_callers_own_and_rules_stale_out():
    cache = make_cache()
    entry = make_entry("a")
    cache.put(entry, 100.0, now=0.0)
    assert cache.get(b"a", 50.0, max_age_s=49.0) == (None, False)
    assert cache.get(b"a", 50.0, max_age_s=50.0) == (entry, False)
    assert cache.get(b"a", 110.0, max_age_s=1_000.0) == (None, False)
    assert cache.get(b"a", 110.0) == (entry, True)


def test_jitter_only_shortens_a_life_and_spreads_it():
    cache = make_cache(max_bytes=10**9, jitter=0.1)
    lives = []
    for number in range(500):
        entry = make_entry(str(number))
        cache.put(entry, 100.0, now=10.0)
        lives.append(entry.fresh_until - 10.0)
    assert 90.0 <= min(lives) < 91.0
    assert 99.0 < max(lives) <= 100.0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_too_large_objects_are_refused_and_displace_nothing(strategy: str):
    cache = Cache(strategy, 10_000, 3_000, 0.0, 0.0, random.Random(1))
    cache.put(make_entry("a", 3_000), 10.0, now=0.0)
    assert not cache.put(make_entry("b", 3_001), 10.0, now=0.0)
    assert held(cache) == {"a"}
    assert cache.refused_too_large == 1


def test_no_life_means_not_stored():
    cache = make_cache()
    assert not cache.put(make_entry("a"), 0.0, now=0.0)
    assert len(cache) == 0


def test_lru_evicts_the_least_recently_used():
    cache = make_cache("lru")
    for name in "abcde":
        cache.put(make_entry(name), 100.0, now=0.0)
    cache.get(b"a", 1.0)
    cache.put(make_entry("f"), 100.0, now=2.0)
    assert held(cache) == set("acdef")
    assert cache.evictions == 1


def test_lfu_evicts_the_least_frequently_used():
    cache = make_cache("lfu")
    for name in "abcde":
        cache.put(make_entry(name), 100.0, now=0.0)
    for name in (b"a", b"a", b"b", b"d", b"e"):
        cache.get(name, 1.0)
    cache.put(make_entry("f"), 100.0, now=2.0)
    assert held(cache) == set("abdef")


def test_a_renewed_lfu_entry_keeps_its_frequency():
    cache = make_cache("lfu")
    cache.put(make_entry("hot"), 100.0, now=0.0)
    for _ in range(10):
        cache.get(b"hot", 1.0)
    cache.put(make_entry("hot"), 100.0, now=2.0)
    for name in "abcdefg":
        cache.put(make_entry(name), 100.0, now=3.0)
        cache.get(name.encode(), 3.0)
    assert "hot" in held(cache)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replacing_by_something_larger_makes_room_and_counts_once(strategy: str):
    cache = make_cache(strategy)
    for name in "abcde":
        cache.put(make_entry(name), 100.0, now=0.0)
    cache.put(make_entry("a", 9_000), 100.0, now=1.0)
    assert held(cache) == {"a"}
    assert cache.size_bytes == 9_000
    assert cache.by_tier["llm"].entries == 1
    assert cache.by_tier["llm"].bytes == 9_000


def test_purge_by_tag_takes_the_tagged_and_no_others():
    cache = make_cache()
    cache.put(make_entry("a", tags=("x", "y")), 100.0, now=0.0)
    cache.put(make_entry("b", tags=("y",)), 100.0, now=0.0)
    cache.put(make_entry("c", tags=("z",)), 100.0, now=0.0)
    assert cache.purge_tag("y") == 2
    assert held(cache) == {"c"}
    assert cache.purge_tag("y") == cache.purge_tag("x") == cache.purge_tag("never") == 0
    assert cache.purged == 2


def test_a_replaced_entrys_tags_are_forgotten():
    cache = make_cache()
    cache.put(make_entry("a", tags=("old",)), 100.0, now=0.0)
    cache.put(make_entry("a", tags=("new",)), 100.0, now=0.0)
    assert cache.purge_tag("old") == 0
    assert cache.purge_tag("new") == 1


def test_remove_and_clear():
    cache = make_cache()
    for name in "abc":
        cache.put(make_entry(name, tags=("t",)), 100.0, now=0.0)
    assert cache.remove(b"a")
    assert not cache.remove(b"a")
    assert cache.clear() == 2
    assert (len(cache), cache.size_bytes, cache.purge_tag("t")) == (0, 0, 0)
    assert all((count.entries, count.bytes) == (0, 0) for count in cache.by_tier.values())
    assert cache.put(make_entry("a"), 100.0, now=0.0)


def test_sweep_finds_the_dead_whatever_their_past():
    cache = make_cache("lfu", max_bytes=10**6)
    for number in range(100):
        cache.put(make_entry(str(number)), 10.0 if number % 2 else 1_000.0, now=0.0)
        for _ in range(number):
            cache.get(str(number).encode(), 1.0)
    dropped = cache.sweep(20.0, 100) + cache.sweep(20.0, 100)
    assert dropped == 50
    assert len(cache) == 50
    assert cache.get(b"2", 20.0)[0] is not None


def test_storing_goes_on_with_the_sweep():
    cache = make_cache("lfu", max_bytes=10**6)
    for number in range(100):
        cache.put(make_entry(f"old{number}"), 10.0, now=0.0)
    for number in range(100):
        cache.put(make_entry(f"new{number}"), 1_000.0, now=100.0)
    assert len(cache) == 100


@pytest.mark.parametrize("began_at", [1_000_000.0, 500_000.0])
def test_a_round_of_the_sweep_has_its_pace_by_any_clock(began_at: float):
    """However much is stored, a round takes ten seconds; a clock that was set back does not stop it."""
    cache = make_cache("lfu", max_bytes=10**9)
    for number in range(200):
        cache.put(make_entry(f"first{number}"), 10.0**7, now=1_000_000.0)
    for number in range(1_280):
        cache.put(make_entry(f"old{number}"), 1.0, now=began_at)
    expired = []
    for number in range(20_000):  # 40 s
        cache.put(make_entry(f"new{number % 20}"), 10.0**7, now=began_at + 2.0 + number / 500)
        expired.append(cache.expired)
    assert expired[50 * 64] < 64 * 50 // 4, "what is visited follows the clock, not what is stored"
    assert any([300 < count < 1_000 for count in expired])
    assert expired[-1] == 1_280


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("other", STRATEGIES)
def test_reconfigure_keeps_the_hottest_that_fit(strategy: str, other: str):
    cache = make_cache(strategy)
    for name in "abcde":
        cache.put(make_entry(name, tags=("t",)), 100.0, now=0.0)
    for at, name in enumerate((b"b", b"b", b"d", b"d")):
        cache.get(name, 1.0 + at)
    cache.reconfigure(other, 4_500, 4_500, 0.0, 0.5)
    assert held(cache) == {"b", "d"}
    assert cache.size_bytes == 4_000
    cache.put(make_entry("f"), 100.0, now=9.0)
    assert len(cache) == 2
    assert "f" in held(cache)
    assert cache.purge_tag("t") == 1


def test_reconfigure_drops_what_is_now_too_large():
    cache = make_cache(max_bytes=20_000)
    cache.put(make_entry("small", 1_000), 100.0, now=0.0)
    cache.put(make_entry("large", 5_000), 100.0, now=0.0)
    cache.reconfigure("lru", 20_000, 4_000, 0.0, 0.25)
    assert held(cache) == {"small"}


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="'fifo' is not one of lru, lfu"):
        make_cache("fifo")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_warm_start_gives_back_order_lives_and_size(strategy: str):
    cache = make_cache(strategy)
    for at, name in enumerate("abcde"):
        cache.put(make_entry(name), 100.0, now=float(at))
    for name in (b"c", b"c", b"a"):
        cache.get(name, 10.0 + cache.by_tier["llm"].hits)
    hottest_first = cache.entries()
    warm = make_cache(strategy)
    for entry in reversed(hottest_first):
        assert warm.restore(entry, 20.0)
    assert [entry.key for entry in warm.entries()] == [entry.key for entry in hottest_first]
    warm.put(make_entry("f"), 100.0, now=21.0)
    assert hottest_first[-1].key.decode() not in held(warm)
    assert warm.get(b"a", 99.0)[1] is False
    assert warm.get(b"a", 101.0)[1] is True


def test_restore_refuses_the_dead_the_future_the_known_and_what_does_not_fit():
    source = make_cache(max_bytes=10**6)
    for name in "abc":
        source.put(make_entry(name), 100.0, now=1_000.0)
    a, b, c = (source.get(name, 1_001.0)[0] for name in (b"a", b"b", b"c"))
    assert a is not None
    assert b is not None
    assert c is not None
    cache = make_cache(max_bytes=3_000)
    assert not cache.restore(a, 1_125.0)
    assert not cache.restore(a, 500.0)
    a.tier = "of a later version"
    assert not cache.restore(a, 1_010.0)
    a.tier = "llm"
    assert cache.restore(a, 1_010.0)
    assert not cache.restore(a, 1_010.0)
    assert not cache.restore(b, 1_010.0)
    assert held(cache) == {"a"}
    assert cache.evictions == 0


def test_stats_add_up():
    cache = make_cache()
    cache.put(make_entry("a", tier="tool"), 100.0, now=0.0)
    cache.put(make_entry("b", tier="llm"), 100.0, now=0.0)
    cache.get(b"a", 1.0)
    cache.get(b"z", 1.0, tier="llm")
    stats = cache.stats()
    assert (stats["hits"], stats["misses"], stats["entries"], stats["bytes"]) == (1, 1, 2, 4_000)
    assert stats["by_tier"]["tool"]["hits"] == 1


operations = st.lists(
    st.tuples(
        st.sampled_from(("put", "get", "remove", "tag", "sweep", "resize", "switch", "clear")),
        st.integers(0, 12),
        st.integers(200, 4_000),
        st.floats(0.1, 50.0),
    ),
    max_size=120,
)


@given(strategy=st.sampled_from(STRATEGIES), steps=operations)
def test_budget_counters_and_tags_always_agree_with_the_content(strategy: str, steps: list):
    cache = make_cache(strategy, jitter=0.1)
    now = 0.0
    for action, number, weight, span in steps:
        now += span
        key = str(number)
        if action == "put":
            cache.put(make_entry(key, weight, TIERS[number % 3], (f"t{number % 4}",)), span * 3, now)
        elif action == "get":
            entry, stale = cache.get(key.encode(), now)
            if entry is not None:
                assert now < entry.stale_until
                assert stale == (now >= entry.fresh_until)
        elif action == "remove":
            cache.remove(key.encode())
        elif action == "tag":
            cache.purge_tag(f"t{number % 4}")
            assert all(f"t{number % 4}" not in entry.tags for entry in cache.entries())
        elif action == "sweep":
            cache.sweep(now, number)
        elif action == "resize":
            cache.reconfigure(cache.strategy, weight * 3, weight * 2, 0.1, 0.25)
        elif action == "switch":
            cache.reconfigure("lfu" if cache.strategy == "lru" else "lru", cache.max_bytes, 4_000, 0.1, 0.25)
        else:
            cache.clear()
        entries = cache.entries()
        assert sum(entry.weight_bytes for entry in entries) == cache.size_bytes <= cache.max_bytes
        for tier in TIERS:
            mine = [entry for entry in entries if entry.tier == tier]
            assert cache.by_tier[tier].entries == len(mine)
            assert cache.by_tier[tier].bytes == sum(entry.weight_bytes for entry in mine)
    tagged = sum(cache.purge_tag(f"t{number}") for number in range(4))
    assert tagged >= 0
    assert len(cache) == 0


def test_kept_entries_are_for_those_who_ask_for_a_late_one():
    cache = make_cache()
    entry = make_entry("a")
    cache.reconfigure("lru", 10_000, 10_000, 0.0, 0.25, 50.0)
    cache.put(entry, 100.0, now=0.0)
    assert cache.get(b"a", 124.0) == (entry, True)
    assert cache.get(b"a", 126.0, tier="llm") == (None, False)
    assert cache.get(b"a", 126.0, None, "llm", True) == (entry, True)
    assert cache.get(b"a", 149.0, 500.0, "llm", True) == (None, False)  # the caller's bound rules stale ones out
    assert cache.sweep(149.0, 10) == 0
    assert (len(cache), cache.expired) == (1, 0)
    assert cache.get(b"a", 150.0, None, "llm", True) == (None, False)
    assert (len(cache), cache.expired, cache.by_tier["llm"].stale, cache.by_tier["llm"].misses) == (0, 1, 2, 3)


def test_kept_entries_come_back_from_a_snapshot_and_go_with_the_sweep():
    cache = make_cache()
    cache.reconfigure("lru", 10_000, 10_000, 0.0, 0.25, 50.0)
    entry = make_entry("a")
    entry.stored_at, entry.fresh_until, entry.stale_until = 0.0, 100.0, 125.0
    assert not cache.restore(entry, 150.0)
    assert cache.restore(entry, 149.0)
    assert cache.sweep(150.0, 10) == 1
    long_stale = make_entry("b")
    cache.reconfigure("lru", 10_000, 10_000, 0.0, 10.0, 50.0)
    cache.put(long_stale, 100.0, now=0.0)
    assert cache.get(b"b", 1_099.0) == (long_stale, True)  # `keep_s` shortens no life
    assert cache.sweep(1_099.0, 10) == 0
