"""Ring hash: stable owners, bounded load, ring size, ramps."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.ring_hash import MAX_POINTS, POINTS, RingHash, ring_points

NOW = 1_000.0
KEYS = [b"session-%d" % number for number in range(2_000)]


def fleet(count: int, weight: int = 1) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{index}:9000", weight) for index in range(count)]


def made(endpoints: list[Endpoint], load_factor: float = 1.25, seed: int = 2) -> RingHash:
    balancer = RingHash(Balancing(strategy="ring_hash", load_factor=load_factor), random.Random(seed))
    balancer.update(endpoints, NOW)
    return balancer


def owners(balancer: RingHash, now: float = NOW) -> dict[bytes, str]:
    picked = {key: balancer.pick(now, key) for key in KEYS}
    return {key: endpoint.address for key, endpoint in picked.items() if endpoint is not None}


def moved(before: dict[bytes, str], after: dict[bytes, str]) -> set[bytes]:
    return {key for key in KEYS if before[key] != after[key]}


def test_a_key_keeps_its_endpoint_in_every_sidecar_and_any_order() -> None:
    endpoints = fleet(5)
    expected = owners(made(endpoints))
    assert owners(made(endpoints[::-1], seed=99)) == expected
    assert owners(made(fleet(5))) == expected
    assert len(set(expected.values())) == 5


@settings(max_examples=30)
@given(count=st.integers(2, 8), leaver=st.integers(0, 7))
def test_an_endpoint_that_leaves_or_joins_moves_only_its_own_keys(count: int, leaver: int) -> None:
    endpoints = fleet(count)
    gone = endpoints[leaver % count]
    balancer = made(endpoints)
    before = owners(balancer)
    balancer.update([endpoint for endpoint in endpoints if endpoint is not gone], NOW)
    after = owners(balancer)
    assert moved(before, after) == {key for key in KEYS if before[key] == gone.address}
    balancer.update(endpoints, NOW)
    assert owners(balancer) == before


@pytest.mark.parametrize("count", [9, 20, 50])
def test_in_a_large_fleet_a_leaver_moves_about_its_share_twice_at_most(count: int) -> None:
    endpoints = fleet(count)
    changed = moved(owners(made(endpoints)), owners(made(endpoints[1:])))
    # Its own share, as much again as the others' points are shared out anew, and the noise of 2,000 keys.
    assert len(changed) / len(KEYS) < 3.2 / count


def test_the_ring_has_between_1024_and_4096_points() -> None:
    assert (POINTS, MAX_POINTS) == (512, 4096)
    for count in range(2, 200):
        assert 1_024 <= sum(ring_points([1] * count)) <= 4_096
    assert ring_points([1, 2, 4]) == [128, 256, 512]
    assert ring_points([100] * 5) == ring_points([1] * 5)
    assert sum(ring_points([7] * 3 + [1] * 400)) <= 4_096
    assert min(ring_points([10_000, 1])) == 1


def test_keys_follow_the_weights() -> None:
    endpoints = [Endpoint("10.0.0.1:1", 1), Endpoint("10.0.0.2:1", 3)]
    share = Counter(owners(made(endpoints)).values())["10.0.0.2:1"] / len(KEYS)
    assert share == pytest.approx(0.75, abs=0.06)


def test_a_changed_weight_takes_effect() -> None:
    endpoints = fleet(2)
    balancer = made(endpoints)
    before = Counter(owners(balancer).values())[endpoints[0].address]
    endpoints[0].weight = 8
    balancer.update(endpoints, NOW)
    assert Counter(owners(balancer).values())[endpoints[0].address] > before * 1.4


@given(
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    keys=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    load_factor=st.floats(1.0, 3.0),
    ends=st.randoms(use_true_random=False),
)
def test_no_endpoint_is_picked_past_its_bound(
    weights: list[int], keys: list[int], load_factor: float, ends: random.Random
) -> None:
    endpoints = [Endpoint(f"10.0.0.{index}:1", weight) for index, weight in enumerate(weights)]
    balancer = made(endpoints, load_factor)
    for number in keys:
        endpoint = balancer.pick(NOW, b"hot-%d" % number)
        assert endpoint is not None
        endpoint.pending += 1
        in_flight = sum(other.pending for other in endpoints)
        assert endpoint.pending <= ceil(load_factor * in_flight * endpoint.weight / sum(weights))
        if ends.random() < 0.3:
            busy = ends.choice([other for other in endpoints if other.pending])
            busy.pending -= 1


def test_one_hot_key_spills_over_and_returns() -> None:
    endpoints = fleet(4)
    balancer = made(endpoints)
    home = balancer.pick(NOW, b"hot")
    assert home is not None
    for _ in range(40):
        endpoint = balancer.pick(NOW, b"hot")
        assert endpoint is not None
        endpoint.pending += 1
    assert home.pending == 13  # ceil(1.25 * 40 / 4)
    assert all(endpoint.pending for endpoint in endpoints)
    rows = {address: reason for address, _, reason in balancer.explain(NOW, b"hot")}
    assert rows[home.address] == "choice 1 of the key; pending 13 of 13; full"
    for endpoint in endpoints:
        endpoint.pending = 0
    assert balancer.pick(NOW, b"hot") is home


def test_a_full_endpoint_spills_to_the_next_of_the_key_not_to_one_for_all() -> None:
    endpoints = fleet(5)
    balancer = made(endpoints)
    home = endpoints[0]
    before = owners(balancer)
    home.pending = 100
    overflow = {address for key, address in owners(balancer).items() if before[key] == home.address}
    assert overflow == {endpoint.address for endpoint in endpoints[1:]}


def test_a_full_endpoint_is_better_than_one_that_was_tried() -> None:
    endpoints = fleet(2)
    balancer = made(endpoints)
    home = balancer.pick(NOW, b"key")
    assert home is not None
    other = next(endpoint for endpoint in endpoints if endpoint is not home)
    other.pending = 50
    assert balancer.pick(NOW, b"key", (home,)) is other


@pytest.mark.parametrize("load_factor", [0.0, 0.9])
def test_a_factor_that_cannot_hold_all_attempts_means_no_bound(load_factor: float) -> None:
    endpoints = fleet(3)
    balancer = made(endpoints, load_factor)
    home = balancer.pick(NOW, b"hot")
    assert home is not None
    home.pending = 10**6
    assert balancer.pick(NOW, b"hot") is home
    assert "of" not in balancer.explain(NOW, b"hot")[0][2].split("pending")[1]


def test_avoided_home_gives_way_to_the_keys_next_endpoint() -> None:
    endpoints = fleet(5)
    balancer = made(endpoints)
    order = [address for address, _, _ in balancer.explain(NOW, b"key")]
    by_address = {endpoint.address: endpoint for endpoint in endpoints}
    for tried in range(5):
        picked = balancer.pick(NOW, b"key", [by_address[address] for address in order[:tried]])
        assert picked is not None
        assert picked.address == order[tried]


def test_calls_without_a_key_go_anywhere() -> None:
    endpoints = fleet(4)
    balancer = made(endpoints)
    picked = Counter(balancer.pick(NOW) for _ in range(4_000))
    assert min(picked[endpoint] for endpoint in endpoints) > 700
    assert {score for _, score, _ in balancer.explain(NOW)} == {0.0}


def test_a_ramping_endpoint_takes_each_of_its_keys_over_once() -> None:
    veterans = fleet(4)
    balancer = made(veterans)
    before = owners(balancer)
    joiner = Endpoint("10.0.0.4:9000", now=NOW)
    balancer.update([*veterans, joiner], NOW)
    taken: set[bytes] = set()
    sizes: list[int] = []
    for age_s in (0.0, 2.5, 5.0, 7.5, 10.0):
        now_owned = owners(balancer, NOW + age_s)
        mine = {key for key, address in now_owned.items() if address == joiner.address}
        assert taken <= mine
        assert {key for key in KEYS if now_owned[key] != before[key]} == mine
        taken = mine
        sizes.append(len(mine))
    assert sizes[0] == pytest.approx(sizes[-1] * 0.1, rel=0.5)
    assert sizes[2] == pytest.approx(sizes[-1] * 0.5, rel=0.2)
    assert sizes[-1] == pytest.approx(len(KEYS) / 5, rel=0.2)


def test_a_full_endpoint_is_worse_than_a_ramping_one() -> None:
    veteran, joiner = Endpoint("10.0.0.1:1"), Endpoint("10.0.0.2:1", now=NOW)
    balancer = made([veteran, joiner])
    veteran.pending = 5
    assert {balancer.pick(NOW, key) for key in KEYS[:200]} == {joiner}
