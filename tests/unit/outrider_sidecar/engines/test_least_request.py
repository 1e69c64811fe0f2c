"""Least request: the load formula and what it leads to."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.least_request import LeastRequest

NOW = 1_000.0


def made(*endpoints: Endpoint, slow_start_ms: int = 10_000) -> LeastRequest:
    balancer = LeastRequest(Balancing(slow_start_ms=slow_start_ms), random.Random(5))
    balancer.update(endpoints, NOW)
    return balancer


def test_load_is_attempts_in_flight_and_one_over_weight() -> None:
    light, heavy = Endpoint("a:1"), Endpoint("b:1", weight=4)
    light.pending, heavy.pending = 2, 9
    scores = {address: score for address, score, _ in made(light, heavy).explain(NOW)}
    assert scores == {"a:1": 3.0, "b:1": 2.5}


def test_the_less_loaded_of_two_is_picked() -> None:
    light, heavy = Endpoint("a:1"), Endpoint("b:1", weight=4)
    balancer = made(light, heavy)
    light.pending, heavy.pending = 2, 9
    assert balancer.pick(NOW) is heavy
    heavy.pending = 12
    assert balancer.pick(NOW) is light


def test_the_busiest_of_many_is_never_picked() -> None:
    endpoints = [Endpoint(f"10.0.0.{index}:1") for index in range(10)]
    balancer = made(*endpoints)
    endpoints[4].pending = 1
    picked = Counter(balancer.pick(NOW) for _ in range(2_000))
    assert picked[endpoints[4]] == 0
    assert len(picked) == 9


def test_a_ramp_multiplies_the_load() -> None:
    endpoint = Endpoint("a:1", now=NOW)
    balancer = made(endpoint, slow_start_ms=20_000)
    assert [balancer.explain(NOW + age)[0][1] for age in (0, 10, 20)] == pytest.approx([10.0, 2.0, 1.0])


def test_attempts_in_flight_follow_the_weights() -> None:
    endpoints = [Endpoint("a:1", weight=1), Endpoint("b:1", weight=3)]
    balancer = made(*endpoints)
    for _ in range(400):
        endpoint = balancer.pick(NOW)
        assert endpoint is not None
        endpoint.pending += 1
    assert [endpoint.pending for endpoint in endpoints] == [100, 300]


def test_power_of_two_choices_keeps_the_fullest_close_to_the_mean() -> None:
    endpoints = [Endpoint(f"10.0.0.{index}:1") for index in range(50)]
    balancer = made(*endpoints)
    for _ in range(5_000):
        endpoint = balancer.pick(NOW)
        assert endpoint is not None
        endpoint.pending += 1
    assert max(endpoint.pending for endpoint in endpoints) <= 105  # random choice: about 125
