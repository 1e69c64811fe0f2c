from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from xxhash import xxh3_128_digest

from outrider_sidecar.engines.cache import Cache, Entry
from outrider_sidecar.engines.ghost import Ghosts

OTHER = {"lru": "lfu", "lfu": "lru"}


def key_of(number: int) -> bytes:
    return xxh3_128_digest(str(number).encode())


def zipf(objects: int, lookups: int, seed: int = 5) -> list[int]:
    weights = [1 / (rank + 1) ** 0.9 for rank in range(objects)]
    return random.Random(seed).choices(range(objects), weights, k=lookups)


def outcomes(strategy: str, max_bytes: int, numbers: list[int], weight: int, ttl_s: float = 1e9) -> Iterator[bool]:
    """What a real cache answers when lookup n comes at second n."""
    cache = Cache(strategy, max_bytes, max_bytes, 0.0, 0.0, random.Random(1))
    for now, number in enumerate(numbers):
        found, _ = cache.get(key_of(number), float(now))
        if found is None:
            entry = Entry(key_of(number), None, (), None, head_bytes=0)
            entry.weight_bytes = weight
            cache.put(entry, ttl_s, float(now))
        yield found is not None


def rate(strategy: str, max_bytes: int, numbers: list[int], weight: int) -> float:
    return sum(outcomes(strategy, max_bytes, numbers, weight)) / len(numbers)


def simulate(strategy: str, max_bytes: int, numbers: list[int], weight: int, **options: int) -> Ghosts:
    ghosts = Ghosts(strategy, max_bytes, **options)
    hits = outcomes(strategy, max_bytes, numbers, weight)
    for now, (number, hit) in enumerate(zip(numbers, hits, strict=True)):
        ghosts.record(key_of(number), weight, hit, float(now))
    return ghosts


@pytest.mark.parametrize("strategy", ["lru", "lfu"])
@pytest.mark.parametrize(
    ("max_bytes", "weight", "tolerance"),
    [(3_000_000, 50_000, 0.02), (3_000_000, 1_500, 0.06)],
    ids=["every key", "one key in 16"],
)
def test_ghosts_say_what_real_caches_do(strategy: str, max_bytes: int, weight: int, tolerance: float):
    numbers = zipf(5_000 if weight < 32_768 else 500, 40_000)
    report = simulate(strategy, max_bytes, numbers, weight).report()
    actual = report["actual"]
    assert actual == pytest.approx(rate(strategy, max_bytes, numbers, weight), abs=0.02)
    for name, size in (("half", 0.5), ("same", 1.0), ("double", 2.0), ("quadruple", 4.0)):
        assert report[name] == pytest.approx(rate(strategy, int(max_bytes * size), numbers, weight), abs=tolerance)
    other = OTHER[strategy]
    assert report[other] == pytest.approx(rate(other, max_bytes, numbers, weight), abs=tolerance)
    assert set(report) == {"half", "same", "double", "quadruple", other, "actual", "samples", "sample_rate"}


def test_a_loop_larger_than_the_cache_is_seen_through():
    numbers = list(range(90)) * 50
    report = simulate("lru", 60 * 40_000, numbers, 40_000).report()
    assert report["half"] == report["same"] == report["actual"] == 0.0
    assert report["double"] == report["quadruple"]
    assert report["double"] is not None
    assert report["double"] > 0.95


def test_nothing_seen_is_nothing_said():
    report = Ghosts("lru", 1_000_000).report()
    assert report["actual"] is report["half"] is report["lfu"] is None
    assert report["samples"] == 0


def test_keys_stay_bounded_and_the_rate_gives_way():
    ghosts = Ghosts("lru", 1 << 27, max_keys=200)
    before = ghosts.report()["sample_rate"]
    for number in range(60_000):
        ghosts.record(key_of(number), 1_000, False)
        assert len(ghosts._largest) <= 200
    after = ghosts.report()["sample_rate"]
    assert before is not None
    assert after is not None
    assert after < before


@pytest.mark.parametrize("strategy", ["lru", "lfu"])
def test_halving_the_rate_keeps_the_figures(strategy: str):
    numbers = zipf(30_000, 60_000)
    report = simulate(strategy, 8_000_000, numbers, 2_000, max_keys=400).report()
    expected = rate(strategy, 8_000_000, numbers, 2_000)
    assert report["sample_rate"] is not None
    assert report["sample_rate"] < 1 / 16
    assert report["same"] == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("strategy", ["lru", "lfu"])
def test_lives_end_in_ghosts_too(strategy: str):
    ghosts = Ghosts(strategy, 10_000_000)
    ghosts.reset(strategy, 10_000_000, mean_bytes=100_000.0)
    for now in range(0, 1_000, 10):
        ghosts.record(key_of(1), 100_000, False, float(now), ttl_s=10.0)
    assert ghosts.report()["quadruple"] == 0.0
    for now in range(1_000, 2_000):
        ghosts.record(key_of(1), 100_000, True, float(now), ttl_s=10.0)
    assert ghosts.report()["same"] == pytest.approx(0.9 * 1_000 / 1_100, abs=0.01)


def test_what_is_not_stored_is_a_miss_everywhere():
    ghosts = Ghosts("lru", 10_000_000)
    ghosts.reset("lru", 10_000_000, mean_bytes=100_000.0)
    for _ in range(10):
        ghosts.record(key_of(1), 0, False)
    ghosts.record(key_of(2), 1 << 40, False)
    ghosts.record(key_of(2), 1 << 40, False)
    report = ghosts.report()
    assert report["samples"] == 12
    assert report["quadruple"] == report["lfu"] == 0.0


def test_old_traffic_fades():
    ghosts = Ghosts("lru", 100_000_000)
    ghosts.reset("lru", 100_000_000, mean_bytes=100_000.0)
    for number in range(40_000):
        ghosts.record(key_of(number), 100_000, False)
    for _ in range(120_000):
        ghosts.record(key_of(0), 100_000, True)
    report = ghosts.report()
    assert report["samples"] is not None
    assert report["samples"] < 17_000
    assert report["actual"] is not None
    assert report["actual"] > 0.95
    assert report["same"] == pytest.approx(report["actual"], abs=0.01)


def test_reset_follows_a_change_of_strategy_and_size():
    ghosts = simulate("lru", 3_000_000, zipf(100, 1_000), 50_000)
    ghosts.reset("lfu", 1_000_000)
    report = ghosts.report()
    assert "lru" in report
    assert "lfu" not in report
    assert report["samples"] == 0
