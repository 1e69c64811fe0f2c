"""Random: weights, ramps and avoided endpoints change the odds and nothing else."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.random_pick import RandomPick

NOW = 1_000.0


def made(*endpoints: Endpoint) -> RandomPick:
    balancer = RandomPick(Balancing(), random.Random(9))
    balancer.update(endpoints, NOW)
    return balancer


def shares(balancer: RandomPick, *avoid: Endpoint) -> dict[str, float]:
    picked: Counter[str] = Counter()
    for _ in range(20_000):
        endpoint = balancer.pick(NOW, b"", avoid)
        assert endpoint is not None
        picked[endpoint.address] += 1
    return {address: count / 20_000 for address, count in picked.items()}


def test_the_odds_follow_the_weights() -> None:
    balancer = made(Endpoint("a:1", 1), Endpoint("b:1", 2), Endpoint("c:1", 5))
    assert shares(balancer) == pytest.approx({"a:1": 0.125, "b:1": 0.25, "c:1": 0.625}, abs=0.015)


def test_the_odds_of_what_is_left_follow_the_weights() -> None:
    endpoints = [Endpoint("a:1", 1), Endpoint("b:1", 2), Endpoint("c:1", 5)]
    assert shares(made(*endpoints), endpoints[2]) == pytest.approx({"a:1": 1 / 3, "b:1": 2 / 3}, abs=0.015)


def test_a_ramp_scales_the_odds() -> None:
    balancer = made(Endpoint("a:1", 1), Endpoint("b:1", 2, now=NOW - 2.5))
    assert shares(balancer) == pytest.approx({"a:1": 2 / 3, "b:1": 1 / 3}, abs=0.015)


def test_load_makes_no_difference() -> None:
    busy, idle = Endpoint("a:1"), Endpoint("b:1")
    busy.pending = 1_000
    assert shares(made(busy, idle)) == pytest.approx({"a:1": 0.5, "b:1": 0.5}, abs=0.015)


def test_a_draw_that_rounds_up_to_the_total_stays_inside() -> None:
    class Highest(random.Random):
        def random(self) -> float:
            return 1.0

    endpoints = [Endpoint("a:1"), Endpoint("b:1")]
    balancer = RandomPick(Balancing(), Highest())
    balancer.update(endpoints, NOW)
    assert balancer.pick(NOW) is endpoints[1]
