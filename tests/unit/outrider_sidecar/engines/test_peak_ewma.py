"""Peak EWMA: the average, the probe of an endpoint without history, penalties, weight and ramp."""

from __future__ import annotations

import random
from collections import Counter
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport
from outrider_sidecar.engines.peak_ewma import MAX_PENALTY_S, PENALISED, PENALTY_S, SEED_RTT_S, PeakEwma

NOW = 1_000.0
DECAY_S = 10.0
POLICY = Balancing(decay_ms=10_000, slow_start_ms=0)


def made(*endpoints: Endpoint, policy: Balancing = POLICY, seed: int = 1) -> PeakEwma:
    balancer = PeakEwma(policy, random.Random(seed))
    balancer.update(endpoints, NOW)
    return balancer


def load(balancer: PeakEwma, endpoint: Endpoint, now: float) -> float:
    return {address: score for address, score, _ in balancer.explain(now)}[endpoint.address]


def test_a_slower_sample_replaces_the_average_at_once() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.5, NOW)
    assert load(balancer, endpoint, NOW) == pytest.approx(0.5)
    balancer.first_byte(endpoint, 0.9, NOW + 1)
    assert load(balancer, endpoint, NOW + 1) == pytest.approx(0.9)


def test_a_faster_sample_is_averaged_by_the_time_since_the_last_one() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.5, NOW)
    balancer.first_byte(endpoint, 0.1, NOW + 4)
    kept = exp(-4 / DECAY_S)
    assert load(balancer, endpoint, NOW + 4) == pytest.approx(0.5 * kept + 0.1 * (1 - kept))


def test_a_sample_is_a_peak_against_the_decayed_average_not_the_old_one() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.5, NOW)
    balancer.first_byte(endpoint, 0.3, NOW + 10)  # above 0.5 / e
    assert load(balancer, endpoint, NOW + 10) == pytest.approx(0.3)


def test_the_first_sample_is_averaged_with_the_seed() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.001, NOW + 2)
    kept = exp(-2 / DECAY_S)
    assert load(balancer, endpoint, NOW + 2) == pytest.approx(SEED_RTT_S * kept + 0.001 * (1 - kept))


def test_the_average_decays_without_samples() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.5, NOW)
    assert load(balancer, endpoint, NOW + 20) == pytest.approx(0.5 * exp(-2))


def test_after_a_long_idle_time_pending_still_decides() -> None:
    idle, busy = Endpoint("a:1"), Endpoint("b:1")
    balancer = made(idle, busy)
    balancer.first_byte(idle, 0.5, NOW)
    balancer.first_byte(busy, 0.001, NOW)
    busy.pending = 3
    much_later = NOW + 1e7
    assert load(balancer, idle, much_later) < load(balancer, busy, much_later)
    assert balancer.pick(much_later) is idle


def test_load_is_rtt_times_attempts_in_flight_and_one_over_weight() -> None:
    endpoint = Endpoint("a:1", weight=4)
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.2, NOW)
    endpoint.pending = 9
    assert load(balancer, endpoint, NOW) == pytest.approx(0.2 * 10 / 4)


def test_a_changed_weight_counts_from_the_next_update() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.2, NOW)
    endpoint.weight = 2
    balancer.update([endpoint], NOW)
    assert load(balancer, endpoint, NOW) == pytest.approx(0.1)


def test_a_ramping_endpoint_carries_more_load_for_the_same_rtt() -> None:
    endpoint = Endpoint("a:1", now=NOW)
    balancer = made(endpoint, policy=Balancing(decay_ms=10**9, slow_start_ms=10_000))
    balancer.first_byte(endpoint, 0.2, NOW)
    at = {age: load(balancer, endpoint, NOW + age) for age in (0.0, 0.5, 5.0, 10.0)}
    assert at == pytest.approx({0.0: 2.0, 0.5: 2.0, 5.0: 0.4, 10.0: 0.2}, rel=1e-3)


def test_an_endpoint_without_history_gets_one_probe_and_no_more_until_it_answers() -> None:
    known, fresh = Endpoint("a:1"), Endpoint("b:1")
    balancer = made(known, fresh)
    balancer.first_byte(known, 0.0005, NOW)
    known.pending = 2
    assert balancer.pick(NOW) is fresh
    fresh.pending = 1
    known.pending = 5_000
    assert {balancer.pick(NOW) for _ in range(50)} == {known}
    balancer.first_byte(fresh, 0.001, NOW)
    assert balancer.pick(NOW) is fresh


def test_endpoints_that_all_wait_for_their_first_reply_share_by_pending_and_weight() -> None:
    light, heavy = Endpoint("a:1", weight=1), Endpoint("b:1", weight=10)
    balancer = made(light, heavy)
    light.pending, heavy.pending = 1, 9
    assert balancer.pick(NOW) is heavy
    heavy.pending = 11
    assert balancer.pick(NOW) is light


