"""Outlier ejection: both sweeps of gRFC A50, runs of failures, the multiplier, and the caps under any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Outlier
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.outlier import OutlierDetector

NOW = 1_000.0
INTERVAL_S = 10.0
NO_RUNS = 10**9  # consecutive failures: only the sweeps eject


def fleet(count: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{index}:1") for index in range(count)]


def made(endpoints: list[Endpoint], **policy: object) -> OutlierDetector:
    detector = OutlierDetector(Outlier(**policy))  # type: ignore[arg-type]
    detector.update(endpoints)
    return detector


def call(detector: OutlierDetector, endpoint: Endpoint, ok: int, failed: int) -> None:
    for _ in range(failed):
        detector.record(endpoint, False, NOW)
    for _ in range(ok):
        detector.record(endpoint, True, NOW)


def ejected(endpoints: list[Endpoint], now: float = NOW) -> list[int]:
    return [index for index, endpoint in enumerate(endpoints) if endpoint.ejected_until > now]


def test_a_run_of_failures_ejects_at_once() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=7)
    assert [detector.record(endpoints[1], False, NOW) for _ in range(7)] == [False] * 6 + [True]
    assert endpoints[1].ejected_until == NOW + 30.0
    assert endpoints[1].added_at == NOW + 30.0  # it returns on a slow-start ramp


def test_a_success_changes_nothing_to_be_told() -> None:
    endpoints = fleet(3)
    assert not made(endpoints, consecutive_failures=1).record(endpoints[0], True, NOW)


def test_a_success_breaks_the_run() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=3)
    for _ in range(10):
        assert not detector.record(endpoints[0], False, NOW)
        assert not detector.record(endpoints[0], False, NOW)
        assert not detector.record(endpoints[0], True, NOW)
    assert ejected(endpoints) == []


def test_attempts_that_end_after_the_ejection_are_no_new_evidence() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=3)
    assert [detector.record(endpoints[0], False, NOW) for _ in range(50)].count(True) == 1
    assert endpoints[0].ejected_until == NOW + 30.0
    assert not detector.record(endpoints[0], False, NOW + 30.0)
    assert not detector.record(endpoints[0], False, NOW + 30.0)
    assert detector.record(endpoints[0], False, NOW + 30.0)


def test_the_success_rate_sweep_ejects_below_mean_minus_deviations() -> None:
    # Rates 1, 1, 1, 1, 0.5: mean 0.9, deviation 0.2, bound 0.9 - 1.9 * 0.2 = 0.52.
    endpoints = fleet(5)
    detector = made(endpoints, consecutive_failures=NO_RUNS)
    for endpoint in endpoints[:4]:
        call(detector, endpoint, 100, 0)
    call(detector, endpoints[4], 50, 50)
    assert detector.sweep(endpoints, NOW)
    assert ejected(endpoints) == [4]


def test_a_rate_within_the_deviations_stays() -> None:
    # Rates 1, 1, 0.8, 0.6, 0.5: mean 0.78, deviation 0.2, bound 0.39.
    endpoints = fleet(5)
    detector = made(endpoints, consecutive_failures=NO_RUNS)
    for endpoint, ok in zip(endpoints, (100, 100, 80, 60, 50), strict=True):
        call(detector, endpoint, ok, 100 - ok)
    assert not detector.sweep(endpoints, NOW)


def test_endpoints_that_fail_alike_are_no_outliers() -> None:
    endpoints = fleet(5)
    detector = made(endpoints, consecutive_failures=NO_RUNS)
    for endpoint in endpoints:
        call(detector, endpoint, 50, 50)
    assert not detector.sweep(endpoints, NOW)


@pytest.mark.parametrize(("hosts", "calls"), [(4, 100), (5, 99)], ids=["too few hosts", "too few calls"])
def test_the_success_rate_sweep_needs_hosts_and_calls(hosts: int, calls: int) -> None:
    endpoints = fleet(hosts)
    detector = made(endpoints, consecutive_failures=NO_RUNS, success_rate_stdev=0.5, failure_share=1.0)
    for endpoint in endpoints[1:]:
        call(detector, endpoint, calls, 0)
    call(detector, endpoints[0], calls // 2, calls - calls // 2)
    assert not detector.sweep(endpoints, NOW)


@pytest.mark.parametrize(
    ("hosts", "failures", "calls", "expected"),
    [(5, 43, 50, True), (5, 42, 50, False), (5, 17, 20, False), (5, 49, 49, False), (4, 50, 50, False)],
    ids=["above the share", "just below", "at the share", "too few calls", "too few hosts"],
)
def test_the_failure_share_sweep(hosts: int, failures: int, calls: int, expected: bool) -> None:
    endpoints = fleet(hosts)
    min_calls = 20 if calls == 20 else 50
    detector = made(endpoints, consecutive_failures=NO_RUNS, failure_min_calls=min_calls, success_rate_min_calls=10**6)
    for endpoint in endpoints[1:]:
        call(detector, endpoint, calls, 0)
    call(detector, endpoints[0], calls - failures, failures)
    assert detector.sweep(endpoints, NOW) is expected
    assert ejected(endpoints) == ([0] if expected else [])


def test_a_sweep_starts_counting_anew() -> None:
    endpoints = fleet(5)
    detector = made(endpoints, consecutive_failures=NO_RUNS, success_rate_min_calls=10**6)
    for round_ in range(4):  # 30 failures a round never make the 50 calls of one interval
        call(detector, endpoints[0], 0, 30)
        for endpoint in endpoints[1:]:
            call(detector, endpoint, 60, 0)
        assert not detector.sweep(endpoints, NOW + round_ * INTERVAL_S)


def test_the_worst_goes_first_when_the_cap_allows_only_one() -> None:
    endpoints = fleet(12)
    detector = made(endpoints, consecutive_failures=NO_RUNS, success_rate_stdev=0.5)
    for endpoint in endpoints[2:]:
        call(detector, endpoint, 100, 0)
    call(detector, endpoints[0], 20, 80)
    call(detector, endpoints[1], 10, 90)
    assert detector.sweep(endpoints, NOW)
    assert ejected(endpoints) == [1]


@pytest.mark.parametrize(("count", "share", "allowed"), [(2, 0.1, 1), (10, 0.1, 1), (20, 0.1, 2), (10, 0.5, 5)])
def test_the_cap_is_a_share_but_at_least_one(count: int, share: float, allowed: int) -> None:
    endpoints = fleet(count)
    detector = made(endpoints, consecutive_failures=1, max_ejected_share=share)
    assert sum(detector.record(endpoint, False, NOW) for endpoint in endpoints) == allowed


@pytest.mark.parametrize("state", ["alone", "draining", "not serving", "unreachable", "breaker open", "ejected"])
def test_the_last_endpoint_that_is_well_is_never_ejected(state: str) -> None:
    endpoints = fleet(1 if state == "alone" else 2)
    other = endpoints[-1]
    other.draining = state == "draining"
    other.serving = state != "not serving" or len(endpoints) == 1
    other.reachable = state != "unreachable"
    other.open_until = NOW + 1 if state == "breaker open" else 0.0
    other.ejected_until = NOW + 1 if state == "ejected" else 0.0
    detector = made(endpoints, consecutive_failures=1, max_ejected_share=1.0)
    assert not detector.record(endpoints[0], False, NOW)
    assert endpoints[0].ejected_until == 0.0


@pytest.mark.parametrize("field", ["open_until", "ejected_until"])
def test_another_endpoint_that_is_due_back_now_counts_as_well(field: str) -> None:
    endpoints = fleet(2)
    setattr(endpoints[1], field, NOW)
    assert made(endpoints, consecutive_failures=1).record(endpoints[0], False, NOW)


def test_an_endpoint_that_is_no_member_is_not_ejected() -> None:
    detector = made(fleet(3), consecutive_failures=1)
    assert not detector.record(Endpoint("gone:1"), False, NOW)


def test_an_ejection_ends_at_the_sweep_after_its_time() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=1)
    detector.record(endpoints[0], False, NOW)
    assert not detector.sweep(endpoints, NOW + 29.9)
    assert endpoints[0].ejected_until == NOW + 30.0
    assert detector.sweep(endpoints, NOW + 30.0)
    assert endpoints[0].ejected_until == 0.0
    assert endpoints[0].added_at == NOW + 30.0
    assert not detector.sweep(endpoints, NOW + 40.0)


def test_repeated_ejections_last_longer_up_to_the_ceiling() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=1, base_ejection_ms=30_000, max_ejection_ms=100_000)
    now, lasted = NOW, []
    for _ in range(5):
        detector.record(endpoints[0], False, now)
        lasted.append(round(endpoints[0].ejected_until - now))
        now = endpoints[0].ejected_until
        detector.sweep(endpoints, now)
    assert lasted == [30, 60, 90, 100, 100]


def test_intervals_spent_in_the_set_shorten_the_next_ejection() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=1)
    now = NOW
    for _ in range(3):
        detector.record(endpoints[0], False, now)
        now = endpoints[0].ejected_until
        detector.sweep(endpoints, now)  # ends the ejection: not an interval in the set
    for _ in range(2):
        now += INTERVAL_S
        detector.sweep(endpoints, now)
    detector.record(endpoints[0], False, now)
    assert endpoints[0].ejected_until - now == pytest.approx(60.0)


def test_a_base_above_the_ceiling_is_honoured() -> None:
    endpoints = fleet(2)
    detector = made(endpoints, consecutive_failures=1, base_ejection_ms=400_000, max_ejection_ms=300_000)
    detector.record(endpoints[0], False, NOW)
    assert endpoints[0].ejected_until == NOW + 400.0


def test_a_policy_without_ejection_lets_everybody_return() -> None:
    endpoints = fleet(3)
    made(endpoints, consecutive_failures=1).record(endpoints[0], False, NOW)
    detector = made(endpoints, enabled=False, consecutive_failures=1)
    assert not detector.record(endpoints[1], False, NOW)
    assert detector.sweep(endpoints, NOW + 1)
    assert ejected(endpoints) == []
    assert endpoints[0].added_at == NOW + 1


def test_runs_can_be_turned_off() -> None:
    endpoints = fleet(3)
    detector = made(endpoints, consecutive_failures=0)
    assert not any(detector.record(endpoints[0], False, NOW) for _ in range(100))


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ok"), st.integers(0, 11)),
        st.tuples(st.just("fail"), st.integers(0, 11)),
        st.tuples(st.just("sweep"), st.floats(0.0, 40.0)),
        st.tuples(st.just("drain"), st.integers(0, 11)),
        st.tuples(st.just("serving"), st.integers(0, 11)),
    ),
    max_size=120,
)


@given(count=st.integers(1, 12), share=st.floats(0.0, 1.0), runs=st.integers(1, 3), events=EVENTS)
def test_no_history_breaks_the_caps(count: int, share: float, runs: int, events: list[tuple[str, float]]) -> None:
    endpoints = fleet(count)
    detector = made(
        endpoints,
        consecutive_failures=runs,
        max_ejected_share=share,
        success_rate_min_hosts=1,
        success_rate_min_calls=1,
        failure_min_hosts=1,
        failure_min_calls=1,
    )
    now = NOW
    for event, argument in events:
        before = ejected(endpoints, now)
        if event == "sweep":
            now += argument
            before = ejected(endpoints, now)
            detector.sweep(endpoints, now)
        else:
            endpoint = endpoints[int(argument) % count]
            if event == "drain":
                endpoint.draining = not endpoint.draining
            elif event == "serving":
                endpoint.serving = not endpoint.serving
            else:
                detector.record(endpoint, event == "ok", now)
        after = ejected(endpoints, now)
        assert len(after) <= max(1, int(share * count))
        if set(after) > set(before):
            assert any(
                endpoint.serving and not endpoint.draining and endpoint.ejected_until <= now for endpoint in endpoints
            )
