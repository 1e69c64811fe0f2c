"""Weighted round robin: static weights, load reports after gRFC A58, spacing and rescaling."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport
from outrider_sidecar.engines.weighted_round_robin import BLACKOUT_S, EXPIRY_S, REFRESH_S, WeightedRoundRobin

NOW = 1_000.0


def fleet(*weights: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{index}:1", weight) for index, weight in enumerate(weights)]


def made(endpoints: list[Endpoint]) -> WeightedRoundRobin:
    balancer = WeightedRoundRobin(Balancing(), random.Random(3))
    balancer.update(endpoints, NOW)
    return balancer


def counts(balancer: WeightedRoundRobin, endpoints: list[Endpoint], calls: int, now: float) -> list[int]:
    picked = Counter(balancer.pick(now) for _ in range(calls))
    return [picked[endpoint] for endpoint in endpoints]


def rate(rps: float, utilization: float = 0.5, eps: float = 0.0) -> LoadReport:
    return LoadReport(rps_fractional=rps, application_utilization=utilization, eps=eps)


def reported(*loads: LoadReport | None, weights: tuple[int, ...] = ()) -> tuple[WeightedRoundRobin, list[Endpoint]]:
    """A balancer whose endpoints sent these reports, once before and once after the blackout."""
    endpoints = fleet(*(weights or (1,) * len(loads)))
    balancer = made(endpoints)
    for now in (NOW, NOW + BLACKOUT_S):
        for endpoint, load in zip(endpoints, loads, strict=True):
            if load is not None:
                balancer.report(endpoint, load, now)
    return balancer, endpoints


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_static_weights_are_kept_to_within_one_turn(weights: list[int]) -> None:
    endpoints = fleet(*weights)
    rounds = 3
    got = counts(made(endpoints), endpoints, rounds * sum(weights), NOW)
    assert all(abs(count - rounds * weight) <= 1 for count, weight in zip(got, weights, strict=True))


def test_turns_are_spaced_evenly() -> None:
    endpoints = fleet(1, 3)
    balancer = made(endpoints)
    turns = [balancer.pick(NOW) for _ in range(40)]
    rare = [at for at, endpoint in enumerate(turns) if endpoint is endpoints[0]]
    assert {later - earlier for earlier, later in pairwise(rare)} == {4}


def test_reports_replace_the_static_weights() -> None:
    balancer, endpoints = reported(rate(100), rate(300), weights=(9, 1))
    assert counts(balancer, endpoints, 400, NOW + BLACKOUT_S) == pytest.approx([100, 300], abs=2)


def test_errors_cost_weight() -> None:
    # 100 / (0.5 + 50/100) = 100 against 100 / 0.5 = 200
    balancer, endpoints = reported(rate(100, eps=50), rate(100))
    assert counts(balancer, endpoints, 300, NOW + BLACKOUT_S) == pytest.approx([100, 200], abs=2)


def test_the_applications_own_utilization_goes_before_the_cpus() -> None:
    both = LoadReport(rps_fractional=100, application_utilization=0.8, cpu_utilization=0.2)
    cpu_only = LoadReport(rps_fractional=100, cpu_utilization=0.2)
    balancer, endpoints = reported(both, cpu_only)
    assert counts(balancer, endpoints, 500, NOW + BLACKOUT_S) == pytest.approx([100, 400], abs=2)


def test_an_endpoint_without_report_gets_the_mean() -> None:
    balancer, endpoints = reported(rate(100), None, rate(300))
    assert counts(balancer, endpoints, 600, NOW + BLACKOUT_S) == pytest.approx([100, 200, 300], abs=2)


def test_one_endpoint_with_reports_is_not_enough() -> None:
    balancer, endpoints = reported(rate(100), None, weights=(1, 4))
    assert counts(balancer, endpoints, 500, NOW + BLACKOUT_S) == [100, 400]


@pytest.mark.parametrize("useless", [rate(0), rate(100, utilization=0.0)], ids=["no rate", "no utilization"])
def test_a_report_without_rate_or_utilization_is_ignored(useless: LoadReport) -> None:
    balancer, endpoints = reported(rate(100), rate(300))
    balancer.report(endpoints[0], useless, NOW + BLACKOUT_S)
    assert counts(balancer, endpoints, 400, NOW + BLACKOUT_S) == pytest.approx([100, 300], abs=2)


def test_reports_count_only_after_the_blackout() -> None:
    endpoints = fleet(1, 1)
    balancer = made(endpoints)
    balancer.report(endpoints[0], rate(100), NOW)
    balancer.report(endpoints[1], rate(300), NOW)
    assert counts(balancer, endpoints, 400, NOW + BLACKOUT_S - 0.1) == [200, 200]
    assert counts(balancer, endpoints, 400, NOW + BLACKOUT_S + REFRESH_S) == pytest.approx([100, 300], abs=2)


def test_reports_expire_and_the_next_one_starts_a_blackout() -> None:
    balancer, endpoints = reported(rate(100), rate(300))
    expired = NOW + BLACKOUT_S + EXPIRY_S
    assert counts(balancer, endpoints, 400, expired) == pytest.approx([200, 200], abs=1)
    for endpoint, load in zip(endpoints, (rate(100), rate(300)), strict=True):
        balancer.report(endpoint, load, expired)
    assert counts(balancer, endpoints, 400, expired + BLACKOUT_S - 0.1) == pytest.approx([200, 200], abs=1)
    assert counts(balancer, endpoints, 400, expired + BLACKOUT_S + REFRESH_S) == pytest.approx([100, 300], abs=2)


def test_an_absurd_report_neither_starves_nor_floods() -> None:
    balancer, endpoints = reported(rate(1e-9), rate(100), rate(100))
    got = counts(balancer, endpoints, 3_100, NOW + BLACKOUT_S)
    assert got[0] == pytest.approx(3_100 * 0.1 / 3.1, abs=10)


def test_weights_are_taken_anew_once_per_period() -> None:
    balancer, endpoints = reported(rate(100), rate(300))
    now = NOW + BLACKOUT_S
    balancer.pick(now)
    balancer.report(endpoints[0], rate(900), now)
    assert counts(balancer, endpoints, 400, now + REFRESH_S / 2) == pytest.approx([100, 300], abs=2)
    assert counts(balancer, endpoints, 400, now + REFRESH_S) == pytest.approx([300, 100], abs=2)


def test_nobody_waits_for_a_turn_of_an_old_scale() -> None:
    endpoints = fleet(1, 1_000)
    balancer = made(endpoints)
    for _ in range(1_500):
        balancer.pick(NOW)
    endpoints[0].weight = 1_000
    balancer.update(endpoints, NOW)
    assert counts(balancer, endpoints, 20, NOW) == pytest.approx([10, 10], abs=1)


def test_a_newcomer_neither_waits_nor_bursts() -> None:
    endpoints = fleet(1, 1)
    balancer = made(endpoints)
    for _ in range(1_001):
        balancer.pick(NOW)
    newcomer = Endpoint("10.0.0.9:1")
    balancer.update([*endpoints, newcomer], NOW)
    assert counts(balancer, [*endpoints, newcomer], 30, NOW) == pytest.approx([10, 10, 10], abs=1)


def test_an_avoided_endpoint_keeps_its_turn() -> None:
    endpoints = fleet(1, 1, 1)
    balancer = made(endpoints)
    due = next(endpoint for endpoint in endpoints if endpoint.address == balancer.explain(NOW)[0][0])
    second = balancer.explain(NOW)[1][0]
    picked = balancer.pick(NOW, b"", (due,))
    assert picked is not None
    assert picked.address == second
    assert balancer.pick(NOW) is due


def test_a_ramping_endpoint_takes_its_share_of_turns() -> None:
    endpoints = fleet(1, 1)
    endpoints[0].added_at = NOW - 5.0
    assert counts(made(endpoints), endpoints, 300, NOW) == pytest.approx([100, 200], abs=1)


def test_reported_weights_outlive_the_balancer() -> None:
    _, endpoints = reported(rate(100), rate(300))
    balancer = WeightedRoundRobin(Balancing(), random.Random(4))
    balancer.update(endpoints, NOW + BLACKOUT_S)
    assert counts(balancer, endpoints, 400, NOW + BLACKOUT_S) == pytest.approx([100, 300], abs=2)
    assert "reported" in balancer.explain(NOW + BLACKOUT_S)[0][2]