def test_a_failed_probe_ends_the_probing() -> None:
    known, fresh = Endpoint("a:1"), Endpoint("b:1")
    balancer = made(known, fresh)
    balancer.first_byte(known, 0.02, NOW)
    balancer.ended(fresh, 14, 0.0, NOW)  # no connection: no first byte either
    assert {balancer.pick(NOW) for _ in range(20)} == {known}
    assert load(balancer, fresh, NOW) == pytest.approx(PENALTY_S)


@pytest.mark.parametrize("status", range(-1, 17))
def test_which_statuses_cost_a_penalty(status: int) -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.05, NOW)
    balancer.ended(endpoint, status, 0.0, NOW)
    # UNKNOWN DEADLINE_EXCEEDED RESOURCE_EXHAUSTED INTERNAL UNAVAILABLE DATA_LOSS
    expected = PENALTY_S if status in (2, 4, 8, 13, 14, 15) else 0.05
    assert load(balancer, endpoint, NOW) == pytest.approx(expected)
    assert (status in PENALISED) == (expected == PENALTY_S)


@pytest.mark.parametrize(
    ("asked_s", "rtt_s", "expected_s"),
    [
        (0.0, 0.05, PENALTY_S),
        (2.0, 0.05, PENALTY_S),
        (60.0, 0.05, 60.0),
        (9_999.0, 0.05, MAX_PENALTY_S),
        (6.0, 8.0, 8.0),
    ],
)
def test_the_penalty_is_the_largest_of_floor_pushback_and_average(
    asked_s: float, rtt_s: float, expected_s: float
) -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, rtt_s, NOW)
    balancer.ended(endpoint, 8, asked_s, NOW)
    assert load(balancer, endpoint, NOW) == pytest.approx(expected_s)


def test_the_penalty_is_compared_with_what_is_left_of_the_average() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 20.0, NOW)
    balancer.ended(endpoint, 14, 0.0, NOW + 10)
    assert load(balancer, endpoint, NOW + 10) == pytest.approx(20.0 * exp(-1))


def test_a_status_in_the_trailers_of_a_stream_counts_although_its_first_byte_was_quick() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.01, NOW)
    balancer.ended(endpoint, 13, 0.0, NOW + 30)
    assert load(balancer, endpoint, NOW + 30) == pytest.approx(PENALTY_S)


def test_a_penalty_decays() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.ended(endpoint, 14, 0.0, NOW)
    assert load(balancer, endpoint, NOW + 50) == pytest.approx(PENALTY_S * exp(-5))


def test_a_cancelled_attempt_counts_with_the_time_it_waited() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 3.0, NOW)  # what the dispatcher reports for an attempt without a first byte
    balancer.ended(endpoint, -1, 0.0, NOW)
    assert load(balancer, endpoint, NOW) == pytest.approx(3.0)


def test_history_outlives_the_balancer_and_a_spell_outside_the_set() -> None:
    endpoint, other = Endpoint("a:1"), Endpoint("b:1")
    balancer = made(endpoint, other)
    balancer.first_byte(endpoint, 0.7, NOW)
    balancer.update([other], NOW)
    balancer.update([endpoint, other], NOW)
    assert load(balancer, endpoint, NOW) == pytest.approx(0.7)
    assert load(made(endpoint), endpoint, NOW) == pytest.approx(0.7)


def test_a_load_report_changes_nothing() -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    balancer.first_byte(endpoint, 0.7, NOW)
    balancer.report(endpoint, LoadReport(cpu_utilization=1.0, rps_fractional=1.0), NOW)
    assert load(balancer, endpoint, NOW) == pytest.approx(0.7)


def test_every_pair_is_drawn_equally_often() -> None:
    endpoints = [Endpoint(f"{name}:1") for name in "abcd"]
    balancer = made(*endpoints)
    for rank, endpoint in enumerate(endpoints):
        balancer.first_byte(endpoint, 0.1 * (rank + 1), NOW)
    picked = Counter(balancer.pick(NOW) for _ in range(12_000))
    # The k-th best of four wins every pair but those with a better one: 3, 2, 1 and 0 of 6 pairs.
    assert [round(picked[endpoint] / 2_000) for endpoint in endpoints] == [3, 2, 1, 0]
    assert picked[endpoints[3]] == 0


@given(samples=st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 1e5)), min_size=1, max_size=40))
def test_the_average_stays_between_zero_and_the_slowest_sample(samples: list[tuple[float, float]]) -> None:
    endpoint = Endpoint("a:1")
    balancer = made(endpoint)
    now, slowest = NOW, SEED_RTT_S
    for rtt_s, gap_s in samples:
        now += gap_s
        slowest = max(slowest, rtt_s)
        balancer.first_byte(endpoint, rtt_s, now)
        assert 0.0 < load(balancer, endpoint, now) <= slowest * (1 + 1e-9)
