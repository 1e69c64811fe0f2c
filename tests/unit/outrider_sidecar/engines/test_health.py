"""Active health checks: thresholds, who is checked when, and jitter."""

from __future__ import annotations

import random

import pytest

from outrider.policy import HealthCheck
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.health import HealthChecker, passed

NOW = 1_000.0
POLICY = HealthCheck(enabled=True, interval_ms=5_000, unhealthy_after=3, healthy_after=2)


def made(policy: HealthCheck = POLICY, seed: int = 1) -> HealthChecker:
    return HealthChecker(policy, random.Random(seed))


def run(results: str, endpoint: Endpoint | None = None) -> str:
    """Feed one result per character, + or -; the verdict after each, upper case where it changed."""
    checker, endpoint = made(), endpoint or Endpoint("a:1")
    now, verdicts = NOW, ""
    for result in results:
        ready, ask_at = checker.due([endpoint], now)
        while not ready:
            now = ask_at
            ready, ask_at = checker.due([endpoint], now)
        changed = checker.result(endpoint, result == "+", now)
        verdict = "s" if endpoint.serving else "n"
        verdicts += verdict.upper() if changed else verdict
    return verdicts


@pytest.mark.parametrize(
    ("results", "verdicts"),
    [
        ("+++", "sss"),
        ("---", "ssN"),
        ("--+---", "sssssN"),
        ("---++", "ssNnS"),
        ("---+-++", "ssNnnnS"),
        ("---++---", "ssNnSssN"),
        ("-----", "ssNnn"),
    ],
)
def test_thresholds(results: str, verdicts: str) -> None:
    assert run(results) == verdicts


def test_a_return_to_service_starts_a_ramp() -> None:
    endpoint = Endpoint("a:1", now=NOW)
    run("---", endpoint)
    assert endpoint.added_at == NOW
    run("++", endpoint)
    assert endpoint.serving
    assert endpoint.added_at > NOW


@pytest.mark.parametrize(
    ("status", "serving_status", "well"),
    [(0, 1, True), (0, 2, False), (0, 0, False), (0, 3, False), (12, 0, True), (14, 1, False), (4, 0, False)],
)
def test_what_a_check_means(status: int, serving_status: int, well: bool) -> None:
    assert passed(status, serving_status) is well


def test_an_unchecked_endpoint_serves_and_is_checked_soon() -> None:
    endpoint = Endpoint("a:1")
    ready, ask_at = made().due([endpoint], NOW)
    assert endpoint.serving
    assert ready == []
    assert NOW < ask_at <= NOW + 0.5


def test_one_check_per_endpoint_at_a_time() -> None:
    checker, endpoint = made(), Endpoint("a:1")
    checker.due([endpoint], NOW)
    assert checker.due([endpoint], NOW + 1)[0] == [endpoint]
    ready, ask_at = checker.due([endpoint], NOW + 100)
    assert ready == []
    assert ask_at > NOW + 100
    checker.result(endpoint, True, NOW + 100)
    assert checker.due([endpoint], NOW + 104)[0] == []
    assert checker.due([endpoint], NOW + 106)[0] == [endpoint]


def test_asking_again_when_told_misses_no_check() -> None:
    checker, endpoints = made(), [Endpoint(f"10.0.0.{index}:1") for index in range(5)]
    now, checks = NOW, dict.fromkeys(endpoints, 0)
    while now < NOW + 100:
        ready, ask_at = checker.due(endpoints, now)
        for endpoint in ready:
            checks[endpoint] += 1
            checker.result(endpoint, True, now)
        assert ask_at > now
        now = ask_at
    assert all(18 <= count <= 23 for count in checks.values())


def test_checks_of_many_endpoints_and_sidecars_spread() -> None:
    endpoints = [Endpoint(f"10.0.0.{index}:1") for index in range(100)]
    checker = made()
    checker.due(endpoints, NOW)
    ready, _ = checker.due(endpoints, NOW + 0.25)
    assert 25 < len(ready) < 75
    asks = {made(seed=seed).due([Endpoint("a:1")], NOW)[1] for seed in range(50)}
    assert len(asks) == 50


def test_the_next_check_is_an_interval_away_give_or_take_a_tenth() -> None:
    waits: list[float] = []
    for seed in range(200):
        checker, endpoint = made(seed=seed), Endpoint("a:1")
        checker.due([endpoint], NOW)
        checker.due([endpoint], NOW + 1)
        checker.result(endpoint, True, NOW + 1)
        waits.append(checker.due([endpoint], NOW + 5)[1] - (NOW + 1))
    assert 4.5 <= min(waits) < 4.6
    assert 5.4 < max(waits) <= 5.5


def test_without_checks_nobody_is_due() -> None:
    endpoint = Endpoint("a:1")
    checker = made(HealthCheck(enabled=False))
    assert checker.due([endpoint], NOW)[0] == []
    assert checker.due([endpoint], NOW + 1e6)[0] == []


def test_forgetting_an_endpoint_puts_it_back_into_service() -> None:
    endpoint = Endpoint("a:1")
    run("---", endpoint)
    checker = made()
    assert checker.forget(endpoint)
    assert endpoint.serving
    assert not checker.forget(endpoint)
    assert not checker.result(endpoint, False, NOW)  # a check that was still out


def test_history_outlives_the_checker() -> None:
    endpoint = Endpoint("a:1")
    assert run("--", endpoint) == "ss"
    assert run("-", endpoint) == "N"
